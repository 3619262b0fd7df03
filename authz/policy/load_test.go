package policy_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/writ-dev/writ/authz"
	"github.com/writ-dev/writ/authz/policy"
	"github.com/writ-dev/writ/internal/fault"
)

const allowAll = "package envoy.authz\nallow := true\n"

func TestBrokenSetsDoNotLoad(t *testing.T) {
	rows := []struct {
		name  string
		files map[string]string
		want  string // in the error
	}{
		{"nothing", map[string]string{}, "no .rego files"},
		{"tests only", map[string]string{"a_test.rego": "package a\ntest_x if true\n"}, "no .rego files"},
		{"Rego that does not parse", map[string]string{"a.rego": "package envoy.authz\nallow if {\n"}, "a.rego:3:"},
		{"two files that do not parse", map[string]string{"a.rego": "package a\nallow if {\n", "b.rego": "package b\nallow if {\n"}, "b.rego:3:"},
		{"an unknown function", map[string]string{"a.rego": "package envoy.authz\nallow if nothing(1)\n"}, "undefined function nothing"},
		{"a misspelled input", map[string]string{"a.rego": "package envoy.authz\nallow if input.request.metod == \"GET\"\n"}, "a.rego:2: undefined ref: input.request.metod"},
		{"a misspelled field", map[string]string{"a.rego": "package envoy.authz\nallow if input.attributes.request.http.metod == \"GET\"\n"}, "undefined ref: input.attributes.request.http.metod"},
		{"a number where a text stands", map[string]string{"a.rego": "package envoy.authz\nallow if input.attributes.request.http.method == 1\n"}, "match error"},
		{"no such decision", map[string]string{"a.rego": "package envoy.authz\nallowed := true\n"}, "envoy/authz/allow names no rule"},
		{"a decision that is a package", map[string]string{"a.rego": allowAll, "policy.yaml": "decision: envoy/authz\n"}, "names no rule"},
		{"an empty decision path", map[string]string{"a.rego": allowAll, "policy.yaml": "decision: a//b\n"}, "is no path"},
		{"an unknown key", map[string]string{"a.rego": allowAll, "policy.yaml": "descision: x\n"}, "policy.yaml:1:1"},
		{"an unknown choice", map[string]string{"a.rego": allowAll, "policy.yaml": "paths: loose\n"}, `"loose" is none of strict, lenient`},
		{"two documents", map[string]string{"a.rego": allowAll, "policy.yaml": "rego: v1\n---\nrego: v0\n"}, "a second document"},
		{"descriptors that are not there", map[string]string{"a.rego": allowAll, "policy.yaml": "descriptors: [api.pb]\n"}, "no file api.pb"},
		{"descriptors that are none", map[string]string{"a.rego": allowAll, "api.pb": "\xff", "policy.yaml": "descriptors: [api.pb]\n"}, "api.pb: no FileDescriptorSet"},
		{"empty descriptors", map[string]string{"a.rego": allowAll, "api.pb": "", "policy.yaml": "descriptors: [api.pb]\n"}, "api.pb: no FileDescriptorSet"},
		{"descriptors outside the folder", map[string]string{"a.rego": allowAll, "policy.yaml": "descriptors: [../api.pb]\n"}, "no file ../api.pb"},
		{"Rego as descriptors", map[string]string{"a.rego": allowAll, "policy.yaml": "descriptors: [a.rego]\n"}, "no file a.rego"},
		{"http.send", map[string]string{"a.rego": "package envoy.authz\nallow if http.send({\"url\": \"http://x\", \"method\": \"get\"})\n"}, "undefined function http.send"},
		{"name look-up", map[string]string{"a.rego": "package envoy.authz\nallow if net.lookup_ip_addr(\"x\")\n"}, "undefined function net.lookup_ip_addr"},
		{"the environment", map[string]string{"a.rego": "package envoy.authz\nallow if opa.runtime().env.HOME\n"}, "undefined function opa.runtime"},
		{"the environment, with a network", map[string]string{"a.rego": "package envoy.authz\nallow if opa.runtime().env.HOME\n", "policy.yaml": "network: [x]\n"}, "undefined function opa.runtime"},
		{"Rego v0 without saying so", map[string]string{"a.rego": "package envoy.authz\nallow { true }\n"}, "a.rego:2:"},
		{"broken JSON data", map[string]string{"a.rego": allowAll, "data.json": "{"}, "data.json"},
		{"a list as data", map[string]string{"a.rego": allowAll, "data.json": "[]"}, "data.json"},
		{"two documents of data", map[string]string{"a.rego": allowAll, "data.json": "{} {}"}, "data.json"},
		{"broken YAML data", map[string]string{"a.rego": allowAll, "x/data.yaml": "a: [\n"}, "x/data.yaml"},
		{"data twice", map[string]string{"a.rego": allowAll, "x/data.json": `{"a": 1}`, "data.yaml": "x: {a: 2}\n"}, "x/data.json: x.a is in another data file too"},
		{"data where rules are", map[string]string{"a.rego": allowAll, "envoy/authz/data.json": `{"allow": true}`}, "conflict"},
		{"a test that fails", map[string]string{"a.rego": allowAll, "a_test.rego": "package a\ntest_x if data.envoy.authz.allow == false\n"}, "a_test.rego:2: test_x failed"},
		{"a test that does not compile", map[string]string{"a.rego": allowAll, "a_test.rego": "package a\ntest_x if y\n"}, "a_test.rego:2:"},
		{"a case that is not met", map[string]string{"a.rego": allowAll, "cases/a.yaml": "description: it denies\ninput: {}\nwant: false\n"}, "cases/a.yaml:1: it denies: got true, want false"},
		{"the second case of a file", map[string]string{"a.rego": allowAll, "cases/a.yaml": "description: a\ninput: {}\nwant: true\n---\n# nothing\n---\ndescription: b\ninput: {}\nwant: false\n"}, ": b: got true"},
		{"a misspelled key in a case", map[string]string{"a.rego": allowAll, "cases/a.yaml": "description: a\ninputs: {}\nwant: true\n"}, "cases/a.yaml:2"},
		{"a case that wants nothing", map[string]string{"a.rego": allowAll, "cases/a.yaml": "description: a\ninput: {}\n"}, "a case needs"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			_, err := policy.LoadFS(t.Context(), mapFS(row.files), policy.Config{})
			if err == nil || !strings.Contains(err.Error(), row.want) || !fault.Is(err, fault.Invalid) {
				t.Errorf("got %v, want %q", err, row.want)
			}
		})
	}
}

func TestDescriptorsMustAgree(t *testing.T) {
	file := func(name, service string, imports ...string) string {
		return string(wire(t, &descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{{Name: proto.String(name),
			Dependency: imports, Service: []*descriptorpb.ServiceDescriptorProto{{Name: proto.String(service)}}}}}))
	}
	rows := []struct {
		name, a, b, want string
	}{
		{"one file in both", file("x.proto", "A"), file("x.proto", "A"), ""},
		{"two files", file("x.proto", "A"), file("y.proto", "B"), ""},
		{"two files of one name", file("x.proto", "A"), file("x.proto", "B"), "b.pb: x.proto is another file"},
		{"one service in two files", file("x.proto", "A"), file("y.proto", "A"), "descriptors:"},
		{"an import that is not there", file("x.proto", "A", "z.proto"), file("y.proto", "B"), "with their imports"},
		{"an import from the other set", file("x.proto", "A", "y.proto"), file("y.proto", "B"), ""},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			files := map[string]string{"a.rego": allowAll, "a.pb": row.a, "b.pb": row.b, "policy.yaml": "descriptors: [a.pb, b.pb]\n"}
			_, err := policy.LoadFS(t.Context(), mapFS(files), policy.Config{})
			if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v, want %q", err, row.want)
			}
		})
	}
}

// TestDescriptorsArePartOfTheRevision: a change of them alone must go live.
func TestDescriptorsArePartOfTheRevision(t *testing.T) {
	revision := func(service string) string {
		set := string(wire(t, &descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{{Name: proto.String("x.proto"),
			Service: []*descriptorpb.ServiceDescriptorProto{{Name: proto.String(service)}}}}}))
		return load(t, map[string]string{"a.rego": allowAll, "api/x.binpb": set, "policy.yaml": "descriptors: [api/x.binpb]\n"}).Revision()
	}
	if revision("A") == revision("B") {
		t.Error("two descriptor sets are one revision")
	}
}

func TestGoodSetsLoad(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"data at any depth, and names with a dot left out": {"a/b/c.rego": "package envoy.authz\nallow if { data.a.b.x == 1; data.y == 2; data.z.w }\n",
			"a/b/data.json": `{"x": 1}`, "data.yaml": "y: 2\n", "z/data.yaml": "w: true\n", ".hidden/b.rego": "broken", ".data.json": "{",
			"README.md": "x", "cases/a.yaml": "description: a\ninput: {}\nwant: true\n"},
		"an empty policy.yaml":            {"a.rego": allowAll, "policy.yaml": "# nothing\n"},
		"http.send with a network":        {"a.rego": "package envoy.authz\nallow if http.send({\"url\": \"http://x\", \"method\": \"get\"}).status_code == 200\n", "policy.yaml": "network: [x]\n"},
		"net.cidr_contains is no network": {"a.rego": "package envoy.authz\nallow if net.cidr_contains(\"10.0.0.0/8\", \"10.0.0.1\")\n", "cases/a.yaml": "description: a\ninput: {}\nwant: true\n"},
		"a policy as opa-envoy-plugin's documents have them": {"policy.rego": `package envoy.authz
import input.attributes.request.http as http_request
default allow := false
allow if { is_token_valid; action_allowed }
is_token_valid if { token.valid; now := time.now_ns() / 1000000000; token.payload.nbf <= now; now < token.payload.exp }
action_allowed if { http_request.method == "POST"; token.payload.role == "admin"; glob.match("/people", ["/"], http_request.path); lower(input.parsed_body.firstname) != base64url.decode(token.payload.sub) }
action_allowed if { input.attributes.metadataContext.filterMetadata["envoy.filters.http.header_to_metadata"].fqn; input.attributes.contextExtensions.x == "y"; input.parsed_query.lang == ["en"]; not input.truncated_body; to_number(input.attributes.request.http.size) < 10; input.version.ext_authz == "v3"; input.attributes.source.address.socketAddress.portValue > 1 }
token := {"valid": valid, "payload": payload} if { [_, encoded] := split(http_request.headers.authorization, " "); [valid, _, payload] := io.jwt.decode_verify(encoded, {"secret": "secret"}) }
`, "policy_test.rego": "package envoy.authz\ntest_nobody if not allow with input as {\"attributes\": {\"request\": {\"http\": {\"method\": \"GET\"}}}}\ntest_other_keys if not allow with input.foo as 1\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := policy.LoadFS(t.Context(), mapFS(files), policy.Config{}); err != nil {
				t.Error(err)
			}
		})
	}
}

// slow is a policy that is busy for as long as anyone lets it.
const slow = `package envoy.authz
allow if {
	some a in numbers.range(1, 100000)
	some b in numbers.range(1, 100000)
	a + b < 0
}
`

func TestLongPoliciesAreCutShort(t *testing.T) {
	set := load(t, map[string]string{"a.rego": slow})
	for name, wait := range map[string]time.Duration{"a deadline of 1 ms": time.Millisecond, "one of 100 ms": 100 * time.Millisecond, "one that has passed": -1} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), wait)
			defer cancel()
			start := time.Now()
			d := set.Decide(ctx, wire(t, message(t, fullRequest)))
			if d.Outcome != authz.Failed || d.Reason != "timeout" {
				t.Error(d)
			}
			if took := time.Since(start); took > wait+5*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// TestSchemasFetchNothing: a $ref to the network in a schema that comes with a policy must not be followed.
func TestSchemasFetchNothing(t *testing.T) {
	set := load(t, map[string]string{"a.rego": "package envoy.authz\nallow if json.match_schema({}, {\"$ref\": \"http://127.0.0.1:1/x\"})[0]\n"})
	if d := set.Decide(t.Context(), wire(t, message(t, fullRequest))); d.Outcome == authz.Allowed {
		t.Error(d)
	}
}
