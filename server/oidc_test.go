package server_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/writ-dev/writ/api/registrationv1"
	"github.com/writ-dev/writ/ca/keystore"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/server"
)

// newIssuer starts a domain whose keys OIDC clients find at a path of this host; client trusts the domain's root and speaks as old
// a TLS as the clouds still do.
func newIssuer(t *testing.T, kind keystore.Kind) (d *domain, client *http.Client) {
	t.Helper()
	l := must(net.Listen("tcp", "localhost:0"))(t)
	issuer := fmt.Sprintf("https://localhost:%d/org", l.Addr().(*net.TCPAddr).Port)
	d = newDomainAt(t, issuer, kind, func(c *server.Config) { c.OIDC = &server.OIDC{Issuer: issuer} })
	s := d.server.OIDCServer()
	done := make(chan error)
	go func() { done <- s.ServeTLS(l, "", "") }()
	roots := x509.NewCertPool()
	for _, root := range d.authority.Bundle().Roots {
		roots.AddCert(root)
	}
	client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS12}}}
	t.Cleanup(func() {
		client.CloseIdleConnections()
		s.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return d, client
}

// ask makes one request and gives the answer with its body.
func ask(t *testing.T, client *http.Client, method, url string, header ...string) (*http.Response, string) {
	t.Helper()
	r := must(http.NewRequestWithContext(t.Context(), method, url, nil))(t)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer := must(client.Do(r))(t)
	defer answer.Body.Close()
	return answer, string(must(io.ReadAll(answer.Body))(t))
}

// What relying parties read. AWS: issuer, jwks_uri and lists, at most 100 keys, each with a kid. Google: keys with kty, alg, use,
// kid and crv, x, y, and nothing else. All three: the issuer byte for byte as in `iss`.
func TestOIDCDocuments(t *testing.T) {
	t.Parallel()
	d, client := newIssuer(t, keystore.P256)
	answer, text := ask(t, client, "GET", d.issuer+"/.well-known/openid-configuration")
	want := fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q,"response_types_supported":["id_token"],"subject_types_supported":["public"],`+
		`"id_token_signing_alg_values_supported":["ES256"],"claims_supported":["iss","sub","aud","exp","iat"]}`, d.issuer, d.issuer+"/keys")
	if answer.StatusCode != http.StatusOK || text != want {
		t.Errorf("answered %s %s, want %s", answer.Status, text, want)
	}
	keys, text := ask(t, client, "GET", d.issuer+"/keys")
	var set struct{ Keys []map[string]string }
	if err := json.Unmarshal([]byte(text), &set); err != nil || len(set.Keys) != 1 {
		t.Fatalf("answered %s %s", keys.Status, text)
	}
	k := set.Keys[0]
	if names := slices.Sorted(maps.Keys(k)); !slices.Equal(names, []string{"alg", "crv", "kid", "kty", "use", "x", "y"}) ||
		k["alg"] != "ES256" || k["crv"] != "P-256" || k["kty"] != "EC" || k["use"] != "sig" || len(k["x"]) != 43 || len(k["y"]) != 43 {
		t.Errorf("the key is %v", k)
	}
	for _, a := range []*http.Response{answer, keys} {
		if a.Header.Get("Content-Type") != "application/json" || a.Header.Get("Cache-Control") != "public, max-age=300" || len(a.Header.Get("ETag")) != 34 {
			t.Errorf("the headers are %v", a.Header)
		}
	}
}

func TestOIDCAnswersOnlyWhatItServes(t *testing.T) {
	t.Parallel()
	d, client := newIssuer(t, keystore.P256)
	first, body := ask(t, client, "GET", d.issuer+"/keys")
	for _, row := range []struct {
		name, method, url string
		header            []string
		want              int
		body              string
	}{
		{"HEAD", "HEAD", d.issuer + "/keys", nil, 200, ""},
		{"what the client holds already", "GET", d.issuer + "/keys", []string{"If-None-Match", first.Header.Get("ETag")}, 304, ""},
		{"what the client held before", "GET", d.issuer + "/keys", []string{"If-None-Match", `"x"`}, 200, body},
		{"POST", "POST", d.issuer + "/keys", nil, 405, "Method Not Allowed\n"},
		{"DELETE", "DELETE", d.issuer + "/.well-known/openid-configuration", nil, 405, "Method Not Allowed\n"},
		{"another path", "GET", d.issuer + "/", nil, 404, "404 page not found\n"},
		{"the path without the issuer's", "GET", strings.TrimSuffix(d.issuer, "/org") + "/keys", nil, 404, "404 page not found\n"},
		{"a header of 40 KiB", "GET", d.issuer + "/keys", []string{"X", strings.Repeat("x", 40<<10)}, 431, "431 Request Header Fields Too Large"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if answer, body := ask(t, client, row.method, row.url, row.header...); answer.StatusCode != row.want || body != row.body {
				t.Errorf("answered %s %q", answer.Status, body)
			}
		})
	}
}

// go-oidc takes our tokens from discovery on, and refuses what it should.
func TestGoOIDC(t *testing.T) {
	t.Parallel()
	d, client := newIssuer(t, keystore.P256)
	h := d.joinFor(entry("orders"))
	ctx := oidc.ClientContext(t.Context(), client)
	provider := must(oidc.NewProvider(ctx, d.issuer))(t)
	token := h.jwt("orders", "sts.amazonaws.com").Token
	verified := must(provider.Verifier(&oidc.Config{ClientID: "sts.amazonaws.com"}).Verify(ctx, token))(t)
	if verified.Subject != ordersID || verified.Issuer != d.issuer || !slices.Equal(verified.Audience, []string{"sts.amazonaws.com"}) || verified.IssuedAt.IsZero() {
		t.Errorf("read as %+v", verified)
	}
	if _, err := provider.Verifier(&oidc.Config{ClientID: "other"}).Verify(ctx, token); err == nil {
		t.Error("taken for another audience")
	}
	late := &oidc.Config{ClientID: "sts.amazonaws.com", Now: func() time.Time { return time.Now().Add(6 * time.Minute) }}
	if _, err := provider.Verifier(late).Verify(ctx, token); err == nil {
		t.Error("taken after its end")
	}
	foreign := newDomainAt(t, d.issuer, keystore.P256)
	forged := foreign.joinFor(entry("orders")).jwt("orders", "sts.amazonaws.com").Token
	if _, err := provider.Verifier(&oidc.Config{ClientID: "sts.amazonaws.com"}).Verify(ctx, forged); err == nil {
		t.Error("taken under a key that is not published")
	}
}

// joinFor applies an entry and joins a node.
func (d *domain) joinFor(e *registrationv1.Entry) *host {
	d.t.Helper()
	d.apply(e)
	d.caughtUp()
	return d.join("web-1")
}

// Under RSA, the one algorithm that Azure takes, discovery says so, and go-oidc reads the document and the token.
func TestOIDCUnderRSA(t *testing.T) {
	t.Parallel()
	d, client := newIssuer(t, keystore.RSA2048)
	h := d.joinFor(entry("orders"))
	ctx := oidc.ClientContext(t.Context(), client)
	provider := must(oidc.NewProvider(ctx, d.issuer))(t)
	token := h.jwt("orders", "api://AzureADTokenExchange").Token
	must(provider.Verifier(&oidc.Config{ClientID: "api://AzureADTokenExchange"}).Verify(ctx, token))(t)
	_, text := ask(t, client, "GET", d.issuer+"/.well-known/openid-configuration")
	_, keys := ask(t, client, "GET", d.issuer+"/keys")
	if !strings.Contains(text, `"id_token_signing_alg_values_supported":["RS256"]`) || !strings.Contains(keys, `"alg":"RS256"`) || strings.Count(keys, `"kid"`) != 1 {
		t.Errorf("answered %s and %s", text, keys)
	}
	f := h.follow()
	f.next()
	must(verifyJWT(f.bundle, token, "api://AzureADTokenExchange"))(t)
}

// npm's jose takes our tokens too; it passes over keys whose use it does not know.
func TestJose(t *testing.T) {
	t.Parallel()
	d, _ := newIssuer(t, keystore.P256)
	h := d.joinFor(entry("orders"))
	library := must(filepath.Abs("../.cache/node/node_modules/jose/dist/webapi/index.js"))(t)
	if _, err := os.Stat(library); err != nil {
		t.Fatalf("%v: run tools/needs", err)
	}
	root := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(root, pemOf(d.authority.Bundle().Roots[0]), 0o600); err != nil {
		t.Fatal(err)
	}
	verify := func(token, audience string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c := exec.CommandContext(ctx, "node", "testdata/jose.mjs", d.issuer, audience)
		c.Env = append(os.Environ(), "JOSE="+library, "NODE_EXTRA_CA_CERTS="+root)
		c.Stdin, c.Stderr = strings.NewReader(token), os.Stderr
		out, err := c.Output()
		return strings.TrimSpace(string(out)), err
	}
	token := h.jwt("orders", "db", "cache").Token
	var read struct {
		Payload         map[string]any
		ProtectedHeader map[string]any
	}
	if err := json.Unmarshal([]byte(must(verify(token, "cache"))(t)), &read); err != nil {
		t.Fatal(err)
	}
	if read.Payload["sub"] != ordersID || read.Payload["iss"] != d.issuer || len(read.Payload) != 5 || len(read.ProtectedHeader) != 3 {
		t.Errorf("read as %v", read)
	}
	for what, row := range map[string]struct{ token, audience, want string }{
		"another audience": {token, "web", "ERR_JWT_CLAIM_VALIDATION_FAILED"},
		"a changed token":  {token[:len(token)-10] + strings.Repeat("A", 10), "cache", "ERR_JWS_SIGNATURE_VERIFICATION_FAILED"},
	} {
		if got, err := verify(row.token, row.audience); err == nil || got != row.want {
			t.Errorf("%s: %s, %v", what, got, err)
		}
	}
}

func TestCheckIssuer(t *testing.T) {
	for _, row := range []struct {
		issuer, host string
		valid        bool
	}{
		{"https://oidc.example.org", "oidc.example.org", true},
		{"https://oidc.example.org/a/b", "oidc.example.org", true},
		{"https://localhost:8444", "localhost", true},
		{"https://127.0.0.1:8444", "", true},
		{"https://[::1]:8444", "", true},
		{"", "", false},
		{"oidc.example.org", "", false},
		{"http://oidc.example.org", "", false},
		{"HTTPS://oidc.example.org", "", false},
		{"https://", "", false},
		{"https:///a", "", false},
		{"https:oidc.example.org", "", false},
		{"https://oidc.example.org/", "", false},
		{"https://oidc.example.org/a/", "", false},
		{"https://oidc.example.org/a//b", "", false},
		{"https://oidc.example.org/a/../b", "", false},
		{"https://oidc.example.org/{a}", "", false},
		{"https://oidc.example.org/a b", "", false},
		{"https://oidc.example.org?a", "", false},
		{"https://oidc.example.org?", "", false},
		{"https://oidc.example.org#a", "", false},
		{"https://oidc.example.org#", "", false},
		{"https://u@oidc.example.org", "", false},
	} {
		if host, err := server.CheckIssuer(row.issuer); (err == nil) != row.valid || host != row.host {
			t.Errorf("%q is of host %q, %v", row.issuer, host, err)
		}
	}
	d := newDomain(t)
	d.join("web-1") // both surfaces serve, so they can be stopped
	for name, spoil := range map[string]func(*server.Config){
		"an issuer that is none":            func(c *server.Config) { c.OIDC = &server.OIDC{Issuer: "http://x"} },
		"keys of an authority that is none": func(c *server.Config) { c.OIDC, c.JWT = &server.OIDC{Issuer: "https://x"}, nil },
	} {
		c := d.config
		c.Registerer = nil
		spoil(&c)
		if _, err := server.New(t.Context(), c); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if d.server.OIDCServer() != nil {
		t.Error("OIDC is served without an issuer")
	}
}
