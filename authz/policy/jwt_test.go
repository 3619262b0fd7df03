package policy_test

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
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/authz"
)

// jwtPolicy is how a policy takes tokens: keys, algorithm, issuer and audience are the policy's, never the token's.
const jwtPolicy = `package envoy.authz

token := substring(input.attributes.request.http.headers.authorization, 7, -1)

allow if {
	[valid, _, payload] := io.jwt.decode_verify(token, {"cert": data.keys, "alg": data.alg, "iss": "https://issuer", "aud": "orders"})
	valid
	payload.role == "admin"
}
`

// TestForgedTokensAreDenied: what a token says of its own key or algorithm counts for nothing.
func TestForgedTokensAreDenied(t *testing.T) {
	trusted, stranger := rsaKey(t), rsaKey(t)
	pair, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	claims := map[string]any{"iss": "https://issuer", "aud": "orders", "role": "admin", "exp": time.Now().Add(time.Hour).Unix()}
	with := func(key string, value any) map[string]any {
		out := map[string]any{}
		for k, v := range claims {
			out[k] = v
		}
		out[key] = value
		return out
	}
	rs := signRS(t, trusted)
	own := signRS(t, stranger)
	certificate := base64.StdEncoding.EncodeToString(selfSigned(t, stranger))
	public := publicPEM(t, &trusted.PublicKey)
	honest := token(t, map[string]any{"alg": "RS256"}, claims, rs)
	rows := []struct {
		name, alg, token string
		want             authz.Outcome
	}{
		{"an honest token", "RS256", honest, authz.Allowed},
		{"alg none", "RS256", token(t, map[string]any{"alg": "none"}, claims, unsigned), authz.Denied},
		{"alg None", "RS256", token(t, map[string]any{"alg": "None"}, claims, unsigned), authz.Denied},
		{"alg NONE with a signature", "RS256", token(t, map[string]any{"alg": "NONE"}, claims, rs), authz.Denied},
		{"no alg", "RS256", token(t, map[string]any{"typ": "JWT"}, claims, rs), authz.Denied},
		{"an empty alg", "RS256", token(t, map[string]any{"alg": ""}, claims, unsigned), authz.Denied},
		{"HS256 with the public key as its secret, as PEM", "RS256", token(t, map[string]any{"alg": "HS256"}, claims, signHS(public)), authz.Denied},
		{"HS256 with the public key as its secret, where the policy names no algorithm", "", token(t, map[string]any{"alg": "HS256"}, claims, signHS(public)), authz.Denied},
		{"HS256 with the public key as its secret, as DER", "", token(t, map[string]any{"alg": "HS256"}, claims, signHS(string(derOf(t, &trusted.PublicKey)))), authz.Denied},
		{"HS256 with an empty secret", "", token(t, map[string]any{"alg": "HS256"}, claims, signHS("")), authz.Denied},
		{"a wrong key type: ES256", "", token(t, map[string]any{"alg": "ES256"}, claims, signES(t, pair)), authz.Denied},
		{"a wrong key type under the right name", "RS256", token(t, map[string]any{"alg": "RS256"}, claims, signES(t, pair)), authz.Denied},
		{"another RSA key", "RS256", token(t, map[string]any{"alg": "RS256"}, claims, own), authz.Denied},
		{"a key in the header: jwk", "RS256", token(t, map[string]any{"alg": "RS256", "jwk": jwk(&stranger.PublicKey)}, claims, own), authz.Denied},
		{"a key in the header: jku", "RS256", token(t, map[string]any{"alg": "RS256", "jku": "http://127.0.0.1:1/keys", "kid": "1"}, claims, own), authz.Denied},
		{"a key in the header: x5c", "RS256", token(t, map[string]any{"alg": "RS256", "x5c": []string{certificate}}, claims, own), authz.Denied},
		{"a key in the header: x5u", "RS256", token(t, map[string]any{"alg": "RS256", "x5u": "http://127.0.0.1:1/chain"}, claims, own), authz.Denied},
		{"a path for a key id", "RS256", token(t, map[string]any{"alg": "RS256", "kid": "../../dev/null"}, claims, own), authz.Denied},
		{"an extension that must be understood", "RS256", token(t, map[string]any{"alg": "RS256", "crit": []string{"b64"}, "b64": false}, claims, rs), authz.Denied},
		{"a changed claim", "RS256", swapped(honest, token(t, map[string]any{"alg": "RS256"}, with("sub", "root"), rs)), authz.Denied},
		{"no signature", "RS256", honest[:strings.LastIndex(honest, ".")+1], authz.Denied},
		{"expired", "RS256", token(t, map[string]any{"alg": "RS256"}, with("exp", time.Now().Add(-time.Minute).Unix()), rs), authz.Denied},
		{"not yet valid", "RS256", token(t, map[string]any{"alg": "RS256"}, with("nbf", time.Now().Add(time.Hour).Unix()), rs), authz.Denied},
		{"another issuer", "RS256", token(t, map[string]any{"alg": "RS256"}, with("iss", "https://other"), rs), authz.Denied},
		{"another audience", "RS256", token(t, map[string]any{"alg": "RS256"}, with("aud", []string{"payments"}), rs), authz.Denied},
		{"an expiry without end", "RS256", token(t, map[string]any{"alg": "RS256"}, with("exp", json.Number("1e999999999")), rs), authz.Denied},
		{"nested tokens", "RS256", token(t, map[string]any{"alg": "RS256", "cty": "JWT"}, claims, own), authz.Denied},
		{"five parts", "RS256", honest + ".a.b", authz.Denied},
		{"bytes that are no token", "RS256", strings.Repeat(".", 100_000), authz.Denied},
	}
	keyForms := map[string]string{"a public key": public, "a key set": keySet(t, &trusted.PublicKey),
		"a certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: selfSigned(t, trusted)}))}
	for form, keys := range keyForms {
		for _, row := range rows {
			t.Run(form+": "+row.name, func(t *testing.T) {
				text := jwtPolicy
				if row.alg == "" {
					text = strings.Replace(text, `"alg": data.alg, `, "", 1)
				}
				config, err := json.Marshal(map[string]any{"keys": keys, "alg": "RS256"})
				if err != nil {
					t.Fatal(err)
				}
				set := load(t, map[string]string{"a.rego": text, "data.json": string(config)})
				d := set.Decide(t.Context(), request(t, map[string]any{"attributes": map[string]any{"request": map[string]any{"http": map[string]any{"method": "GET", "path": "/",
					"headers": map[string]any{"authorization": "Bearer " + row.token}}}}}))
				if d.Outcome != row.want {
					t.Errorf("%s by %s: %s", d.Outcome, d.Cause, d.Reason)
				}
			})
		}
	}
}

func rsaKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func derOf(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func publicPEM(t testing.TB, key any) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: derOf(t, key)}))
}

func selfSigned(t testing.TB, key *rsa.PrivateKey) []byte {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func jwk(key *rsa.PublicKey) map[string]any {
	return map[string]any{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "1", "n": base64.RawURLEncoding.EncodeToString(key.N.Bytes()),
		"e": base64.RawURLEncoding.EncodeToString(big.NewInt(int64(key.E)).Bytes())}
}

func keySet(t testing.TB, key *rsa.PublicKey) string {
	t.Helper()
	text, err := json.Marshal(map[string]any{"keys": []any{jwk(key)}})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// token writes a token as RFC 7515 has it, whatever its header says.
func token(t testing.TB, header, claims map[string]any, sign func(text string) []byte) string {
	t.Helper()
	part := func(v map[string]any) string {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(text)
	}
	text := part(header) + "." + part(claims)
	return text + "." + base64.RawURLEncoding.EncodeToString(sign(text))
}

func unsigned(string) []byte { return nil }

func signRS(t testing.TB, key *rsa.PrivateKey) func(string) []byte {
	return func(text string) []byte {
		digest := sha256.Sum256([]byte(text))
		signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}
}

func signES(t testing.TB, key *ecdsa.PrivateKey) func(string) []byte {
	return func(text string) []byte {
		digest := sha256.Sum256([]byte(text))
		r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}
}

func signHS(secret string) func(string) []byte {
	return func(text string) []byte {
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write([]byte(text))
		return mac.Sum(nil)
	}
}

// swapped is a token with another's claims.
func swapped(to, from string) string {
	a, b := strings.Split(to, "."), strings.Split(from, ".")
	return strings.Join([]string{a[0], b[1], a[2]}, ".")
}
