package svid_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/writ-dev/writ/svid"
)

var (
	exampleOrg = spiffeid.RequireTrustDomainFromString("example.org")
	otherOrg   = spiffeid.RequireTrustDomainFromString("other.org")
)

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// signer signs whatever text it is given, by one algorithm.
type signer struct {
	key crypto.Signer
	alg jose.SignatureAlgorithm
}

// signature is over the two parts as they stand, so that tests may write any header.
func (s signer) signature(t testing.TB, input string) string {
	t.Helper()
	sum := sha256.Sum256([]byte(input))
	switch key := s.key.(type) {
	case *ecdsa.PrivateKey:
		digest := sum[:]
		if s.alg == jose.ES384 {
			h := crypto.SHA384.New()
			h.Write([]byte(input))
			digest = h.Sum(nil)
		}
		r, v, err := ecdsa.Sign(rand.Reader, key, digest)
		if err != nil {
			t.Fatal(err)
		}
		n := (key.Curve.Params().BitSize + 7) / 8
		return b64(string(r.FillBytes(make([]byte, n))) + string(v.FillBytes(make([]byte, n))))
	case *rsa.PrivateKey:
		var out []byte
		var err error
		if s.alg == jose.PS256 {
			out, err = rsa.SignPSS(rand.Reader, key, crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		} else {
			out, err = rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
		}
		if err != nil {
			t.Fatal(err)
		}
		return b64(string(out))
	}
	t.Fatalf("no signature of %T", s.key)
	return ""
}

func (s signer) token(t testing.TB, header, payload string) string {
	t.Helper()
	input := b64(header) + "." + b64(payload)
	return input + "." + s.signature(t, input)
}

// keys are those that the tests sign with, made once: RSA ones take their time.
var keys = sync.OnceValue(func() (k struct {
	p256, other, p384 *ecdsa.PrivateKey
	rsa               *rsa.PrivateKey
}) {
	k.p256, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	k.other, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	k.p384, _ = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	k.rsa, _ = rsa.GenerateKey(rand.Reader, 2048)
	return k
})

// bundles are of two trust domains that share a key id, under different keys.
func bundles() map[spiffeid.TrustDomain]svid.JWTBundle {
	k := keys()
	return map[spiffeid.TrustDomain]svid.JWTBundle{
		exampleOrg: {TrustDomain: exampleOrg, Keys: []svid.JWTKey{{ID: "a", Public: k.p256.Public()}, {ID: "b", Public: k.p384.Public()},
			{ID: "r", Public: k.rsa.Public()}, {ID: "p", Public: k.rsa.Public(), Algorithm: "PS256"}}},
		otherOrg: {TrustDomain: otherOrg, Keys: []svid.JWTKey{{ID: "a", Public: k.other.Public()}}},
		spiffeid.RequireTrustDomainFromString("keyless.org"): {TrustDomain: spiffeid.RequireTrustDomainFromString("keyless.org")},
	}
}

const goodHeader = `{"alg":"ES256","kid":"a","typ":"JWT"}`

var goodClaims = fmt.Sprintf(`{"sub":"spiffe://example.org/web","aud":["db"],"exp":%d,"iat":%d}`, noon.Add(time.Minute).Unix(), noon.Unix())

// claims is the good payload with one claim set to a JSON text, or taken out where that is empty.
func claims(name, value string) string {
	var m map[string]json.RawMessage
	if err := json.Unmarshal([]byte(goodClaims), &m); err != nil {
		panic(err)
	}
	m[name] = json.RawMessage(value)
	if value == "" {
		delete(m, name)
	}
	text, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(text)
}

func unix(t time.Time) string { return fmt.Sprint(t.Unix()) }

func TestVerifyJWT(t *testing.T) {
	k := keys()
	es256, other, es384 := signer{k.p256, jose.ES256}, signer{k.other, jose.ES256}, signer{k.p384, jose.ES384}
	rs256, ps256 := signer{k.rsa, jose.RS256}, signer{k.rsa, jose.PS256}
	good := es256.token(t, goodHeader, goodClaims)
	parts := strings.Split(good, ".")
	public, err := x509.MarshalPKIXPublicKey(k.p256.Public())
	if err != nil {
		t.Fatal(err)
	}
	jwk := svid.JWTBundle{TrustDomain: otherOrg, Keys: []svid.JWTKey{{ID: "x", Public: k.other.Public()}}}.JWKS()
	own := strings.TrimSuffix(strings.TrimPrefix(string(jwk), `{"keys":[`), `]}`)
	forged := func(header string) string { return other.token(t, header, goodClaims) }
	rows := []struct {
		name, token string
		valid       bool
	}{
		{"JWT-01/compact serialization", good, true},
		{"JWT-01/flattened JSON", fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, parts[0], parts[1], parts[2]), false},
		{"JWT-01/general JSON", fmt.Sprintf(`{"payload":%q,"signatures":[{"protected":%q,"signature":%q}]}`, parts[1], parts[0], parts[2]), false},
		{"JWT-01/two signatures", good + "." + parts[2], false},
		{"JWT-02/five parts, as of a JWE", "a.b.c.d.e", false},
		{"JWT-02/a token as the payload of a token", es256.token(t, `{"alg":"ES256","kid":"a","cty":"JWT"}`, good), false},
		{"JWT-03/a header of another name", es256.token(t, `{"alg":"ES256","kid":"a","foo":1}`, goodClaims), true},
		{"JWT-03/jwk brings its own key", forged(`{"alg":"ES256","kid":"x","jwk":` + own + `}`), false},
		{"JWT-03/jwk brings its own key for a kid that is known", forged(`{"alg":"ES256","kid":"a","jwk":` + own + `}`), false},
		{"JWT-03/jku", forged(`{"alg":"ES256","kid":"a","jku":"https://evil.test/keys"}`), false},
		{"JWT-03/x5u", forged(`{"alg":"ES256","kid":"a","x5u":"https://evil.test/cert"}`), false},
		{"JWT-03/x5c", forged(`{"alg":"ES256","kid":"a","x5c":["MIIB"]}`), false},
		{"JWT-05/ES384", es384.token(t, `{"alg":"ES384","kid":"b"}`, goodClaims), true},
		{"JWT-05/RS256", rs256.token(t, `{"alg":"RS256","kid":"r"}`, goodClaims), true},
		{"JWT-05/PS256", ps256.token(t, `{"alg":"PS256","kid":"r"}`, goodClaims), true},
		{"JWT-06/none", b64(`{"alg":"none","kid":"a"}`) + "." + parts[1] + ".", false},
		{"JWT-06/none with a signature", es256.token(t, `{"alg":"none","kid":"a"}`, goodClaims), false},
		{"JWT-06/None", es256.token(t, `{"alg":"None","kid":"a"}`, goodClaims), false},
		{"JWT-06/HS256 under the public key as PEM", hs256(`{"alg":"HS256","kid":"a"}`, goodClaims, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})), false},
		{"JWT-06/HS256 under the public key as DER", hs256(`{"alg":"HS256","kid":"a"}`, goodClaims, public), false},
		{"JWT-06/EdDSA", es256.token(t, `{"alg":"EdDSA","kid":"a"}`, goodClaims), false},
		{"JWT-06/ES256K", es256.token(t, `{"alg":"ES256K","kid":"a"}`, goodClaims), false},
		{"JWT-06/es256", es256.token(t, `{"alg":"es256","kid":"a"}`, goodClaims), false},
		{"JWT-06/a list", es256.token(t, `{"alg":["ES256"],"kid":"a"}`, goodClaims), false},
		{"JWT-06/no alg", es256.token(t, `{"kid":"a"}`, goodClaims), false},
		{"JWT-07/ES256 with a P-384 key", es256.token(t, `{"alg":"ES256","kid":"b"}`, goodClaims), false},
		{"JWT-07/ES256 with an RSA key", es256.token(t, `{"alg":"ES256","kid":"r"}`, goodClaims), false},
		{"JWT-07/RS256 with a P-256 key", rs256.token(t, `{"alg":"RS256","kid":"a"}`, goodClaims), false},
		{"JWT-07/RS256 with a key for PS256", rs256.token(t, `{"alg":"RS256","kid":"p"}`, goodClaims), false},
		{"JWT-07/PS256 with a key for PS256", ps256.token(t, `{"alg":"PS256","kid":"p"}`, goodClaims), true},
		{"JWT-09/no kid", es256.token(t, `{"alg":"ES256"}`, goodClaims), false},
		{"JWT-09/empty kid", es256.token(t, `{"alg":"ES256","kid":""}`, goodClaims), false},
		{"JWT-09/a kid that nobody has", es256.token(t, `{"alg":"ES256","kid":"z"}`, goodClaims), false},
		{"JWT-09/a kid that is a number", es256.token(t, `{"alg":"ES256","kid":1}`, goodClaims), false},
		{"JWT-10/typ JOSE", es256.token(t, `{"alg":"ES256","kid":"a","typ":"JOSE"}`, goodClaims), true},
		{"JWT-10/no typ", es256.token(t, `{"alg":"ES256","kid":"a"}`, goodClaims), true},
		{"JWT-10/typ jwt", es256.token(t, `{"alg":"ES256","kid":"a","typ":"jwt"}`, goodClaims), false},
		{"JWT-10/typ at+jwt", es256.token(t, `{"alg":"ES256","kid":"a","typ":"at+jwt"}`, goodClaims), false},
		{"JWT-10/typ wit+jwt", es256.token(t, `{"alg":"ES256","kid":"a","typ":"wit+jwt"}`, goodClaims), false},
		{"JWT-10/empty typ", es256.token(t, `{"alg":"ES256","kid":"a","typ":""}`, goodClaims), false},
		{"JWT-10/typ null", es256.token(t, `{"alg":"ES256","kid":"a","typ":null}`, goodClaims), false},
		{"JWT-10/typ a number", es256.token(t, `{"alg":"ES256","kid":"a","typ":1}`, goodClaims), false},
		{"JWT-11/no sub", es256.token(t, goodHeader, claims("sub", "")), false},
		{"JWT-11/empty sub", es256.token(t, goodHeader, claims("sub", `""`)), false},
		{"JWT-11/sub is no SPIFFE ID", es256.token(t, goodHeader, claims("sub", `"alice"`)), false},
		{"JWT-11/trailing slash", es256.token(t, goodHeader, claims("sub", `"spiffe://example.org/"`)), false},
		{"JWT-11/upper case", es256.token(t, goodHeader, claims("sub", `"spiffe://Example.org/web"`)), false},
		{"JWT-11/a list", es256.token(t, goodHeader, claims("sub", `["spiffe://example.org/web"]`)), false},
		{"JWT-12/another trust domain's ID under our key", es256.token(t, goodHeader, claims("sub", `"spiffe://other.org/web"`)), false},
		{"JWT-12/our ID under another trust domain's key of that id", other.token(t, goodHeader, goodClaims), false},
		{"JWT-12/another trust domain's ID under its own key", other.token(t, goodHeader, claims("sub", `"spiffe://other.org/web"`)), true},
		{"JWT-12/a trust domain that nobody knows", es256.token(t, goodHeader, claims("sub", `"spiffe://third.org/web"`)), false},
		{"JWT-14/no aud", es256.token(t, goodHeader, claims("aud", "")), false},
		{"JWT-14/empty aud", es256.token(t, goodHeader, claims("aud", `[]`)), false},
		{"JWT-14/aud null", es256.token(t, goodHeader, claims("aud", `null`)), false},
		{"JWT-14/another aud", es256.token(t, goodHeader, claims("aud", `["web"]`)), false},
		{"JWT-14/a prefix", es256.token(t, goodHeader, claims("aud", `["d"]`)), false},
		{"JWT-14/another case", es256.token(t, goodHeader, claims("aud", `["DB"]`)), false},
		{"JWT-14/a number among them", es256.token(t, goodHeader, claims("aud", `["db",1]`)), false},
		{"JWT-14/one of many", es256.token(t, goodHeader, claims("aud", `["web","db"]`)), true},
		{"JWT-16/aud as a text", es256.token(t, goodHeader, claims("aud", `"db"`)), true},
		{"JWT-17/no exp", es256.token(t, goodHeader, claims("exp", "")), false},
		{"JWT-17/exp a text", es256.token(t, goodHeader, claims("exp", `"`+unix(noon.Add(time.Minute))+`"`)), false},
		{"JWT-17/exp null", es256.token(t, goodHeader, claims("exp", "null")), false},
		{"JWT-18/expired 10 s ago", es256.token(t, goodHeader, claims("exp", unix(noon.Add(-10*time.Second)))), true},
		{"JWT-18/expired 11 s ago", es256.token(t, goodHeader, claims("exp", unix(noon.Add(-11*time.Second)))), false},
		{"JWT-18/exp 0", es256.token(t, goodHeader, claims("exp", "0")), false},
		{"JWT-18/exp negative", es256.token(t, goodHeader, claims("exp", "-1")), false},
		{"JWT-19/exp 1e10", es256.token(t, goodHeader, claims("exp", "1e10")), true},
		{"JWT-19/exp with a fraction", es256.token(t, goodHeader, claims("exp", unix(noon.Add(time.Minute))+".5")), true},
		{"JWT-19/exp in the year 33658", es256.token(t, goodHeader, claims("exp", "1e12")), false},
		{"JWT-19/exp behind all dates", es256.token(t, goodHeader, claims("exp", "1e300")), false},
		{"JWT-20/nbf in 10 s", es256.token(t, goodHeader, claims("nbf", unix(noon.Add(10*time.Second)))), true},
		{"JWT-20/nbf in 11 s", es256.token(t, goodHeader, claims("nbf", unix(noon.Add(11*time.Second)))), false},
		{"JWT-20/nbf a text", es256.token(t, goodHeader, claims("nbf", `"0"`)), false},
		{"JWT-20/iat in 60 s", es256.token(t, goodHeader, claims("iat", unix(noon.Add(time.Minute)))), true},
		{"JWT-20/iat in 61 s", es256.token(t, goodHeader, claims("iat", unix(noon.Add(61*time.Second)))), false},
		{"JWT-20/iat before all dates", es256.token(t, goodHeader, claims("iat", "-1")), false},
		{"JWT-20/no iat", es256.token(t, goodHeader, claims("iat", "")), true},
		{"JWT-21/iss", es256.token(t, goodHeader, claims("iss", `"https://oidc.example.org"`)), true},
		{"JWT-21/iss a number", es256.token(t, goodHeader, claims("iss", `1`)), false},
		{"JWT-22/jti", es256.token(t, goodHeader, claims("jti", `"1"`)), true},
		{"JWT-29/a trust domain without keys", es256.token(t, goodHeader, claims("sub", `"spiffe://keyless.org/web"`)), false},
		{"JWT-31/crit", es256.token(t, `{"alg":"ES256","kid":"a","crit":["foo"],"foo":1}`, goodClaims), false},
		{"JWT-31/empty crit", es256.token(t, `{"alg":"ES256","kid":"a","crit":[]}`, goodClaims), false},
		{"JWT-31/crit b64", es256.token(t, `{"alg":"ES256","kid":"a","crit":["b64"],"b64":true}`, goodClaims), false},
		{"JWT-31/b64 without crit", es256.token(t, `{"alg":"ES256","kid":"a","b64":false}`, goodClaims), false},
		{"JWT-31/alg twice", es256.token(t, `{"alg":"none","alg":"ES256","kid":"a"}`, goodClaims), false},
		{"JWT-31/kid twice, once escaped", es256.token(t, `{"alg":"ES256","kid":"a","\u006bid":"a"}`, goodClaims), false},
		{"JWT-31/sub twice", es256.token(t, goodHeader, goodClaims[:len(goodClaims)-1]+`,"sub":"spiffe://example.org/admin"}`), false},
		{"JWT-31/a name twice, deep within", es256.token(t, goodHeader, claims("x", `{"y":[{"z":1,"z":2}]}`)), false},
		{"JWT-31/names that differ in case", es256.token(t, goodHeader, claims("SUB", `"spiffe://example.org/admin"`)), true},
		{"JWT-32/padding", good + "==", false},
		{"JWT-32/trailing space", good + " ", false},
		{"JWT-32/trailing line break", good + "\n", false},
		{"JWT-32/line break within", parts[0] + "." + parts[1][:8] + "\r\n" + parts[1][8:] + "." + parts[2], false},
		{"JWT-32/another alphabet", parts[0] + "." + parts[1] + "." + strings.Repeat("+/", 43), false},
		{"JWT-32/bits behind the signature's end", good[:len(good)-1] + string(good[len(good)-1]+1), false},
		{"JWT-32/fourth part, empty", good + ".", false},
		{"JWT-32/no signature", parts[0] + "." + parts[1] + ".", false},
		{"JWT-32/no header", "." + parts[1] + "." + parts[2], false},
		{"JWT-32/trailing data", es256.token(t, goodHeader, goodClaims+"x"), false},
		{"JWT-32/payload is a list", es256.token(t, goodHeader, "["+goodClaims+"]"), false},
		{"JWT-32/payload is null", es256.token(t, goodHeader, "null"), false},
		{"JWT-32/payload is not UTF-8", es256.token(t, goodHeader, claims("x", `"y"`)[:8]+"\xff"+goodClaims), false},
		{"JWT-34/no path", es256.token(t, goodHeader, claims("sub", `"spiffe://example.org"`)), false},
		{"size/16 KiB and one", es256.token(t, goodHeader, claims("x", `"`+strings.Repeat("y", 12<<10)+`"`)), false},
		{"size/a little less", es256.token(t, goodHeader, claims("x", `"`+strings.Repeat("y", 11<<10)+`"`)), true},
		{"size/empty", "", false},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			j, err := svid.VerifyJWT(row.token, bundles(), []string{"cache", "db"}, noon)
			if (err == nil) != row.valid {
				t.Fatalf("VerifyJWT gives %v, %v; want valid %v", j, err, row.valid)
			}
			if err != nil && (j != nil || strings.Contains(err.Error(), parts[1])) {
				t.Errorf("a refused token gave %v, %v", j, err)
			}
		})
	}
}

func hs256(header, payload string, key []byte) string {
	input := b64(header) + "." + b64(payload)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(input))
	return input + "." + b64(string(mac.Sum(nil)))
}

// An empty list of audiences expects nobody.
func TestJWT_14_VerifyJWTNeedsAnAudience(t *testing.T) {
	token := signer{keys().p256, jose.ES256}.token(t, goodHeader, claims("aud", `["db",""]`))
	for _, audience := range [][]string{nil, {}, {""}, {"db", ""}} {
		if j, err := svid.VerifyJWT(token, bundles(), audience, noon); err == nil {
			t.Errorf("%q: taken as %v", audience, j)
		}
	}
}

// A bundle under another trust domain's name would let its keys speak for it.
func TestVerifyJWTTakesABundleOnlyForItsTrustDomain(t *testing.T) {
	token := signer{keys().other, jose.ES256}.token(t, goodHeader, goodClaims)
	mixed := map[spiffeid.TrustDomain]svid.JWTBundle{exampleOrg: bundles()[otherOrg]}
	if j, err := svid.VerifyJWT(token, mixed, []string{"db"}, noon); err == nil {
		t.Errorf("taken as %v", j)
	}
}

func TestJWT_30_JWT_34_ParseJWTReadsTheClaims(t *testing.T) {
	token := signer{keys().p256, jose.ES256}.token(t, goodHeader, claims("iss", `"https://oidc.example.org"`))
	j, err := svid.VerifyJWT(token, bundles(), []string{"db"}, noon)
	if err != nil {
		t.Fatal(err)
	}
	if j.ID.String() != web || !slices.Equal(j.Audience, []string{"db"}) || !j.Expires.Equal(noon.Add(time.Minute)) || !j.IssuedAt.Equal(noon) ||
		!j.NotBefore.IsZero() || j.Issuer != "https://oidc.example.org" || j.KeyID != "a" || j.Algorithm != "ES256" || j.Token() != token ||
		j.Claims["exp"] != float64(noon.Add(time.Minute).Unix()) {
		t.Errorf("read as %+v", *j)
	}
	// A token in a log is a token in the wrong hands.
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "err", j)
	if text := log.String() + fmt.Sprintf("%v %+v %s", j, j, j); strings.Contains(text, "eyJ") {
		t.Errorf("printed as %s", text)
	}
	// Without a path it can be read; it stands for no workload.
	if j, err := svid.ParseJWT(signer{keys().p256, jose.ES256}.token(t, goodHeader, claims("sub", `"spiffe://example.org"`))); err != nil || j.ID.Path() != "" {
		t.Errorf("without a path it is %v, %v", j, err)
	}
}

// FuzzVerifyJWT signs whatever header and payload it is given. What we take, go-spiffe takes too, and reads alike.
func FuzzVerifyJWT(f *testing.F) {
	now := time.Now()
	fresh := strings.NewReplacer(unix(noon.Add(time.Minute)), unix(now.Add(time.Hour)), unix(noon), unix(now)).Replace(goodClaims)
	f.Add(goodHeader, fresh)
	f.Add(`{"alg":"ES256","kid":"a","typ":"JOSE","x5c":[],"jwk":{}}`, strings.Replace(fresh, `["db"]`, `"db"`, 1))
	f.Add(`{"alg":"ES256","kid":"a","b64":false}`, strings.Replace(fresh, `"iat"`, `"nbf"`, 1))
	f.Add(goodHeader, strings.Replace(fresh, `"iat"`, `"sub":"spiffe://example.org/x","iat"`, 1))
	ours := bundles()
	theirs := jwtbundle.NewSet(jwtbundle.FromJWTAuthorities(exampleOrg, map[string]crypto.PublicKey{"a": keys().p256.Public()}))
	f.Fuzz(func(t *testing.T, header, payload string) {
		token := signer{keys().p256, jose.ES256}.token(t, header, payload)
		j, err := svid.VerifyJWT(token, ours, []string{"db"}, time.Now())
		if err != nil {
			return
		}
		oracle, err := jwtsvid.ParseAndValidate(token, theirs, []string{"db"})
		if err != nil {
			t.Fatalf("taken as %v; go-spiffe says %v\n%s\n%s", j, err, header, payload)
		}
		if oracle.ID != j.ID || !slices.Equal(oracle.Audience, j.Audience) || !oracle.Expiry.Equal(j.Expires) {
			t.Fatalf("read as %v, %v, %v; by go-spiffe as %v", j.ID, j.Audience, j.Expires, oracle)
		}
	})
}

// FuzzParseJWT: bytes that nobody signed never verify, and never end the process.
func FuzzParseJWT(f *testing.F) {
	f.Add(signer{keys().other, jose.ES256}.token(f, goodHeader, goodClaims))
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := svid.ParseJWT(token); err != nil {
			return
		}
		if j, err := svid.VerifyJWT(token, bundles(), []string{"db"}, noon); err == nil {
			t.Fatalf("taken as %v", j)
		}
	})
}
