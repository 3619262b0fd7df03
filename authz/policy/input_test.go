package policy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/authz"
	"github.com/writ-dev/writ/authz/policy"
)

// fullRequest has every field that Envoy sets, and those that it does not.
const fullRequest = `{"attributes": {
	"source": {"address": {"socketAddress": {"address": "10.0.0.1", "portValue": 0}}, "service": "s", "labels": {"a": "1", "b": "2"},
		"principal": "spiffe://example.org/ns/shop/web"},
	"destination": {"address": {"pipe": {"path": "/run/x.sock", "mode": 420}}, "principal": "spiffe://example.org/api"},
	"request": {"time": "2026-11-24T05:00:00.120Z", "http": {"id": "17", "method": "POST", "path": "/api/v1/orders?a=1&a=2&b=%20x",
		"host": "api.example.org", "scheme": "https", "size": "9007199254740993", "protocol": "HTTP/2",
		"headers": {":path": "/api", "authorization": "Bearer x", "content-type": "application/json", "x-forwarded-proto": "https", "x-empty": ""},
		"body": "{\"a\": [1, {\"b\": null}]}",
		"headerMap": {"headers": [{"key": "x-raw", "rawValue": "AAE="}]}}},
	"contextExtensions": {"set": "orders"},
	"metadataContext": {"filterMetadata": {"envoy.filters.http.jwt_authn": {"payload": {"sub": "x", "n": 1.5, "l": [true, null, "s"]}}, "other": {}},
		"typedFilterMetadata": {"t": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "v"}}},
	"routeMetadataContext": {"filterMetadata": {"r": {"k": "v"}}},
	"tlsSession": {"sni": "api.example.org"}}}`

func message(t testing.TB, text string) *authv3.CheckRequest {
	t.Helper()
	var r authv3.CheckRequest
	if err := protojson.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	return &r
}

// echo is a set whose answer holds the whole input.
func echo(t testing.TB) *policy.Set {
	return load(t, map[string]string{"policy.yaml": "decision: envoy/authz/answer\n",
		"echo.rego": "package envoy.authz\nanswer := {\"allowed\": true, \"dynamic_metadata\": {\"input\": input}}\n"})
}

// metadata is what a set put into its answer.
func metadata(t testing.TB, d authz.Decision) map[string]any {
	t.Helper()
	var s structpb.Struct
	if err := proto.Unmarshal(d.Metadata, &s); err != nil {
		t.Fatal(err)
	}
	return s.AsMap()
}

func TestInputIsWhatProtojsonWrites(t *testing.T) {
	r := message(t, fullRequest)
	got, _ := metadata(t, echo(t).Decide(t.Context(), wire(t, r)))["input"].(map[string]any)
	text, err := protojson.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]any
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	peer := func(id string, path ...any) map[string]any {
		return map[string]any{"spiffe_id": id, "trust_domain": "example.org", "path": path, "certificate": false}
	}
	want["source_principal"] = "spiffe://example.org/ns/shop/web"
	want["source"] = peer("spiffe://example.org/ns/shop/web", "ns", "shop", "web")
	want["destination"] = peer("spiffe://example.org/api", "api")
	want["version"] = map[string]any{"ext_authz": "v3", "encoding": "protojson"}
	want["parsed_path"] = []any{"api", "v1", "orders"}
	want["parsed_query"] = map[string]any{"a": []any{"1", "2"}, "b": []any{" x"}}
	want["parsed_body"] = map[string]any{"a": []any{1.0, map[string]any{"b": nil}}}
	want["truncated_body"] = false
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestReadingLessChangesNothing is the differential test of the read-set: each policy sees only what it reads, and must answer as
// over the whole input.
func TestReadingLessChangesNothing(t *testing.T) {
	r := message(t, fullRequest)
	bytes := wire(t, r)
	whole := metadata(t, echo(t).Decide(t.Context(), bytes))["input"]
	policies := map[string]string{
		"a header through an import":         `import input.attributes.request.http as http` + "\n" + `v := http.headers["x-forwarded-proto"]`,
		"a header through a local":           `v := x if { h := input.attributes.request.http.headers; x := h.authorization }`,
		"a variable key":                     `v := {k | some k; input.attributes.request.http.headers[k]}`,
		"some in":                            `v := [x | some x in input.attributes.source.labels]`,
		"every":                              `v := "all" if { every k, x in input.attributes.source.labels { startswith(input.attributes.source.service, "s"); k; x } }`,
		"a function's argument":              `f(x) := x.principal` + "\n" + `v := f(input.attributes.source)`,
		"the input as a function's argument": `f(x) := x.attributes.tlsSession.sni` + "\n" + `v := f(input)`,
		"a built-in over the input":          `v := object.get(input, ["attributes", "tlsSession", "sni"], "none")`,
		"walk":                               `v := count([p | walk(input.attributes.source, [p, _])])`,
		"with":                               `w := input.attributes.request.http` + "\n" + `v := [w.method, x] if { x := w.path with input.attributes.request.http.path as "/other" }`,
		"with a whole input":                 `w := input` + "\n" + `v := x if { x := w.attributes.tlsSession with input as {"attributes": {"tlsSession": input.attributes.source.principal}} }`,
		"a comprehension in a rule head":     `v[k] := x if { some k, x in input.parsed_query }`,
		"a partial set":                      `s contains x if { some x in input.parsed_path }` + "\n" + `v := s`,
		"not":                                `v := "no" if not input.attributes.request.http.headers["x-none"]`,
		"an else":                            `v := 1 if { input.attributes.request.http.headers["x-none"] } else := input.attributes.request.http.method`,
		"a default function":                 `default g(_) := "d"` + "\n" + `g(x) := input.attributes.request.http.host if x == 1` + "\n" + `v := [g(1), g(2)]`,
		"data by an input's value":           `d := {"orders": input.attributes.request.http.scheme}` + "\n" + `v := d[input.attributes.contextExtensions.set]`,
		"a dynamic reference to rules":       `r.a := input.attributes.request.http.method` + "\n" + `r.b := input.attributes.request.http.host` + "\n" + `v := [x | some k in ["a", "b"]; x := data.envoy.authz.r[k]]`,
		"a whole package":                    `a := input.attributes.request.http.method` + "\n" + `v := other` + "\n" + `other := data.lib`,
		"a template string":                  "v := $\"{input.attributes.request.http.method} by {input.attributes.source.principal}\"",
		"destructuring":                      `v := [a, b] if { [a, b] = [x | some k in ["method", "host"]; x := input.attributes.request.http[k]] }`,
		"unification with an object":         `v := s if { {"sni": s} = input.attributes.tlsSession }`,
		"an alias of an alias":               `v := z if { x := input.attributes; y := x.request; z := y.http.method }`,
		"an alias compared and used":         `v := x if { x := input.attributes.request.http; x.method == "POST" }`,
		"headers of the raw map":             `v := input.attributes.request.http.headerMap.headers[_].key`,
		"metadata":                           `v := input.attributes.metadataContext.filterMetadata["envoy.filters.http.jwt_authn"].payload.l[1]`,
		"typed metadata":                     `v := input.attributes.metadataContext.typedFilterMetadata.t["@type"]`,
		"an array index":                     `v := [input.parsed_path[1], input.parsed_body.a[1].b, input.truncated_body, input.version.encoding]`,
		"identities":                         `v := [input.source.path[2], input.destination.trust_domain]`,
		"time and port":                      `v := [input.attributes.request.time, input.attributes.source.address.socketAddress.portValue]`,
		"the library":                        `import data.writ.identity` + "\n" + `v := true if identity.like(input.source, ["ns", "*", "web"])`,
	}
	for name, text := range policies {
		t.Run(name, func(t *testing.T) {
			set := load(t, map[string]string{"policy.yaml": "decision: envoy/authz/answer\n",
				"lib.rego": "package lib\nx := input.attributes.request.http.scheme\n",
				"a.rego":   "package envoy.authz\n" + text + "\ndefault u := null\nu := v\nanswer := {\"allowed\": true, \"dynamic_metadata\": {\"v\": u}}\n"})
			got := metadata(t, set.Decide(t.Context(), bytes))
			want, _, err := set.Evaluate(t.Context(), whole)
			if err != nil {
				t.Fatal(err)
			}
			var wanted map[string]any
			remarshal(t, want.(map[string]any)["dynamic_metadata"], &wanted)
			if diff := cmp.Diff(wanted, got); diff != "" {
				t.Error(diff)
			}
			if got["v"] == nil && name != "metadata" {
				t.Error("the policy read nothing: it proves nothing")
			}
		})
	}
}

func remarshal(t testing.TB, from, into any) {
	t.Helper()
	text, err := json.Marshal(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}

// FuzzDecide holds the decoder against protobuf's own: it must call the same bytes malformed, and read the others alike.
func FuzzDecide(f *testing.F) {
	whole := wire(f, message(f, fullRequest))
	f.Add(whole)
	f.Add(append(append([]byte{}, whole...), wire(f, message(f, `{"attributes": {"source": {"principal": "spiffe://a/b"}, "request": {"http": {"headers": {"x-empty": "no", "y": "z"}}}}}`))...))
	f.Add(protowire.AppendBytes([]byte{0x0a}, protowire.AppendBytes([]byte{0x0a}, []byte{0x0a, 0x04, 0x0a, 0x02, 0x20, 0x00})))
	for _, query := range []string{"a=1" + strings.Repeat("&", 10_000), "a=%FF&%FE=2", "a=1#&b=2", "a=%C3&a=%A9", "a;b=%zz"} {
		f.Add(wire(f, message(f, `{"attributes": {"request": {"http": {"path": "/?`+query+`"}}}}`)))
	}
	set := echo(f)
	allow := load(f, map[string]string{"a.rego": "package envoy.authz\nallow := true\n"})
	f.Fuzz(func(t *testing.T, b []byte) {
		var r authv3.CheckRequest
		malformed := proto.Unmarshal(b, &r) != nil
		d, none := set.Decide(context.Background(), b), allow.Decide(context.Background(), b)
		if (none.Outcome == authz.Malformed) != malformed {
			t.Fatalf("reading nothing: %v, protobuf calls it malformed: %v", none, malformed)
		}
		if (d.Outcome == authz.Malformed) != malformed {
			t.Fatalf("reading all: %v, protobuf calls it malformed: %v", d, malformed)
		}
		if malformed {
			return
		}
		attributes := r.GetAttributes()
		http := attributes.GetRequest().GetHttp()
		want := authz.Request{Method: http.GetMethod(), Path: http.GetPath(), Host: http.GetHost(),
			Source: attributes.GetSource().GetPrincipal(), Destination: attributes.GetDestination().GetPrincipal()}
		if diff := cmp.Diff(want, d.Request); diff != "" {
			t.Fatal(diff)
		}
		if other := http.GetHeaders()["x-http-method-override"]; none.Outcome == authz.Allowed && other != "" && !strings.EqualFold(other, want.Method) {
			t.Fatalf("%s is allowed as %s", other, want.Method)
		}
		if d.Outcome == authz.Allowed {
			sameInput(t, &r, metadata(t, d)["input"])
		}
	})
}

func sameInput(t *testing.T, r *authv3.CheckRequest, input any) {
	text, err := protojson.Marshal(r)
	if err != nil {
		return // protojson refuses times and numbers that we leave out
	}
	var want map[string]any
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	got, _ := input.(map[string]any)
	if diff := cmp.Diff(want["attributes"], got["attributes"]); diff != "" {
		t.Error(diff)
	}
	_, query, _ := strings.Cut(r.GetAttributes().GetRequest().GetHttp().GetPath(), "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		t.Fatalf("%.100q is allowed: %v", query, err)
	}
	var parsed map[string]any
	remarshal(t, values, &parsed)
	if diff := cmp.Diff(parsed, got["parsed_query"]); diff != "" {
		t.Error(diff)
	}
	if principal, _ := got["source_principal"].(string); principal != r.GetAttributes().GetSource().GetPrincipal() {
		t.Errorf("source_principal is %q", principal)
	}
}

// FuzzJSONBody: what is taken as JSON reads as encoding/json reads it, and none of its objects has lost a key.
func FuzzJSONBody(f *testing.F) {
	for _, seed := range []string{`{"a": [1, {"b": null}], "c": "\u0061"}`, `{"a": 1, "\u0061": 2}`, `[1e999, -0]`, `{"a":{}}{}`, `"\ud800"`, `{"\ud800": 1, "\ud801": 2}`, `["\ud83d\ude00", "\\ud83d"]`, `[[[[]]]]`, "\"\xff\""} {
		f.Add([]byte(seed))
	}
	set := echo(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		r := &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Headers: map[string]string{"content-type": "application/json"}, RawBody: body}}}}
		d := set.Decide(context.Background(), wire(t, r))
		if d.Outcome != authz.Allowed {
			if d.Outcome != authz.Refused {
				t.Fatal(d)
			}
			return
		}
		input := metadata(t, d)["input"].(map[string]any)
		var want any
		if err := json.Unmarshal(body, &want); err != nil && len(body) > 0 {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, input["parsed_body"]); diff != "" {
			t.Error(diff)
		}
		if strings.ContainsRune(fmt.Sprint(want), utf8.RuneError) && !bytes.ContainsRune(body, utf8.RuneError) && !bytes.Contains(bytes.ToLower(body), []byte(`\ufffd`)) {
			t.Errorf("half a character of %q reads as %q", body, want)
		}
		if got := keys(want); len(body) > 0 && got != bytes.Count(body, []byte(":"))-inTexts(body) {
			t.Errorf("%d keys of %q", got, body)
		}
	})
}

// keys counts those of all objects in a value.
func keys(value any) (n int) {
	switch v := value.(type) {
	case map[string]any:
		n = len(v)
		for _, below := range v {
			n += keys(below)
		}
	case []any:
		for _, below := range v {
			n += keys(below)
		}
	}
	return n
}

// inTexts counts the colons inside the texts of valid JSON.
func inTexts(body []byte) (n int) {
	inside := false
	for i := 0; i < len(body); i++ {
		switch {
		case inside && body[i] == '\\':
			i++
		case body[i] == '"':
			inside = !inside
		case inside && body[i] == ':':
			n++
		}
	}
	return n
}

func TestBodies(t *testing.T) {
	set := echo(t)
	rows := []struct {
		name      string
		headers   map[string]string
		body, raw string
		want      any
		truncated bool
		refused   bool
	}{
		{name: "no content type", body: `{"a":1}`},
		{name: "JSON with a charset", headers: map[string]string{"content-type": "application/json; charset=utf-8"}, body: `{"a":1}`, want: map[string]any{"a": 1.0}},
		{name: "JSON as bytes", headers: map[string]string{"content-type": "application/json"}, raw: `[1]`, want: []any{1.0}},
		{name: "an empty JSON body", headers: map[string]string{"content-type": "application/json"}},
		{name: "broken JSON", headers: map[string]string{"content-type": "application/json"}, body: `{"a":`, refused: true},
		{name: "two JSON documents", headers: map[string]string{"content-type": "application/json"}, body: `{"a":1} {"a":2}`, refused: true},
		{name: "JSON cut short by the proxy", headers: map[string]string{"content-type": "application/json", "content-length": "100"}, body: `{"a":`, truncated: true},
		{name: "JSON that the proxy says is partial", headers: map[string]string{"content-type": "application/json", "x-envoy-auth-partial-body": "true"}, body: `{}`, truncated: true},
		{name: "a length that is no number", headers: map[string]string{"content-type": "application/json", "content-length": "x"}, body: `{}`, refused: true},
		{name: "a form", headers: map[string]string{"content-type": "application/x-www-form-urlencoded"}, body: `a=1&a=2&b`, want: map[string]any{"a": []any{"1", "2"}, "b": []any{""}}},
		{name: "a broken form", headers: map[string]string{"content-type": "application/x-www-form-urlencoded"}, body: `a=%zz`, refused: true},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r := message(t, fullRequest)
			http := r.Attributes.Request.Http
			http.Headers, http.Body, http.RawBody = row.headers, row.body, []byte(row.raw)
			d := set.Decide(t.Context(), wire(t, r))
			if (d.Outcome == authz.Refused) != row.refused {
				t.Fatal(d)
			}
			if row.refused {
				return
			}
			got := metadata(t, d)["input"].(map[string]any)
			if diff := cmp.Diff([]any{row.want, row.truncated}, []any{got["parsed_body"], got["truncated_body"]}); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestABodyThatNobodyReadsIsNotParsed(t *testing.T) {
	r := message(t, fullRequest)
	r.Attributes.Request.Http.Body = `{"a":`
	set := load(t, map[string]string{"a.rego": "package envoy.authz\nallow if input.attributes.request.http.method == \"POST\"\n"})
	if d := set.Decide(t.Context(), wire(t, r)); d.Outcome != authz.Allowed {
		t.Error(d)
	}
}

func TestRecordedInputIsMasked(t *testing.T) {
	set := load(t, map[string]string{"policy.yaml": "decision: envoy/authz/answer\nrecord: {headers: [X-Shown], query: [a]}\n",
		"a.rego": "package envoy.authz\nanswer := {\"allowed\": count(input) > 0}\n"})
	r := message(t, fullRequest)
	r.Attributes.Request.Http.Headers["x-shown"] = "shown"
	r.Attributes.Request.Http.Headers[":path"] = r.Attributes.Request.Http.Path
	r.Attributes.Request.Http.Query = "a=1&b=secret"
	record, err := set.Decide(t.Context(), wire(t, r)).Input.(audit.Lazy).Render()
	if err != nil {
		t.Fatal(err)
	}
	text := record.Input
	plain, _ := url.QueryUnescape(string(text))
	for _, secret := range []string{"Bearer", "secret", "null", `b=%20x`, `" x"`, "AAE"} {
		if strings.Contains(plain, secret) && secret != "null" {
			t.Errorf("the record shows %q: %s", secret, text)
		}
	}
	for _, shown := range []string{`"x-shown":"shown"`, `a=1`, `b=[masked]`, "application/json", "/api/v1/orders"} {
		if !strings.Contains(string(text), shown) {
			t.Errorf("the record does not show %q: %s", shown, text)
		}
	}
}

// A query that url.ParseQuery takes in part is never read in part.
func TestAQueryIsReadWholeOrRefused(t *testing.T) {
	text := func(decision string) string { return "package envoy.authz\nallow if " + decision + "\n" }
	refusal := "not input.parsed_query.admin"
	full, over := "/?admin=1"+strings.Repeat("&", 9_999), "/?admin=1"+strings.Repeat("&", 10_000)
	rows := []struct {
		name, path string
		files      map[string]string
		outcome    authz.Outcome
		cause      authz.Cause
	}{
		{"as many parameters as are read", full, map[string]string{"a.rego": text(refusal)}, authz.Denied, authz.Undefined},
		{"one more", over, map[string]string{"a.rego": text(refusal)}, authz.Refused, authz.TooLarge},
		{"one more, the whole input is read", over, map[string]string{"a.rego": text("count(input) > 0")}, authz.Refused, authz.TooLarge},
		{"one more, of a lenient set", over, map[string]string{"a.rego": text(refusal), "policy.yaml": "paths: lenient\n"}, authz.Refused, authz.TooLarge},
		{"one more, and nobody reads them", over, map[string]string{"a.rego": text("input.parsed_path")}, authz.Allowed, authz.ByPolicy},
		{"a broken escape", "/?b=%zz", map[string]string{"a.rego": text(refusal)}, authz.Refused, authz.BadTarget},
		{"a broken escape, of a lenient set", "/?b=%zz", map[string]string{"a.rego": text(refusal), "policy.yaml": "paths: lenient\n"}, authz.Refused, authz.BadTarget},
		{"a semicolon", "/?b=1;admin=1", map[string]string{"a.rego": text(refusal)}, authz.Refused, authz.BadTarget},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r := message(t, fullRequest)
			r.Attributes.Request.Http.Path = row.path
			if d := load(t, row.files).Decide(t.Context(), wire(t, r)); d.Outcome != row.outcome || d.Cause != row.cause {
				t.Errorf("%s by %s (%s), want %s by %s", d.Outcome, d.Cause, d.Reason, row.outcome, row.cause)
			}
		})
	}
}
