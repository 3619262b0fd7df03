package svid_test

import (
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/svid"
)

// jwkText is a P-256 key as a JWK, with more members behind it.
func jwkText(key *ecdsa.PublicKey, more string) string {
	raw, err := key.Bytes()
	if err != nil {
		panic(err)
	}
	x, y := base64.RawURLEncoding.EncodeToString(raw[1:33]), base64.RawURLEncoding.EncodeToString(raw[33:])
	return fmt.Sprintf(`{"kty":"EC","crv":"P-256","x":%q,"y":%q%s}`, x, y, more)
}

func TestParseJWTBundle(t *testing.T) {
	key := &keys().p256.PublicKey
	good := jwkText(key, `,"use":"jwt-svid","kid":"a"`)
	private, err := json.Marshal(jose.JSONWebKey{Key: keys().other, KeyID: "d", Use: "jwt-svid"})
	if err != nil {
		t.Fatal(err)
	}
	beside := func(other string) string { return `{"keys":[` + good + `,` + other + `]}` }
	for _, row := range []struct {
		name, text string
		keys       int // -1: an error
	}{
		{"TDB-05/keys alone", `{"keys":[` + good + `]}`, 1},
		{"TDB-05/members of the set that nobody knows", `{"spiffe_sequence":1,"foo":{},"keys":[` + good + `]}`, 1},
		{"TDB-11/no keys", `{}`, -1},
		{"TDB-11/keys null", `{"keys":null}`, -1},
		{"TDB-11/keys an object", `{"keys":{}}`, -1},
		{"TDB-11/no JSON", `keys`, -1},
		{"TDB-11/nothing", ``, -1},
		{"TDB-13/an empty set", `{"keys":[]}`, 0},
		{"TDB-12/unknown kind", beside(`{"kty":"XYZ","use":"jwt-svid","kid":"b"}`), 1},
		{"TDB-12/no kind", beside(`{"use":"jwt-svid","kid":"b"}`), 1},
		{"TDB-12/unknown curve", beside(`{"kty":"EC","crv":"P-999","x":"AA","y":"AA","use":"jwt-svid","kid":"b"}`), 1},
		{"TDB-12/not an object", beside(`7`), 1},
		{"TDB-12/a shared secret", beside(`{"kty":"oct","k":"c2VjcmV0","use":"jwt-svid","kid":"b"}`), 1},
		{"TDB-12/Ed25519, which JWT-SVIDs have not", beside(`{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","use":"jwt-svid","kid":"b"}`), 1},
		{"TDB-12/RSA of 512 bits", beside(`{"kty":"RSA","e":"AQAB","n":"` + strings.Repeat("q", 86) + `","use":"jwt-svid","kid":"b"}`), 1},
		{"TDB-12/a coordinate of another width", beside(strings.Replace(jwkText(key, `,"use":"jwt-svid","kid":"b"`), `"x":"`, `"x":"AAAA`, 1)), 1},
		{"TDB-12/a point off the curve, of full width", beside(`{"kty":"EC","crv":"P-256","x":"` + strings.Repeat("A", 43) + `","y":"` + strings.Repeat("A", 43) + `","use":"jwt-svid","kid":"b"}`), 1},
		{"TDB-12/a private key", beside(string(private)), 1},
		{"TDB-12/an algorithm that does not fit", beside(jwkText(key, `,"use":"jwt-svid","kid":"b","alg":"ES384"`)), 1},
		{"TDB-16/use of another case", beside(jwkText(key, `,"use":"JWT-SVID","kid":"b"`)), 1},
		{"TDB-16/use sig", beside(jwkText(key, `,"use":"sig","kid":"b"`)), 1},
		{"TDB-16/no use", beside(jwkText(key, `,"kid":"b"`)), 1},
		{"TDB-16/unknown use", beside(jwkText(key, `,"use":"foo","kid":"b"`)), 1},
		{"TDB-22/keys twice", `{"keys":[` + good + `],"keys":[]}`, -1},
		{"TDB-22/keys twice, once escaped", `{"keys":[` + good + `],"\u006beys":[]}`, -1},
		{"TDB-22/kid twice in a key", `{"keys":[` + jwkText(key, `,"use":"jwt-svid","kid":"a","kid":"b"`) + `]}`, -1},
		{"JWT-26/jwt-svid", `{"keys":[` + good + `]}`, 1},
		{"JWT-27/no kid", beside(jwkText(key, `,"use":"jwt-svid"`)), 1},
		{"JWT-27/empty kid", beside(jwkText(key, `,"use":"jwt-svid","kid":""`)), 1},
		{"JWT-27/a kid that is a number", beside(jwkText(key, `,"use":"jwt-svid","kid":7`)), 1},
		{"JWT-27/two keys of one kid", beside(jwkText(&keys().other.PublicKey, `,"use":"jwt-svid","kid":"a"`)), -1},
		{"JWT-28/x509-svid and wit-svid", beside(jwkText(key, `,"use":"x509-svid","kid":"b"`) + "," + jwkText(key, `,"use":"wit-svid","kid":"c"`)), 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			b, err := svid.ParseJWTBundle(exampleOrg, []byte(row.text))
			switch {
			case row.keys < 0 && (err == nil || len(b.Keys) > 0):
				t.Errorf("read as %d keys, %v; want an error", len(b.Keys), err)
			case row.keys >= 0 && (err != nil || len(b.Keys) != row.keys || b.TrustDomain != exampleOrg):
				t.Errorf("read as %d keys, %v; want %d", len(b.Keys), err, row.keys)
			}
		})
	}
	if _, err := svid.ParseJWTBundle(spiffeid.TrustDomain{}, []byte(`{"keys":[]}`)); err == nil { // TDB-03
		t.Error("a bundle of no trust domain is taken")
	}
}

func TestParseJWKS(t *testing.T) {
	key := &keys().p256.PublicKey
	for name, row := range map[string]struct {
		more string
		keys int
	}{
		"WAPI-63/no use":   {`,"kid":"a"`, 1},
		"use sig":          {`,"kid":"a","use":"sig"`, 1},
		"use jwt-svid":     {`,"kid":"a","use":"jwt-svid"`, 1},
		"WAPI-62/x509":     {`,"kid":"a","use":"x509-svid"`, 0},
		"WAPI-62/wit":      {`,"kid":"a","use":"wit-svid"`, 0},
		"use enc":          {`,"kid":"a","use":"enc"`, 0},
		"empty use":        {`,"kid":"a","use":""`, 0},
		"JWT-07/alg ES256": {`,"kid":"a","alg":"ES256"`, 1},
		"JWT-07/alg RS256": {`,"kid":"a","alg":"RS256"`, 0},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := svid.ParseJWKS(exampleOrg, []byte(`{"keys":[`+jwkText(key, row.more)+`]}`))
			if err != nil || len(b.Keys) != row.keys {
				t.Errorf("read as %d keys, %v; want %d", len(b.Keys), err, row.keys)
			}
		})
	}
}

// What we print has the five members at full width, and go-spiffe and we read it back.
func TestCLIENT_19_JWKS(t *testing.T) {
	b := svid.JWTBundle{TrustDomain: exampleOrg}
	if got := string(b.JWKS()); got != `{"keys":[]}` { // TDB-11, WAPI-61
		t.Errorf("no keys are printed as %s", got)
	}
	for i := range 300 { // one in 128 has a coordinate that begins with a zero byte
		b.Keys = append(b.Keys, svid.JWTKey{ID: fmt.Sprintf("%03d", 299-i), Public: newKey(t).Public()})
	}
	var set struct{ Keys []map[string]string }
	if err := json.Unmarshal(b.JWKS(), &set); err != nil || len(set.Keys) != 300 {
		t.Fatalf("printed as %d keys, %v", len(set.Keys), err)
	}
	for i, k := range set.Keys {
		if len(k) != 5 || k["kty"] != "EC" || k["crv"] != "P-256" || k["kid"] != fmt.Sprintf("%03d", i) || len(k["x"]) != 43 || len(k["y"]) != 43 {
			t.Errorf("WAPI-63, TDB-14: key %d is printed as %v", i, k)
		}
	}
	read, err := svid.ParseJWKS(exampleOrg, b.JWKS())
	if err != nil || len(read.Keys) != 300 || string(read.JWKS()) != string(b.JWKS()) {
		t.Errorf("read back as %d keys, %v", len(read.Keys), err)
	}
	theirs, err := jwtbundle.Parse(exampleOrg, b.JWKS())
	if err != nil || len(theirs.JWTAuthorities()) != 300 {
		t.Errorf("go-spiffe reads %v", err)
	}
}

// FuzzParseJWKS: what comes out prints and reads back the same.
func FuzzParseJWKS(f *testing.F) {
	f.Add([]byte(`{"keys":[` + jwkText(&keys().p256.PublicKey, `,"kid":"a"`) + `]}`))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQ","e":"AQ","kid":"a"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := svid.ParseJWKS(exampleOrg, text)
		if err != nil {
			return
		}
		again, err := svid.ParseJWKS(exampleOrg, b.JWKS())
		if err != nil || len(again.Keys) != len(b.Keys) {
			t.Fatalf("%d keys are read back as %d, %v", len(b.Keys), len(again.Keys), err)
		}
	})
}
