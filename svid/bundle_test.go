package svid_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/svid"
)

// rootText is a CA certificate as an entry of a bundle, with other text in place of its x5c where that is given.
func rootText(c *x509.Certificate, x5c ...string) string {
	chain := `["` + base64.StdEncoding.EncodeToString(c.Raw) + `"]`
	if len(x5c) > 0 {
		chain = x5c[0]
	}
	return jwkText(c.PublicKey.(*ecdsa.PublicKey), `,"use":"x509-svid","x5c":`+chain)
}

func TestParseBundle(t *testing.T) {
	root := sign(t, authorityTemplate("root", "spiffe://example.org"), nil)
	var plain *x509.Certificate
	var plainText string // base64 that is no base64url, and padded
	for !strings.ContainsAny(plainText, "+/") || !strings.HasSuffix(plainText, "=") {
		plain = sign(t, authorityTemplate("plain"), nil).cert
		plainText = base64.StdEncoding.EncodeToString(plain.Raw)
	}
	issuing := sign(t, authorityTemplate("issuing"), &root).cert
	stranger := sign(t, authorityTemplate("stranger", "spiffe://other.org"), nil).cert
	leaf := sign(t, leafTemplate(web), &root).cert
	jwt := jwkText(&keys().p256.PublicKey, `,"use":"jwt-svid","kid":"a"`)
	good, encoded := rootText(root.cert), base64.StdEncoding.EncodeToString(root.cert.Raw)
	of := func(entries ...string) string { return `{"keys":[` + strings.Join(entries, ",") + `]}` }
	with := func(member string) string { return `{"keys":[` + good + `],` + member + `}` }
	entry := func(from, to string) string { return strings.Replace(rootText(plain), from, to, 1) }
	for _, row := range []struct {
		name, text string
		roots, jwt int // roots -1: an error
	}{
		{"TDB-04, X509-37, JWT-26/both kinds", of(good, jwt), 1, 1},
		{"TDB-05/the least there is", `{"keys":[]}`, 0, 0},
		{"TDB-05/members of the set that nobody knows", with(`"foo":{"keys":7},"spiffe_bar":[]`), 1, 0},
		{"TDB-08/2^63", with(`"spiffe_sequence":9223372036854775808`), 1, 0},
		{"TDB-08/2^64", with(`"spiffe_sequence":18446744073709551616`), -1, 0},
		{"TDB-08/-1", with(`"spiffe_sequence":-1`), -1, 0},
		{"TDB-08/a fraction", with(`"spiffe_sequence":1.5`), -1, 0},
		{"TDB-08/text", with(`"spiffe_sequence":"1"`), -1, 0},
		{"TDB-08/null", with(`"spiffe_sequence":null`), -1, 0},
		{"TDB-11/no keys", `{"spiffe_sequence":1}`, -1, 0},
		{"TDB-11/keys null", `{"keys":null}`, -1, 0},
		{"TDB-11/keys an object", `{"keys":{}}`, -1, 0},
		{"TDB-11/a list alone", `[]`, -1, 0},
		{"TDB-11/no JSON", `keys`, -1, 0},
		{"TDB-11/two documents", of(good) + of(good), -1, 0},
		{"TDB-12/unknown kind", of(good, entry(`"kty":"EC"`, `"kty":"XYZ"`)), 1, 0},
		{"TDB-12/unknown curve", of(good, entry(`"P-256"`, `"P-999"`)), 1, 0},
		{"TDB-12, TDB-15/no kind", of(good, entry(`"kty":"EC",`, ``)), 1, 0},
		{"TDB-12/not an object", of(good, `7`, `null`, `"x"`, `[]`), 1, 0},
		{"TDB-13/nothing that can be used", of(`{"kty":"XYZ","use":"x509-svid"}`), 0, 0},
		{"TDB-16/use of another case", of(good, entry("x509-svid", "X509-SVID")), 1, 0},
		{"TDB-16/use sig", of(good, entry("x509-svid", "sig")), 1, 0},
		{"TDB-16/use a number", of(good, entry(`"x509-svid"`, `7`)), 1, 0},
		{"TDB-16/no use", of(good, entry(`"use":"x509-svid",`, ``)), 1, 0},
		{"TDB-16/the use of another document", of(good, entry("x509-svid", "wit-svid")), 1, 0},
		{"TDB-22/keys twice", `{"keys":[` + good + `],"keys":[]}`, -1, 0},
		{"TDB-22/keys twice, once escaped", `{"keys":[` + good + `],"\u006beys":[]}`, -1, 0},
		{"TDB-22/x5c twice", of(entry(`"x5c":`, `"x5c":[],"x5c":`)), -1, 0},
		{"TDB-22/sequence twice", with(`"spiffe_sequence":1,"spiffe_sequence":2`), -1, 0},
		{"X509-11/a certificate that is no CA's", of(good, rootText(leaf)), -1, 0},
		{"X509-14/a plain CA", of(rootText(plain)), 1, 0},
		{"X509-15/a CA whose ID has a path", of(rootText(sign(t, authorityTemplate("ca", "spiffe://example.org/ca"), nil).cert)), -1, 0},
		{"X509-16/one root of this domain, one of another", of(good, rootText(stranger)), 2, 0},
		{"TDB-03/every root of another domain", of(rootText(stranger)), -1, 0},
		{"TDB-03/of another domain but for one that says nothing", of(rootText(plain), rootText(stranger)), -1, 0},
		{"X509-37/a JWT key", of(jwt), 0, 1},
		{"X509-38/a kid", of(entry(`"use"`, `"kid":"a","use"`)), 1, 0},
		{"X509-38/a kid that a JWT key has too", of(entry(`"use"`, `"kid":"a","use"`), jwt), 1, 1},
		{"X509-39/base64url", of(good, rootText(plain, `["`+strings.NewReplacer("+", "-", "/", "_").Replace(plainText)+`"]`)), 1, 0},
		{"X509-39/no padding", of(good, rootText(plain, `["`+strings.TrimRight(plainText, "=")+`"]`)), 1, 0},
		{"X509-39/a line break", of(good, rootText(plain, `["`+plainText[:64]+`\n`+plainText[64:]+`"]`)), 1, 0},
		{"X509-39/as it should be", of(good, rootText(plain, `["`+plainText+`"]`)), 2, 0},
		{"X509-39/PEM", of(good, rootText(plain, `["-----BEGIN CERTIFICATE-----"]`)), 1, 0},
		{"X509-39/a byte behind the certificate", of(good, rootText(plain, `["`+base64.StdEncoding.EncodeToString(append(plain.Raw[:len(plain.Raw):len(plain.Raw)], 0))+`"]`)), 1, 0},
		{"X509-40/not self-signed", of(rootText(issuing)), 1, 0},
		{"X509-41/another key", of(good, rootText(plain, `["`+encoded+`"]`)), 1, 0},
		{"X509-41/no coordinates", of(good, `{"kty":"EC","crv":"P-256","use":"x509-svid","x5c":["`+encoded+`"]}`), 1, 0},
		{"X509-41/a private key", of(good, entry(`"use"`, `"d":"`+strings.Repeat("A", 43)+`","use"`)), 1, 0},
		{"X509-42/no x5c", of(good, jwkText(plain.PublicKey.(*ecdsa.PublicKey), `,"use":"x509-svid"`)), 1, 0},
		{"X509-42/x5c empty", of(good, rootText(plain, `[]`)), 1, 0},
		{"X509-42/x5c null", of(good, rootText(plain, `null`)), 1, 0},
		{"X509-42/x5c a text", of(good, rootText(plain, `"`+encoded+`"`)), 1, 0},
		{"X509-43/two certificates", of(rootText(root.cert, `["`+encoded+`","`+base64.StdEncoding.EncodeToString(plain.Raw)+`"]`)), 1, 0},
		{"X509-43/what follows the first is none", of(rootText(root.cert, `["`+encoded+`",7,"?"]`)), 1, 0},
		{"X509-44/the union of all", of(good, rootText(plain), rootText(issuing)), 3, 0},
		{"X509-44/one twice", of(good, good), 1, 0},
		{"JWT-27/two JWT keys of one kid", of(good, jwt, jwkText(&keys().other.PublicKey, `,"use":"jwt-svid","kid":"a"`)), -1, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			b, err := svid.ParseBundle(exampleOrg, []byte(row.text))
			switch {
			case row.roots < 0 && (err == nil || !isNothing(b)):
				t.Errorf("read as %d roots, %v; want an error and nothing", len(b.Roots), err)
			case row.roots >= 0 && (err != nil || len(b.Roots) != row.roots || len(b.JWTKeys) != row.jwt || b.TrustDomain != exampleOrg):
				t.Fatalf("read as %d roots and %d keys, %v; want %d and %d", len(b.Roots), len(b.JWTKeys), err, row.roots, row.jwt)
			}
			if strings.HasPrefix(row.name, "X509-43") && !b.Roots[0].Equal(root.cert) {
				t.Error("it is not the first of x5c")
			}
		})
	}
	t.Run("TDB-03/no trust domain", func(t *testing.T) {
		if _, err := svid.ParseBundle(spiffeid.TrustDomain{}, []byte(of(good))); err == nil {
			t.Error("a bundle of no trust domain is taken")
		}
	})
}

// What a bundle does not have verifies nothing, whatever an older one had.
func TestTDB_13_X509_44_EmptyBundleVerifiesNothing(t *testing.T) {
	root := sign(t, authorityTemplate("root", "spiffe://example.org"), nil)
	leaf := sign(t, leafTemplate(web), &root).cert
	jwt := jwkText(&keys().p256.PublicKey, `,"use":"jwt-svid","kid":"a"`)
	for text, valid := range map[string]bool{`{"keys":[` + rootText(root.cert) + `]}`: true, `{"keys":[` + jwt + `]}`: false, `{"keys":[]}`: false} {
		b, err := svid.ParseBundle(exampleOrg, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if id, err := svid.Verify(leaf, nil, b.Anchors(), noon); (err == nil) != valid {
			t.Errorf("by %.40s: %q, %v", text, id, err)
		}
	}
}

func TestRefreshHint(t *testing.T) {
	for hint, want := range map[string]time.Duration{
		``: 5 * time.Minute, `0`: 5 * time.Minute, `-5`: 5 * time.Minute, `"60"`: 5 * time.Minute, `1.5`: 5 * time.Minute, `null`: 5 * time.Minute,
		`1`: time.Minute, `300`: 5 * time.Minute, `3600`: time.Hour, `1000000000000`: 24 * time.Hour, `18446744073709551616`: 5 * time.Minute,
	} {
		t.Run("TDB-10/"+hint, func(t *testing.T) {
			text := `{"keys":[]}`
			if hint != "" {
				text = `{"keys":[],"spiffe_refresh_hint":` + hint + `}`
			}
			b, err := svid.ParseBundle(exampleOrg, []byte(text))
			if got := b.RefreshAfter(); err != nil || got != want {
				t.Errorf("%s, %v; want %s", got, err, want)
			}
		})
	}
}

func isNothing(b svid.Bundle) bool {
	return b.TrustDomain.IsZero() && len(b.Roots)+len(b.JWTKeys) == 0 && b.Sequence == 0 && b.RefreshHint == 0
}

func whole(t testing.TB) svid.Bundle {
	return svid.Bundle{TrustDomain: exampleOrg, Sequence: 1 << 63, RefreshHint: 5 * time.Minute,
		Roots:   []*x509.Certificate{sign(t, authorityTemplate("one", "spiffe://example.org"), nil).cert, sign(t, authorityTemplate("two"), nil).cert},
		JWTKeys: []svid.JWTKey{{ID: "b", Public: &keys().p256.PublicKey}, {ID: "a", Public: &keys().other.PublicKey}}}
}

// What we publish, member by member.
func TestDocument(t *testing.T) {
	b := whole(t)
	text, err := b.Document()
	if err != nil {
		t.Fatal(err)
	}
	var set map[string]json.RawMessage
	var entries []map[string]any
	if err := errors.Join(json.Unmarshal(text, &set), json.Unmarshal(set["keys"], &entries)); err != nil || len(entries) != 4 {
		t.Fatalf("%v: %s", err, text)
	}
	members := func(want string, entries ...map[string]any) bool {
		for _, e := range entries {
			var names []string
			for _, name := range strings.Fields("alg crv kid kty use x x5c x5t y key_ops") {
				if e[name] != nil {
					names = append(names, name)
				}
			}
			if strings.Join(names, " ") != want || len(e) != len(names) {
				return false
			}
		}
		return true
	}
	x5c := func(e map[string]any) []byte {
		chain, _ := e["x5c"].([]any)
		if len(chain) != 1 {
			return nil
		}
		der, _ := base64.StdEncoding.DecodeString(chain[0].(string))
		return der
	}
	roots, jwt := entries[:2], entries[2:]
	for name, holds := range map[string]bool{
		"TDB-04, TDB-11/a set with keys":                     len(set) == 3,
		"TDB-06, TDB-08/spiffe_sequence, not rounded":        string(set["spiffe_sequence"]) == "9223372036854775808",
		"TDB-09/spiffe_refresh_hint in seconds":              string(set["spiffe_refresh_hint"]) == "300",
		"TDB-14, TDB-15, X509-38, X509-41/members of a root": members("crv kty use x x5c y", roots...),
		"TDB-14, TDB-15, JWT-27/members of a JWT key":        members("crv kid kty use x y", jwt...),
		"TDB-16, X509-37/use of a root":                      roots[0]["use"] == "x509-svid" && roots[1]["use"] == "x509-svid",
		"TDB-16, JWT-26/use of a JWT key":                    jwt[0]["use"] == "jwt-svid" && jwt[1]["use"] == "jwt-svid",
		"X509-39/one certificate, base64 of DER":             bytes.Equal(x5c(roots[0]), b.Roots[0].Raw) && bytes.Equal(x5c(roots[1]), b.Roots[1].Raw),
		"X509-40/self-signed":                                bytes.Equal(b.Roots[0].RawIssuer, b.Roots[0].RawSubject),
		"JWT-27/kids in order":                               jwt[0]["kid"] == "a" && jwt[1]["kid"] == "b",
	} {
		t.Run(name, func(t *testing.T) {
			if !holds {
				t.Errorf("%s", text)
			}
		})
	}
	t.Run("TDB-11/no keys", func(t *testing.T) {
		if empty, err := (svid.Bundle{TrustDomain: exampleOrg}).Document(); err != nil || string(empty) != `{"keys":[]}` {
			t.Errorf("%s, %v", empty, err)
		}
	})
	t.Run("read back, by us and by go-spiffe", func(t *testing.T) {
		again, err := svid.ParseBundle(exampleOrg, text)
		if err != nil || again.Sequence != b.Sequence || again.RefreshHint != b.RefreshHint || len(again.Roots) != 2 || len(again.JWTKeys) != 2 {
			t.Errorf("%+v, %v", again, err)
		}
		theirs, err := spiffebundle.Parse(exampleOrg, text)
		if err != nil || len(theirs.X509Authorities()) != 2 || len(theirs.JWTAuthorities()) != 2 {
			t.Fatalf("go-spiffe: %v", err)
		}
		if sequence, there := theirs.SequenceNumber(); !there || sequence != b.Sequence {
			t.Errorf("go-spiffe reads the sequence %d", sequence)
		}
	})
	t.Run("a key without a form", func(t *testing.T) {
		bad := b
		bad.JWTKeys = []svid.JWTKey{{ID: "a", Public: "no key"}}
		if text, err := bad.Document(); err == nil {
			t.Errorf("printed as %s", text)
		}
	})
}

// Appendix A of the document has a certificate whose SPIFFE ID ends in a slash. Ours are made so that they read.
func TestTDB_23_SlashOfTheSample(t *testing.T) {
	sample := sign(t, authorityTemplate("sample", "spiffe://example.com/"), nil).cert
	td := spiffeid.RequireTrustDomainFromString("example.com")
	if b, err := svid.ParseBundle(td, []byte(`{"keys":[`+rootText(sample)+`]}`)); err == nil {
		t.Errorf("taken: %d roots", len(b.Roots))
	}
}

// endless is a document that never ends. It says how much of it was read.
type endless struct {
	part string
	read int
}

func (e *endless) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		n += copy(p[n:], e.part)
	}
	e.read += n
	return n, nil
}

// What a stranger's server can send instead of a bundle costs a bounded part of memory and time.
func TestHostileBundles(t *testing.T) {
	const most = 4 << 20
	deep := func(open, closing string, n int) string { return strings.Repeat(open, n) + strings.Repeat(closing, n) }
	root := rootText(sign(t, authorityTemplate("root", "spiffe://example.org"), nil).cert)
	for name, text := range map[string]string{
		"over 4 MiB":              `{"keys":[` + root + `],"x":"` + strings.Repeat("x", most) + `"}`,
		"lists in lists":          deep("[", "]", most/2-1),
		"lists in keys":           `{"keys":[` + deep("[", "]", most/2-100) + `]}`,
		"objects in a member":     `{"keys":[],"x":` + strings.Repeat(`{"x":`, most/8) + `1` + strings.Repeat("}", most/8) + `}`,
		"1001 roots":              `{"keys":[` + strings.Repeat(root+",", 1000) + root + `]}`,
		"a million empty entries": `{"keys":[` + strings.Repeat(`{},`, 1<<20) + `{}]}`,
		"a million empty lists":   `{"x":[` + strings.Repeat(`[],`, 1<<20) + `[]],"keys":[]}`,
	} {
		t.Run(name, func(t *testing.T) {
			begun := time.Now()
			if b, err := svid.ReadBundle(exampleOrg, strings.NewReader(text)); err == nil || len(err.Error()) > 1000 {
				t.Errorf("%d roots, %.100v", len(b.Roots), err)
			}
			if took := time.Since(begun); took > 5*time.Second { // measured: a tenth of a second
				t.Errorf("it took %s", took)
			}
		})
	}
	for _, part := range []string{" ", `{"keys":[`, root + ",", "\x00"} {
		e := &endless{part: part}
		if _, err := svid.ReadBundle(exampleOrg, e); err == nil || e.read > most+most/2 {
			t.Errorf("without end %.20q: %v after %d bytes", part, err, e.read)
		}
	}
	broken := errors.New("cut")
	if _, err := svid.ReadBundle(exampleOrg, io.MultiReader(strings.NewReader(`{"keys":[`), &failing{broken})); !errors.Is(err, broken) {
		t.Errorf("a reader that fails: %v", err)
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

// FuzzParseBundle: what is read prints and reads back the same, and every root may sign.
func FuzzParseBundle(f *testing.F) {
	text, err := whole(f).Document()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(fmt.Sprintf(`{"keys":[%s],"spiffe_sequence":1,"spiffe_refresh_hint":1}`, rootText(sign(f, authorityTemplate("root"), nil).cert))))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQ","e":"AQ","use":"x509-svid","x5c":[""]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := svid.ParseBundle(exampleOrg, text)
		if err != nil {
			if !isNothing(b) {
				t.Fatalf("refused, and yet %+v", b)
			}
			return
		}
		for _, root := range b.Roots {
			if err := svid.CheckAuthority(root); err != nil {
				t.Fatal(err)
			}
		}
		printed, err := b.Document()
		if err != nil {
			t.Fatal(err)
		}
		again, err := svid.ParseBundle(exampleOrg, printed)
		if err != nil || len(again.Roots) != len(b.Roots) || len(again.JWTKeys) != len(b.JWTKeys) || again.Sequence != b.Sequence || again.RefreshHint != b.RefreshHint {
			t.Fatalf("%s is read back as %+v, %v", printed, again, err)
		}
	})
}
