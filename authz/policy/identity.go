package policy

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"net/url"
	"strings"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/svid"
)

const (
	maxRemembered = 4096
	// How long a verified certificate is taken as verified: what the bundle or a revocation changes holds after that.
	rememberFor = time.Second
)

// identities turns principals into what a policy may rely on: a SPIFFE ID only, and where the peer's certificate came along, only
// the one that this certificate proves. One per process: it remembers which certificates and tokens verified.
type identities struct {
	known    Identities
	now      func() time.Time
	verified *otter.Cache[[sha256.Size]byte, proof]
	tokens   *otter.Cache[[sha256.Size]byte, verifiedToken]
}

// proof is what verifying a certificate gave; the zero ID for one that proves nothing.
type proof struct {
	id    spiffeid.ID
	until time.Time
}

func newIdentities(c Config) (*identities, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	verified, err := otter.New(&otter.Options[[sha256.Size]byte, proof]{MaximumSize: maxRemembered})
	if err != nil {
		return nil, err
	}
	tokens, err := otter.New(&otter.Options[[sha256.Size]byte, verifiedToken]{MaximumSize: maxRemembered})
	return &identities{known: c.Identities, now: c.Now, verified: verified, tokens: tokens}, err
}

// object is input.source or input.destination; nil where there is none.
func (i *identities) object(p *peer) ast.Value {
	id, err := svid.ParseID(p.principal)
	if err != nil {
		return nil
	}
	if len(p.certificate) > 0 && i.prove(p.certificate) != id {
		return nil
	}
	pairs := make([][2]*ast.Term, 0, 9)
	put := func(key string, v ast.Value) {
		pairs = append(pairs, [2]*ast.Term{ast.StringTerm(key), ast.NewTerm(v)})
	}
	put("spiffe_id", ast.String(p.principal))
	put("trust_domain", ast.String(id.TrustDomain().Name()))
	put("path", stringArray(svid.Segments(id)))
	put("certificate", ast.Boolean(len(p.certificate) > 0))
	if i.known != nil {
		i.facts(id, put)
	}
	return ast.NewObject(pairs...)
}

// facts adds what this node knows of every holder of the ID.
func (i *identities) facts(id spiffeid.ID, put func(string, ast.Value)) {
	facts, ok := i.known.Facts(id)
	if !ok {
		return
	}
	put("selectors", stringArray(facts.Selectors))
	put("assurance", ast.InternedTerm(int(facts.Assurance)).Value)
	for key, text := range map[string]string{"entry": facts.Entry, "hint": facts.Hint, "node": facts.Node} {
		if text != "" {
			put(key, ast.String(text))
		}
	}
}

// prove gives the ID that a certificate proves now.
func (i *identities) prove(encoded []byte) spiffeid.ID {
	key := sha256.Sum256(encoded)
	now := i.now()
	if p, ok := i.verified.GetIfPresent(key); ok && now.Before(p.until) {
		return p.id
	}
	p := proof{until: now.Add(rememberFor)}
	if der, ends, ok := leaf(encoded); ok && i.known != nil && now.Before(ends) {
		if id, err := i.known.VerifyPeer(der); err == nil {
			p.id = id
		}
		if ends.Before(p.until) {
			p.until = ends
		}
	}
	i.verified.Set(key, p)
	return p.id
}

// leaf unwraps a certificate: URL-encoded PEM, the leaf first.
func leaf(encoded []byte) (der []byte, ends time.Time, ok bool) {
	plain := string(encoded)
	if strings.IndexByte(plain, '%') >= 0 {
		var err error
		if plain, err = url.PathUnescape(plain); err != nil {
			return nil, ends, false
		}
	}
	block, _ := pem.Decode([]byte(plain))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, ends, false
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, ends, false
	}
	return block.Bytes, c.NotAfter, true
}
