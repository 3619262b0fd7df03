package svid

import (
	"cmp"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bundle is all that one trust domain publishes, SPIFFE_Trust_Domain_and_Bundle section 4. The document does not name its trust
// domain, so the two always go together.
type Bundle struct {
	TrustDomain spiffeid.TrustDomain
	Roots       []*x509.Certificate // empty: the trust domain has no X509-SVIDs
	JWTKeys     []JWTKey            // empty: it has no JWT-SVIDs
	Sequence    uint64              // `spiffe_sequence`; 0: the document has none
	RefreshHint time.Duration       // `spiffe_refresh_hint`, whole seconds, at most a day; 0: the document has none
}

const (
	maxKeys        = 1000 // of one document; each costs a parse of a key or a certificate
	maxRefreshHint = 24 * time.Hour
	refreshUnsaid  = 5 * time.Minute // section 4.1.2
	minRefresh     = time.Minute
)

// ReadBundle is ParseBundle of what r gives. It reads no more than a bundle may have, however long r goes on.
func ReadBundle(td spiffeid.TrustDomain, r io.Reader) (Bundle, error) {
	document, err := io.ReadAll(io.LimitReader(r, maxJWKSLength+1))
	if err != nil {
		return Bundle{}, fmt.Errorf("read bundle of trust domain %q: %w", td.Name(), err)
	}
	return ParseBundle(td, document)
}

// ParseBundle reads a SPIFFE bundle. A key whose kind or `use` is unknown, or that cannot be used, is passed over; what is left may
// be nothing, and then no SVID of that trust domain is valid (section 4.1.3). What is no bundle, says a thing twice, has an anchor
// that is no CA certificate, or names in all its certificates another trust domain, is an error: whoever holds an older bundle keeps it.
func ParseBundle(td spiffeid.TrustDomain, document []byte) (Bundle, error) {
	b := Bundle{TrustDomain: td}
	keys, err := parseJWKS(td, document, "jwt-svid") // bounds it, and refuses what is no JWK set
	if err != nil {
		return Bundle{}, err
	}
	b.JWTKeys = keys.Keys
	var set struct {
		Keys        []json.RawMessage `json:"keys"`
		Sequence    json.RawMessage   `json:"spiffe_sequence"`
		RefreshHint json.RawMessage   `json:"spiffe_refresh_hint"`
	}
	if err := json.Unmarshal(document, &set); err != nil {
		return Bundle{}, fmt.Errorf("bundle of trust domain %q: %w", td.Name(), err)
	}
	if err := b.readRoots(set.Keys); err != nil {
		return Bundle{}, fmt.Errorf("bundle of trust domain %q: %w", td.Name(), err)
	}
	if set.Sequence != nil { // section 4.1.1: never wrapped, never guessed
		if b.Sequence, err = strconv.ParseUint(string(set.Sequence), 10, 64); err != nil {
			return Bundle{}, fmt.Errorf("bundle of trust domain %q: spiffe_sequence is no whole number of 64 bits", td.Name())
		}
	}
	if hint, err := strconv.ParseUint(string(set.RefreshHint), 10, 64); err == nil { // only a hint: nonsense is none
		b.RefreshHint = time.Duration(min(hint, uint64(maxRefreshHint/time.Second))) * time.Second
	}
	return b, nil
}

// RefreshAfter is how long to wait before asking for the bundle again: what its publisher hints, within reason; five minutes where
// it says nothing.
func (b Bundle) RefreshAfter() time.Duration {
	return min(max(cmp.Or(b.RefreshHint, refreshUnsaid), minRefresh), maxRefreshHint)
}

// Anchors are what X509-SVIDs of the trust domain chain to.
func (b Bundle) Anchors() Anchors { return Anchors{TrustDomain: b.TrustDomain, Roots: b.Roots} }

// JWT is what JWT-SVIDs of the trust domain are verified with.
func (b Bundle) JWT() JWTBundle { return JWTBundle{TrustDomain: b.TrustDomain, Keys: b.JWTKeys} }

// Document is the bundle as others read it: the roots in their order, then the JWT keys by id, with the members that section 4.2
// defines and no others. The error says which key has no form there.
func (b Bundle) Document() ([]byte, error) {
	var document struct {
		Keys        []jose.JSONWebKey `json:"keys"`
		Sequence    uint64            `json:"spiffe_sequence,omitempty"`
		RefreshHint int64             `json:"spiffe_refresh_hint,omitempty"`
	}
	document.Keys = make([]jose.JSONWebKey, 0, len(b.Roots)+len(b.JWTKeys)) // never null: section 4.1.3
	document.Sequence, document.RefreshHint = b.Sequence, int64(b.RefreshHint/time.Second)
	for _, root := range b.Roots { // X509-SVID section 6.1: no kid
		document.Keys = append(document.Keys, jose.JSONWebKey{Key: root.PublicKey, Certificates: []*x509.Certificate{root}, Use: "x509-svid"})
	}
	for _, k := range slices.SortedFunc(slices.Values(b.JWTKeys), func(x, y JWTKey) int { return cmp.Compare(x.ID, y.ID) }) {
		document.Keys = append(document.Keys, jose.JSONWebKey{Key: k.Public, KeyID: k.ID, Use: "jwt-svid"})
	}
	text, err := json.Marshal(document)
	if err != nil {
		return nil, fmt.Errorf("bundle of trust domain %q: %w", b.TrustDomain.Name(), err)
	}
	return text, nil
}

// readRoots takes the entries for X509-SVIDs.
func (b *Bundle) readRoots(keys []json.RawMessage) error {
	named, ours := "", false
	for _, raw := range keys {
		root := readRoot(raw)
		if root == nil || slices.ContainsFunc(b.Roots, root.Equal) {
			continue
		}
		if err := CheckAuthority(root); err != nil {
			return err
		}
		if id, err := IDFromCert(root); err == nil { // it need not have one
			named = id.TrustDomain().Name()
			ours = ours || id.MemberOf(b.TrustDomain)
		}
		b.Roots = append(b.Roots, root)
	}
	if named != "" && !ours {
		return fmt.Errorf("its certificates are of trust domain %q", named)
	}
	return nil
}

// readRoot gives the certificate of an entry for X509-SVIDs, X509-SVID section 6; nil where the entry is for something else or has
// to be passed over.
func readRoot(raw []byte) *x509.Certificate {
	var members map[string]json.RawMessage
	var use string
	var chain []json.RawMessage
	if json.Unmarshal(raw, &members) != nil || json.Unmarshal(members["use"], &use) != nil || use != "x509-svid" ||
		json.Unmarshal(members["x5c"], &chain) != nil || len(chain) == 0 { // only the first counts, whatever follows
		return nil
	}
	root, err := readCertificate(chain[0])
	if err != nil {
		return nil
	}
	key, err := publicKey(members)
	if err != nil || !key.Equal(root.PublicKey) {
		return nil
	}
	return root
}

// readCertificate reads base64 of DER, RFC 7517 section 4.7. encoding/base64 passes over line breaks; nothing here does.
func readCertificate(text json.RawMessage) (*x509.Certificate, error) {
	var encoded string
	if err := json.Unmarshal(text, &encoded); err != nil {
		return nil, err
	}
	if strings.ContainsAny(encoded, "\r\n") {
		return nil, errors.New("line break in base64")
	}
	der, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// publicKey reads the key of a JWK from what describes a key there, and passes over the rest.
func publicKey(members map[string]json.RawMessage) (interface{ Equal(crypto.PublicKey) bool }, error) {
	described := map[string]*json.RawMessage{}
	for _, name := range []string{"kty", "crv", "x", "y", "n", "e", "d"} { // d, so that a private key is not taken for a public one
		if value, there := members[name]; there {
			described[name] = &value
		}
	}
	text, err := json.Marshal(described)
	if err != nil {
		return nil, err
	}
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON(text); err != nil {
		return nil, err
	}
	key, comparable := jwk.Key.(interface{ Equal(crypto.PublicKey) bool })
	if !comparable || !jwk.IsPublic() {
		return nil, errors.New("no public key")
	}
	return key, nil
}
