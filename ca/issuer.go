package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// issuer is a key with the name it signs under and the parts of certificates that are the same for all that it signs. It does
// not change once made, but for what its lints have shown.
type issuer struct {
	id        string // hex of keyID
	keyID     []byte
	name      []byte            // subject, DER
	cert      *x509.Certificate // nil while a root signs its own
	key       crypto.Signer     // prints nothing of the private key: never log an issuer
	keyName   string
	algorithm []byte // DER
	hash      crypto.Hash
	rehearsal []byte   // a signature by a thrown-away key of the same kind
	linted    sync.Map // of shape
}

// String keeps the key out of logs.
func (i *issuer) String() string { return "authority " + i.id }

// newIssuer gives a key its name: the tier and eight digits of the key id, so that no two authorities have one subject. The trust
// domain stays out of it.
func newIssuer(tier, keyName string, key crypto.Signer) (*issuer, publicKey, error) {
	public, err := encodeKey(key.Public())
	if err != nil {
		return nil, publicKey{}, err
	}
	i := &issuer{id: hex.EncodeToString(public.id), keyID: public.id, key: key, keyName: keyName}
	if i.algorithm, i.hash, err = signatureOf(key.Public()); err != nil {
		return nil, publicKey{}, err
	}
	if i.rehearsal, err = throwAway(key.Public()); err != nil {
		return nil, publicKey{}, err
	}
	name := pkix.Name{CommonName: "writ " + tier + " " + i.id[:8]}
	if i.name, err = asn1.Marshal(name.ToRDNSequence()); err != nil {
		return nil, publicKey{}, err
	}
	return i, public, nil
}

// make makes a key and its certificate, signed by the root, or by itself if it is one, and records it: from then on it may sign.
func (a *Authority) make(ctx context.Context, p Profile, tier string, ttl time.Duration) (*issuer, error) {
	keyName := tier + "-" + hex.EncodeToString(randomBytes(8))
	key, err := a.config.Keys.Create(ctx, keyName)
	if err != nil {
		return nil, err
	}
	i, err := a.certify(ctx, p, tier, keyName, key, ttl)
	if err != nil {
		// Not with ctx, which may be what ended. A key that stays behind is never used.
		if gone := a.config.Keys.Remove(context.WithoutCancel(ctx), keyName); gone != nil {
			a.config.Log.WarnContext(ctx, "unused key stays in the keystore", "err", gone)
		}
		return nil, err
	}
	a.config.Log.InfoContext(ctx, "authority made", "authority_id", i.id, "not_after", i.cert.NotAfter)
	return i, nil
}

func (a *Authority) certify(ctx context.Context, p Profile, tier, keyName string, key crypto.Signer, ttl time.Duration) (*issuer, error) {
	i, public, err := newIssuer(tier, keyName, key)
	if err != nil {
		return nil, err
	}
	c := certificate{profile: p, by: i, subject: i.name, key: public, uri: a.config.TrustDomain.IDString()}
	var from, until time.Time
	if tier == TierIssuing {
		c.by, from, until = a.root, a.root.cert.NotBefore, a.root.cert.NotAfter
	}
	if c.notBefore, c.notAfter, err = validity(a.config.Now(), ttl, from, until); err != nil {
		return nil, err
	}
	d, err := a.finish(c, spiffeid.ID{})
	if err != nil {
		return nil, err
	}
	raw, err := d.sign()
	if err != nil {
		return nil, err
	}
	if i.cert, err = x509.ParseCertificate(raw); err != nil {
		return nil, fmt.Errorf("read own certificate: %w", err)
	}
	return i, a.record(ctx, a.opening(i, tier))
}

// opening is the record of an issuer that begins to sign.
func (a *Authority) opening(i *issuer, tier string) known {
	r := AuthorityRecord{ID: i.id, Server: a.config.Server, Use: UseX509, Tier: tier, State: StateActive,
		Certificate: i.cert.Raw, NotBefore: i.cert.NotBefore, NotAfter: i.cert.NotAfter}
	if a.config.Keys.Lasting() {
		r.KeyName = i.keyName
	}
	return known{AuthorityRecord: r, cert: i.cert}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails, by its documentation
	return b
}
