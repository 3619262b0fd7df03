package policy_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/authz/policy"
	"github.com/writ-dev/writ/policies"
	"github.com/writ-dev/writ/registration"
	"github.com/writ-dev/writ/svid"
)

// node is what a node knows: the facts of one ID, and which certificates verify.
type node struct {
	facts    registration.Facts
	verified map[string]string // DER to ID
	asked    atomic.Int32
	keys     svid.JWTBundle
	now      func() time.Time
}

func (n *node) Facts(id spiffeid.ID) (registration.Facts, bool) {
	return n.facts, n.facts.ID == id
}

func (n *node) VerifyPeer(der []byte) (spiffeid.ID, error) {
	n.asked.Add(1)
	if id, ok := n.verified[string(der)]; ok {
		return spiffeid.FromString(id)
	}
	return spiffeid.ID{}, errors.New("does not verify")
}

// VerifyToken verifies with the keys of one trust domain.
func (n *node) VerifyToken(token string, audience []string) (*svid.JWT, error) {
	n.asked.Add(1)
	return svid.VerifyJWT(token, map[spiffeid.TrustDomain]svid.JWTBundle{n.keys.TrustDomain: n.keys}, audience, n.now())
}

func certificate(t testing.TB, id string, ends time.Time) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, _ := url.Parse(id)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: ends, URIs: []*url.URL{uri}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func encoded(der []byte) string {
	text := url.QueryEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	return strings.ReplaceAll(text, "+", "%20") // as Envoy writes a space
}

const web = "spiffe://example.org/ns/shop/web"

func TestSource(t *testing.T) {
	ends := time.Now().Add(time.Hour)
	good, stranger, old := certificate(t, web, ends), certificate(t, web, ends), certificate(t, web, time.Now().Add(-time.Minute))
	other := certificate(t, "spiffe://example.org/other", ends)
	n := &node{facts: registration.Facts{ID: spiffeid.RequireFromString(web), Selectors: []string{"a:b:c", "unix:uid:1"}, Assurance: 3,
		Entry: "web", Hint: "primary", Node: "spiffe://example.org/writ/agent/x509pop/1"},
		verified: map[string]string{string(good): web, string(other): "spiffe://example.org/other", string(old): web}}
	full := func(certificate bool) map[string]any {
		return map[string]any{"spiffe_id": web, "trust_domain": "example.org", "path": []any{"ns", "shop", "web"}, "certificate": certificate,
			"selectors": []any{"a:b:c", "unix:uid:1"}, "assurance": 3.0, "entry": "web", "hint": "primary",
			"node": "spiffe://example.org/writ/agent/x509pop/1"}
	}
	longest := "spiffe://example.org/" + strings.Repeat("x", svid.MaxIDLength-len("spiffe://example.org/"))
	rows := []struct {
		name, principal, certificate string
		want                         any
	}{
		{"a SPIFFE ID that this node knows", web, "", full(false)},
		{"with its certificate", web, encoded(good), full(true)},
		{"with its certificate, not URL-encoded", web, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: good})), full(true)},
		{"ID-36: a SPIFFE ID of another trust domain: nothing but the ID", "spiffe://partner.org/x", "", map[string]any{"spiffe_id": "spiffe://partner.org/x",
			"trust_domain": "partner.org", "path": []any{"x"}, "certificate": false}},
		{"an ID without a path", "spiffe://example.org", "", map[string]any{"spiffe_id": "spiffe://example.org",
			"trust_domain": "example.org", "path": []any{}, "certificate": false}},
		{"ID-18: 2048 bytes", longest, "", map[string]any{"spiffe_id": longest, "trust_domain": "example.org", "path": []any{longest[len("spiffe://example.org/"):]},
			"certificate": false}},
		{"EXT-01: nobody", "", "", nil},
		{"EXT-01: a distinguished name", "CN=x", "", nil},
		{"EXT-01: a DNS name", "db.example.org", "", nil},
		{"EXT-01: an upper-case trust domain", "spiffe://Example.org/web", "", nil},
		{"a port", "spiffe://example.org:8443/web", "", nil},
		{"a dot segment", "spiffe://example.org/a/../web", "", nil},
		{"EXT-01: a query", "spiffe://example.org/web?x", "", nil},
		{"two IDs", web + "," + web, "", nil},
		{"a certificate that does not verify", web, encoded(stranger), nil},
		{"a certificate that names another ID", web, encoded(other), nil},
		{"a certificate that has ended", web, encoded(old), nil},
		{"a certificate without a principal", "", encoded(good), nil},
		{"bytes that are no PEM", web, "x", nil},
		{"a broken escape", web, "%zz" + encoded(good), nil},
		{"a PEM block of another type", web, url.QueryEscape(string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: good}))), nil},
		{"a certificate cut short", web, url.QueryEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: good[:100]}))), nil},
	}
	set, err := policy.LoadFS(t.Context(), mapFS(map[string]string{"policy.yaml": "decision: envoy/authz/answer\n",
		"echo.rego": "package envoy.authz\nanswer := {\"allowed\": true, \"dynamic_metadata\": {\"source\": object.get(input, \"source\", null)}}\n"}),
		policy.Config{Identities: n})
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r := message(t, fullRequest)
			r.Attributes.Source.Principal, r.Attributes.Source.Certificate = row.principal, row.certificate
			if diff := cmp.Diff(row.want, metadata(t, set.Decide(t.Context(), wire(t, r)))["source"]); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Who calls is what the proxy verified. What a client writes into a header is a header, a token too.
func TestEXT_04_EXT_05_HeadersNameNobody(t *testing.T) {
	set, err := policy.LoadFS(t.Context(), mapFS(map[string]string{"policy.yaml": "decision: envoy/authz/answer\n",
		"echo.rego": "package envoy.authz\nanswer := {\"allowed\": true, \"dynamic_metadata\": {\"source\": object.get(input, [\"source\", \"spiffe_id\"], \"nobody\"), " +
			"\"principal\": object.get(input.attributes.source, \"principal\", \"\"), \"token\": input.attributes.request.http.headers.authorization}}\n"}), policy.Config{})
	if err != nil {
		t.Fatal(err)
	}
	const token = "bEaReR eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJzcGlmZmU6Ly9leGFtcGxlLm9yZy9hZG1pbiJ9.AA" // of spiffe://example.org/admin
	for principal, want := range map[string]string{"": "nobody", web: web} {
		r := message(t, fullRequest)
		r.Attributes.Source.Principal, r.Attributes.Source.Certificate = principal, ""
		r.Attributes.Request.Http.Headers = map[string]string{"authorization": token, "x-forwarded-client-cert": "URI=spiffe://example.org/admin",
			"x-spiffe-id": "spiffe://example.org/admin"}
		got := metadata(t, set.Decide(t.Context(), wire(t, r)))
		if diff := cmp.Diff(map[string]any{"source": want, "principal": principal, "token": token}, got); diff != "" {
			t.Errorf("for the principal %q: %s", principal, diff)
		}
	}
}

func TestVerifiedCertificatesAreRememberedForAMoment(t *testing.T) {
	start := time.Now()
	var now atomic.Pointer[time.Time]
	now.Store(&start)
	der := certificate(t, web, start.Add(time.Hour))
	n := &node{verified: map[string]string{string(der): web}}
	set, err := policy.LoadFS(t.Context(), mapFS(map[string]string{"a.rego": "package envoy.authz\nallow if input.source.certificate\n"}),
		policy.Config{Identities: n, Now: func() time.Time { return *now.Load() }})
	if err != nil {
		t.Fatal(err)
	}
	r := message(t, fullRequest)
	r.Attributes.Source.Principal, r.Attributes.Source.Certificate = web, encoded(der)
	bytes := wire(t, r)
	for range 10 {
		if d := set.Decide(t.Context(), bytes); d.Outcome.String() != "allowed" {
			t.Fatal(d)
		}
	}
	if asked := n.asked.Load(); asked != 1 {
		t.Errorf("verified %d times", asked)
	}
	n.verified = nil // the root was taken out of the bundle
	later := start.Add(time.Second)
	now.Store(&later)
	if d := set.Decide(t.Context(), bytes); d.Outcome.String() == "allowed" {
		t.Error("allowed by a certificate that verifies no more")
	}
}

func TestEXT_02_ExampleDecidesForWebAndAPI(t *testing.T) {
	set, err := policy.LoadFS(t.Context(), policies.Example(), policy.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for caller, want := range map[string]string{"spiffe://example.org/web": "allowed", "spiffe://example.org/webadmin": "denied",
		"spiffe://example.org.evil/web": "denied", "CN=web": "denied", "": "denied"} {
		r := message(t, fullRequest)
		r.Attributes.Source.Principal, r.Attributes.Request.Http.Method = caller, "GET"
		if d := set.Decide(t.Context(), wire(t, r)); d.Outcome.String() != want || d.Outcome.String() == "denied" && d.Reason == "" {
			t.Errorf("%s: %v", caller, d)
		}
	}
}
