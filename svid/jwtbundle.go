package svid

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// JWTBundle is what JWT-SVIDs of one trust domain are verified with. A set of keys does not name its trust domain, so the two
// always go together.
type JWTBundle struct {
	TrustDomain spiffeid.TrustDomain
	Keys        []JWTKey // empty: the trust domain has no JWT-SVIDs
}

// JWTKey is one authority's public key.
type JWTKey struct {
	ID        string           // `kid`
	Public    crypto.PublicKey // P-256, P-384, P-521, or RSA of 2048 to 8192 bits
	Algorithm string           // the only one it is for; empty: each that fits
}

// maxJWKSLength bounds a set of keys, in bytes.
const maxJWKSLength = 4 << 20

// ParseJWKS reads a plain JWK set, RFC 7517, as the Workload API and our server hand out: keys for another use than signatures or
// JWT-SVIDs are none of ours. A key that cannot be used is left out, as section 5 has it; what is no set is an error.
func ParseJWKS(td spiffeid.TrustDomain, jwks []byte) (JWTBundle, error) {
	return parseJWKS(td, jwks, "", "sig", "jwt-svid")
}

// ParseJWTBundle reads the JWT keys of a SPIFFE bundle, SPIFFE_Trust_Domain_and_Bundle section 4: only those whose `use` is
// jwt-svid, so that a key published for another kind of SVID verifies no JWT-SVID.
func ParseJWTBundle(td spiffeid.TrustDomain, bundle []byte) (JWTBundle, error) {
	return parseJWKS(td, bundle, "jwt-svid")
}

func parseJWKS(td spiffeid.TrustDomain, text []byte, uses ...string) (JWTBundle, error) {
	b := JWTBundle{TrustDomain: td}
	if td.IsZero() {
		return b, errors.New("keys of no trust domain")
	}
	var set struct {
		Keys *[]json.RawMessage `json:"keys"`
	}
	var whole any // for names that are there twice, at any depth
	if err := checkBounds(text); err != nil {
		return b, fmt.Errorf("the keys of trust domain %q: %w", td.Name(), err)
	}
	if json.Unmarshal(text, &whole) != nil || json.Unmarshal(text, &set) != nil || set.Keys == nil {
		return b, fmt.Errorf("the keys of trust domain %q are no JWK set", td.Name())
	}
	if len(*set.Keys) > maxKeys {
		return b, fmt.Errorf("the keys of trust domain %q: they are more than %d", td.Name(), maxKeys)
	}
	for _, raw := range *set.Keys {
		key, usable := readJWK(raw, uses)
		if !usable {
			continue
		}
		if slices.ContainsFunc(b.Keys, func(k JWTKey) bool { return k.ID == key.ID }) {
			return JWTBundle{TrustDomain: td}, fmt.Errorf("trust domain %q has two keys of the id %s", td.Name(), quote(key.ID))
		}
		b.Keys = append(b.Keys, key)
	}
	return b, nil
}

// checkBounds refuses what would take long to read. Each list or object costs the decoder microseconds: millions are not even begun.
func checkBounds(text []byte) error {
	if len(text) > maxJWKSLength {
		return fmt.Errorf("more than %d bytes", maxJWKSLength)
	}
	if n := bytes.Count(text, []byte("{")) + bytes.Count(text, []byte("[")); n > 10*maxKeys {
		return fmt.Errorf("%d lists and objects, more than %d", n, 10*maxKeys)
	}
	return nil
}

// readJWK leaves out what is not for us: another use, kind, curve or algorithm, no id, a weak key, one that is not public.
func readJWK(raw []byte, uses []string) (JWTKey, bool) {
	var named struct {
		Use *string `json:"use"`
	}
	var jwk jose.JSONWebKey
	if json.Unmarshal(raw, &named) != nil || jwk.UnmarshalJSON(raw) != nil || jwk.KeyID == "" {
		return JWTKey{}, false
	}
	if !slices.Contains(uses, jwk.Use) || named.Use != nil && *named.Use == "" { // case counts
		return JWTKey{}, false
	}
	key := JWTKey{ID: jwk.KeyID, Public: jwk.Key, Algorithm: jwk.Algorithm}
	return key, len(key.algorithms()) > 0 // a private key has none
}

// algorithms are those that a key verifies, RFC 7518 section 3.1: the curve says which, and the key's own `alg` where it has one.
func (k JWTKey) algorithms() []string {
	var fit []string
	switch key := k.Public.(type) {
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256():
			fit = []string{"ES256"}
		case elliptic.P384():
			fit = []string{"ES384"}
		case elliptic.P521():
			fit = []string{"ES512"}
		}
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits >= 2048 && bits <= 8192 && key.E >= 3 && key.E&1 == 1 { // beneath weak, above a burden
			fit = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
		}
	}
	return slices.DeleteFunc(fit, func(a string) bool { return k.Algorithm != "" && k.Algorithm != a })
}

// JWKS is the set as a plain JWK set, ordered by id, so that the same keys always give the same bytes. Each has kid and kty, and
// crv, x and y at full width, or n and e: no `use` (ruling R14), since there are JOSE libraries that pass over a key whose use they
// do not know.
func (b JWTBundle) JWKS() []byte {
	set := jose.JSONWebKeySet{Keys: make([]jose.JSONWebKey, 0, len(b.Keys))} // never null
	for _, k := range b.Keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{KeyID: k.ID, Key: k.Public})
	}
	slices.SortFunc(set.Keys, func(a, b jose.JSONWebKey) int { return cmp.Compare(a.KeyID, b.KeyID) })
	text, err := json.Marshal(set)
	if err != nil {
		return []byte(`{"keys":[]}`) // a key that is none: it verifies nothing either
	}
	return text
}
