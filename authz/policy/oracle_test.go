package policy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/policies"
)

var oracleRuns = flag.Int("oracle", 5000, "evaluations that TestOracle compares")

// A judged is a policy with what it should allow, written twice: in Rego, and in Go over the message itself.
type judged struct {
	name  string
	rego  string
	data  map[string]any
	model func(m *reading) bool
}

// reading is a request as a reader of the standards reads it, by none of writ's code.
type reading struct {
	method, principal string
	segments          []string // of the path, unescaped
	path              string   // raw
	query             url.Values
	headers           map[string]string
	body              any
}

// id splits a principal by go-spiffe's reading.
func (m *reading) id() (domain string, path []string) {
	id, err := spiffeid.FromString(m.principal)
	if err != nil {
		return "", nil
	}
	if id.Path() == "" {
		return id.TrustDomain().Name(), []string{}
	}
	return id.TrustDomain().Name(), strings.Split(id.Path()[1:], "/")
}

func (m *reading) at(i int) string {
	if i < len(m.segments) {
		return m.segments[i]
	}
	return ""
}

func judgedPolicies() []judged {
	shop := func(m *reading) bool {
		domain, path := m.id()
		return domain == "mesh.example" && len(path) > 2 && path[1] == "shop"
	}
	return []judged{
		{"by method, path and principal", `package envoy.authz
import input.attributes.request.http as http
default allow := false
allow if http.path == "/healthz"
allow if { http.method == "GET"; array.slice(input.parsed_path, 0, 2) == ["api", "orders"]; input.attributes.source.principal == "spiffe://mesh.example/ns/shop/web" }
allow if { http.method in {"PUT", "DELETE"}; startswith(http.path, "/api/products/"); input.attributes.source.principal == "spiffe://mesh.example/ns/shop/admin" }
`, nil, func(m *reading) bool {
			return m.path == "/healthz" ||
				m.method == "GET" && m.at(0) == "api" && m.at(1) == "orders" && m.principal == "spiffe://mesh.example/ns/shop/web" ||
				slices.Contains([]string{"PUT", "DELETE"}, m.method) && strings.HasPrefix(m.path, "/api/products/") && m.principal == "spiffe://mesh.example/ns/shop/admin"
		}},
		{"by role", `package envoy.authz
allow if { some role in data.bindings[input.source.spiffe_id]; some grant in data.grants[role]; grant.method == input.attributes.request.http.method; grant.root == input.parsed_path[0] }
`, map[string]any{"bindings": map[string]any{"spiffe://mesh.example/ns/shop/web": []any{"reader"}, "spiffe://mesh.example/ns/shop/admin": []any{"reader", "writer"}},
			"grants": map[string]any{"reader": []any{map[string]any{"method": "GET", "root": "api"}}, "writer": []any{map[string]any{"method": "PUT", "root": "api"}, map[string]any{"method": "POST", "root": "internal"}}}},
			func(m *reading) bool {
				reader := m.method == "GET" && m.at(0) == "api"
				writer := m.method == "PUT" && m.at(0) == "api" || m.method == "POST" && m.at(0) == "internal"
				switch m.principal {
				case "spiffe://mesh.example/ns/shop/web":
					return reader
				case "spiffe://mesh.example/ns/shop/admin":
					return reader || writer
				}
				return false
			}},
		{"by identity", `package envoy.authz
import data.writ.identity
allow := {"allowed": ok, "rule": "shop"}
default ok := false
ok if { identity.under(input.source, ["ns", "shop"]); identity.in_trust_domain(input.source, "mesh.example"); input.attributes.request.http.method == "GET" }
`, nil, func(m *reading) bool {
			domain, path := m.id()
			return domain == "mesh.example" && len(path) >= 2 && path[0] == "ns" && path[1] == "shop" && m.method == "GET"
		}},
		{"by header and query", `package envoy.authz
import input.attributes.request.http.headers
allow if { headers["x-role"] == "admin"; not headers["x-forwarded-for"]; input.source.trust_domain == "mesh.example"; input.source.path[1] == "shop"; count(input.source.path) > 2 }
allow if { input.parsed_query.token == ["a b"]; input.attributes.request.http.method != "DELETE" }
`, nil, func(m *reading) bool {
			_, forwarded := m.headers["x-forwarded-for"]
			return m.headers["x-role"] == "admin" && !forwarded && shop(m) || slices.Equal(m.query["token"], []string{"a b"}) && m.method != "DELETE" && m.method != "" // protojson leaves an empty text out
		}},
		{"by body", `package envoy.authz
allow if { input.parsed_body.amount < 100; input.parsed_body.currency == "EUR"; not input.truncated_body; input.attributes.request.http.method == "POST" }
`, nil, func(m *reading) bool {
			object, _ := m.body.(map[string]any)
			amount, isNumber := object["amount"].(json.Number)
			if object["amount"] == nil { // in the order of Rego's types, null comes before numbers
				_, there := object["amount"]
				return there && object["currency"] == "EUR" && m.method == "POST"
			}
			f, err := amount.Float64()
			small := isNumber && err == nil && f < 100
			_, isBool := object["amount"].(bool)
			return (small || isBool) && object["currency"] == "EUR" && m.method == "POST"
		}},
	}
}

// TestOracle makes up requests and asks each policy three times: writ over its wire, plain OPA over the whole input as protojson
// writes the message, and the policy's Go model. What writ allows, both others must allow, and what writ's policy denies, OPA must not allow.
// `make oracle` runs it a million times.
func TestOracle(t *testing.T) {
	t.Parallel()
	random := dice(t)
	var allowed, denied, other atomic.Int64
	for _, p := range judgedPolicies() {
		data := p.data
		if data == nil {
			data = map[string]any{}
		}
		text, err := json.Marshal(data)
		if err != nil {
			t.Fatal(err)
		}
		server := serve(t, load(t, map[string]string{"a.rego": p.rego, "data.json": string(text)}))
		oracle := plainOPA(t, p.rego, data)
		var wg sync.WaitGroup
		workers := runtime.GOMAXPROCS(0)
		for range workers {
			g := generator{rand.New(rand.NewPCG(random.Uint64(), 0))}
			wg.Go(func() {
				for range *oracleRuns / len(judgedPolicies()) / workers {
					if t.Failed() {
						return
					}
					wire, err := proto.Marshal(g.request())
					if err != nil {
						t.Error(err)
						return
					}
					wire = g.damage(wire)
					answer, err := server.Answer(context.Background(), wire)
					var r authv3.CheckResponse
					if err == nil {
						if err := proto.Unmarshal(answer, &r); err != nil {
							t.Error(err)
							return
						}
					}
					passes := err == nil && r.GetStatus().GetCode() == 0 && r.GetOkResponse() != nil
					forbids := err == nil && r.GetDeniedResponse().GetStatus().GetCode() == 403
					opa, model, text := judgeAgain(t, p, oracle, wire)
					switch {
					case passes && (!opa || !model):
						t.Errorf("%s: writ allows it, OPA says %v, the model says %v: %s", p.name, opa, model, text)
					case forbids && (opa || model):
						t.Errorf("%s: writ denies it, OPA says %v, the model says %v: %s", p.name, opa, model, text)
					case passes:
						allowed.Add(1)
					case forbids:
						denied.Add(1)
					default:
						other.Add(1)
					}
				}
			})
		}
		wg.Wait()
	}
	n := allowed.Load() + denied.Load() + other.Load()
	t.Logf("%d evaluations: %d allowed, %d denied, %d refused or malformed", n, allowed.Load(), denied.Load(), other.Load())
	if allowed.Load() < n/20 || denied.Load() < n/20 {
		t.Error("too few of one kind to prove anything")
	}
}

// plainOPA is the policy as OPA alone evaluates it.
func plainOPA(t *testing.T, text string, data map[string]any) *rego.PreparedEvalQuery {
	t.Helper()
	library, err := fs.ReadFile(policies.Library(), "identity.rego")
	if err != nil {
		t.Fatal(err)
	}
	q, err := rego.New(rego.Query("data.envoy.authz.allow"), rego.Module("a.rego", text), rego.Module("identity.rego", string(library)),
		rego.Store(inmem.NewFromObject(data))).PrepareForEval(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return &q
}

// judgeAgain gives OPA's judgement and the model's. What cannot be read in one way is allowed by neither.
func judgeAgain(t *testing.T, p judged, oracle *rego.PreparedEvalQuery, wire []byte) (opa, model bool, text []byte) {
	var r authv3.CheckRequest
	if err := proto.Unmarshal(wire, &r); err != nil {
		return false, false, wire
	}
	text, err := protojson.Marshal(&r)
	if err != nil {
		return false, false, wire
	}
	m, ok := readAgain(&r)
	if !ok {
		return false, false, text
	}
	input, err := wholeInput(text, m)
	if err != nil {
		return false, false, text
	}
	v, err := ast.InterfaceToValue(input)
	if err != nil {
		return false, false, text
	}
	results, err := oracle.Eval(context.Background(), rego.EvalParsedInput(v))
	if err != nil {
		t.Error(err)
		return false, false, text
	}
	if len(results) == 1 {
		switch v := results[0].Expressions[0].Value.(type) {
		case bool:
			opa = v
		case map[string]any:
			opa, _ = v["allowed"].(bool)
		}
	}
	return opa, p.model(m), text
}

// readAgain reads a message by the standard library.
func readAgain(r *authv3.CheckRequest) (*reading, bool) {
	http := r.GetAttributes().GetRequest().GetHttp()
	m := &reading{method: http.GetMethod(), path: http.GetPath(), principal: r.GetAttributes().GetSource().GetPrincipal(), headers: http.GetHeaders()}
	raw, query, _ := strings.Cut(m.path, "?")
	parts := strings.Split(strings.TrimPrefix(raw, "/"), "/")
	for i, part := range parts {
		plain, err := url.PathUnescape(part)
		name, _, _ := strings.Cut(plain, ";")
		last := i == len(parts)-1
		if err != nil || strings.ContainsAny(plain, "/\\\x00") || name == "." || name == ".." || plain == "" && !last {
			return nil, false
		}
		m.segments = append(m.segments, plain)
	}
	var err error
	if m.query, err = url.ParseQuery(query); err != nil {
		return nil, false
	}
	for name, value := range m.headers {
		if slices.Contains([]string{"x-http-method-override", "x-http-method", "x-method-override"}, name) && !strings.EqualFold(value, m.method) {
			return nil, false
		}
	}
	if strings.Contains(strings.ToLower(m.headers["content-type"]), "application/json") && http.GetBody() != "" {
		d := json.NewDecoder(strings.NewReader(http.GetBody()))
		d.UseNumber()
		m.body = nil
		broken := d.Decode(&m.body) != nil || d.More()
		var again any
		if json.Unmarshal([]byte(http.GetBody()), &again) != nil || broken || strings.Count(http.GetBody(), `"amount"`) > 1 {
			m.body = unreadable{}
		}
	}
	return m, true
}

// unreadable stands for a body that no policy may judge.
type unreadable struct{}

// wholeInput is the input as opa-envoy-plugin makes it, with source.
func wholeInput(text []byte, m *reading) (any, error) {
	var input map[string]any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&input); err != nil {
		return nil, err
	}
	input["parsed_path"] = m.segments
	query := map[string]any{}
	for key, list := range m.query {
		query[key] = list
	}
	input["parsed_query"] = query
	if _, no := m.body.(unreadable); no {
		input["parsed_body"] = nil
	} else {
		input["parsed_body"] = m.body
	}
	input["truncated_body"] = false
	if domain, path := m.id(); domain != "" {
		input["source"] = map[string]any{"spiffe_id": m.principal, "trust_domain": domain, "path": path}
	}
	return input, nil
}

// A generator makes requests up: near what the policies allow, and next to it.
type generator struct{ *rand.Rand }

func (g generator) one(of ...string) string { return of[g.IntN(len(of))] }

func (g generator) request() *authv3.CheckRequest {
	http := &authv3.AttributeContext_HttpRequest{Method: g.one("GET", "GET", "GET", "PUT", "POST", "POST", "DELETE", "get", "", "HEAD"), Path: g.path(), Headers: map[string]string{}}
	for range g.IntN(4) {
		http.Headers[g.one("x-role", "x-role", "x-role", "X-Role", "x-forwarded-for", "content-type", "x-other", "x-other")] =
			g.one("admin", "admin", "user", "application/json", "GET", "POST", "")
	}
	if g.IntN(20) == 0 {
		http.Headers[g.one("x-http-method-override", "x-method-override")] = g.one("GET", "POST", "get", "")
	}
	if g.IntN(2) == 0 {
		http.Headers["content-type"] = g.one("application/json", "application/json; charset=utf-8", "text/plain")
		http.Body = g.body()
	}
	r := &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: http},
		Source: &authv3.AttributeContext_Peer{Principal: g.principal(), Service: g.one("", "s")}}}
	if g.IntN(2) == 0 {
		g.near(r.Attributes)
	}
	if g.IntN(4) == 0 {
		r.Attributes.ContextExtensions = map[string]string{"source": "spiffe://mesh.example/ns/shop/web"}
	}
	return r
}

// near makes most of a request what one of the policies allows.
func (g generator) near(a *authv3.AttributeContext) {
	set := func(to *string, value string) {
		if g.IntN(10) > 0 {
			*to = value
		}
	}
	http, principal := a.Request.Http, &a.Source.Principal
	switch g.IntN(5) {
	case 0:
		set(&http.Method, "GET")
		set(&http.Path, g.one("/api/orders", "/api/orders/7", "/healthz"))
		set(principal, "spiffe://mesh.example/ns/shop/web")
	case 1:
		set(&http.Method, g.one("PUT", "GET"))
		set(&http.Path, "/api/products/7")
		set(principal, "spiffe://mesh.example/ns/shop/admin")
	case 2:
		http.Headers["x-role"] = "admin"
		set(&http.Path, "/api")
		set(principal, "spiffe://mesh.example/ns/shop/web")
	case 3:
		set(&http.Path, "/api?token=a+b")
	case 4:
		set(&http.Method, "POST")
		set(&http.Path, "/api")
		http.Headers["content-type"] = "application/json"
		set(&http.Body, g.one(`{"amount": 7, "currency": "EUR"}`, `{"currency": "EUR", "amount": 99.5}`))
	}
}

func (g generator) path() string {
	if g.IntN(12) == 0 {
		return g.one("/healthz", "/healthz/", "/healthz?", "/healthz?a=b", "//healthz", "/%68ealthz", "", "/", "healthz")
	}
	var b strings.Builder
	for range g.IntN(3) + 1 {
		if g.IntN(8) > 0 {
			b.WriteString("/" + g.one("api", "api", "api", "orders", "orders", "products", "internal", "%61pi", "a%20b"))
			continue
		}
		b.WriteString("/" + g.one("api", "api", "api", "orders", "orders", "products", "internal", "a%20b", "%61pi", "..", ".", "", "..;a", "a;b", "%2e%2e", "a%2fb", `a\b`, "ap%69", "%zz", "%00", "%ff", "API"))
	}
	if g.IntN(3) == 0 {
		b.WriteString("?" + g.one("token=a+b", "token=a+b", "token=a%20b", "token=a%20b", "token=a+b&token=c", "Token=a+b", "token=a;b", "token=%zz", "x=1", "token", ""))
	}
	return b.String()
}

func (g generator) principal() string {
	if g.IntN(8) == 0 {
		return g.one("", "web", "DNS:web.example", "spiffe:/mesh.example/ns/shop/web", " spiffe://mesh.example/ns/shop/web")
	}
	return "spiffe://" + g.one("mesh.example", "mesh.example", "mesh.example", "mesh.example.evil.org", "evil.org") + g.one("/ns/shop/web", "/ns/shop/web", "/ns/shop/admin", "/ns/shopper/web", "/ns/shop", "/ns/shop/web/x", "/admin")
}

func (g generator) body() string {
	if g.IntN(3) == 0 {
		return `{"amount": 7, "currency": "EUR"}`
	}
	amount := g.one("1", "99.9", "100", "1e1", "1e3", "-5", `"5"`, "null", "true", "[]", "{}", "1e400")
	currency := g.one(`"EUR"`, `"EUR"`, `"EUR"`, `"USD"`, "null")
	return g.one(fmt.Sprintf(`{"amount": %s, "currency": %s}`, amount, currency), fmt.Sprintf(`{"currency": %s, "amount": %s}`, currency, amount),
		fmt.Sprintf(`{"amount": %s, "currency": %s, "amount": 5}`, amount, currency), fmt.Sprintf(`{"amount": %s, "currency": %s`, amount, currency),
		fmt.Sprintf(`{"amount": %s, "currency": %s} {}`, amount, currency), fmt.Sprintf(`[{"amount": %s}]`, amount), "")
}

// damage leaves most messages alone; others lose bytes, have some changed, or come in two pieces.
func (g generator) damage(wire []byte) []byte {
	if len(wire) == 0 {
		return wire
	}
	switch g.IntN(12) {
	case 0:
		wire[g.IntN(len(wire))] ^= 1 << g.IntN(8)
	case 1:
		wire = wire[:g.IntN(len(wire))]
	case 2:
		more, err := proto.Marshal(g.request())
		if err == nil {
			wire = append(wire, more...)
		}
	}
	return wire
}
