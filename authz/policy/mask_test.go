package policy_test

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/authz"
	"github.com/writ-dev/writ/authz/policy"
)

// maskable is a policy that reads a password, a list and headers.
const maskable = `package envoy.authz
default allow := false
allow if {
	input.parsed_body.password == "SECRET"
	input.parsed_body.cards[_] == "SECRET-1"
	input.attributes.request.http.headers.authorization
	input.attributes.source.principal
}
`

// record decides one request and gives the record as it is written.
func record(t *testing.T, set *policy.Set) (line string, d *audit.Decision) {
	t.Helper()
	decision := set.Decide(t.Context(), wire(t, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: &authv3.AttributeContext_Peer{Principal: "spiffe://mesh.example/web", Address: &corev3.Address{}},
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Method: "POST", Path: "/users/SECRET", Host: "api",
			Headers: map[string]string{"authorization": "Bearer SECRET", "content-type": "application/json"},
			Body:    `{"password": "SECRET", "cards": ["SECRET-1", "SECRET-2", "SECRET-3"], "a/b": "SECRET", "open": "yes"}`}}}}))
	if decision.Outcome != authz.Allowed {
		t.Fatalf("%s: %s", decision.Outcome, decision.Reason)
	}
	var out bytes.Buffer
	ring := audit.NewRing(&out, audit.RingConfig{Size: 8})
	ring.Put(&audit.Decision{Source: decision.Request.Source, Path: decision.Request.Path, Method: decision.Request.Method, Input: decision.Input})
	if err := ring.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := audit.ParseDecision(out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), d
}

func TestSetsMaskTheirRecordsByRule(t *testing.T) {
	const body, http = "/input/parsed_body", "/input/attributes/request/http"
	for name, test := range map[string]struct {
		rule   string
		want   string // of the input, at the parsed body
		erased []string
		masked []string
		failed string
	}{
		"no rule": {"", `{"a/b":"SECRET","cards":["SECRET-1","SECRET-2","SECRET-3"],"open":"yes","password":"SECRET"}`, nil, nil, ""},
		"a pointer is erased": {`mask contains "/input/parsed_body/password"`,
			`{"a/b":"SECRET","cards":["SECRET-1","SECRET-2","SECRET-3"],"open":"yes"}`, []string{body + "/password"}, nil, ""},
		"a value is replaced": {`mask contains {"op": "upsert", "path": "/input/parsed_body/password", "value": "***"}`,
			`{"a/b":"SECRET","cards":["SECRET-1","SECRET-2","SECRET-3"],"open":"yes","password":"***"}`, nil, []string{body + "/password"}, ""},
		"elements of a list are erased, each where it was named": {`mask contains {"op": "remove", "path": "/input/parsed_body/cards/0"}
mask contains "/input/parsed_body/cards/1"`,
			`{"a/b":"SECRET","cards":["[masked]","[masked]","SECRET-3"],"open":"yes","password":"SECRET"}`, []string{body + "/cards/0", body + "/cards/1"}, nil, ""},
		"a key with a slash is escaped": {`mask contains "/input/parsed_body/a~1b"`,
			`{"cards":["SECRET-1","SECRET-2","SECRET-3"],"open":"yes","password":"SECRET"}`, []string{body + "/a~1b"}, nil, ""},
		"what is not there is not named": {`mask contains "/input/parsed_body/nothing/there"`,
			`{"a/b":"SECRET","cards":["SECRET-1","SECRET-2","SECRET-3"],"open":"yes","password":"SECRET"}`, nil, nil, ""},
		"the rule reads what the policy does not": {`mask contains "/input/parsed_body" if input.input.attributes.request.http.method == "POST"`,
			"", []string{body}, nil, ""},
		"the rule reads the result": {`mask contains "/input/parsed_body" if input.result == true`, "", []string{body}, nil, ""},
		"the rule does not hold": {`mask contains "/input/parsed_body" if input.input.attributes.request.http.method == "GET"`,
			`{"a/b":"SECRET","cards":["SECRET-1","SECRET-2","SECRET-3"],"open":"yes","password":"SECRET"}`, nil, nil, ""},
		"an array, as OPA takes it": {`mask := ["/input/parsed_body"]`, "", []string{body}, nil, ""},
		"all of the input":          {`mask contains "/input"`, "", []string{"/input"}, nil, ""},
		"the path, which the record repeats": {`mask contains "/input/attributes/request/http/path"
mask contains "/input/parsed_body"`, "", []string{http + "/path", body}, nil, ""},
		"a path that leads nowhere allowed": {`mask contains "/labels/x"`, "", []string{"/input"}, nil, "begins with neither"},
		"an unknown operation":              {`mask contains {"op": "hide", "path": "/input/parsed_body"}`, "", []string{"/input"}, nil, "mask op"},
		"a number among the rules":          {`mask contains 1`, "", []string{"/input"}, nil, "a mask rule of type"},
		"no list at all":                    {`mask := "/input"`, "", []string{"/input"}, nil, "neither a set nor an array"},
		"two rules that contradict":         {"mask := [1]\nmask := [2] if input.input", "", []string{"/input"}, nil, "conflict"},
		"a rule that takes too long":        {`mask contains "/input/x" if { some a in numbers.range(1, 10000); some b in numbers.range(1, 10000); a * b == -1 }`, "", []string{"/input"}, nil, "deadline"},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{"a.rego": maskable, "policy.yaml": "record: {body: true}\n"}
			if test.rule != "" {
				files["mask.rego"] = "package system.log\n" + test.rule + "\n"
			}
			line, d := record(t, load(t, files))
			var input struct {
				Body json.RawMessage `json:"parsed_body"`
			}
			if text, ok := d.Input.(json.RawMessage); ok {
				if err := json.Unmarshal(text, &input); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(test.want, string(input.Body)); diff != "" {
				t.Errorf("parsed body (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff([][]string{test.erased, test.masked}, [][]string{d.Erased, d.Masked}); diff != "" {
				t.Errorf("erased and masked (-want +got):\n%s", diff)
			}
			if !strings.Contains(d.MaskError, test.failed) || (test.failed == "") != (d.MaskError == "") {
				t.Errorf("mask error %q, want %q", d.MaskError, test.failed)
			}
			if test.failed != "" && strings.Contains(line, "SECRET") {
				t.Errorf("masking failed and the record shows %s", line)
			}
			if strings.Contains(line, "Bearer") {
				t.Errorf("the header that is hidden by default shows: %s", line)
			}
			if strings.HasPrefix(name, "the path") && strings.Contains(line, "SECRET") {
				t.Errorf("the path shows elsewhere: %s", line)
			}
		})
	}
}

func TestMaskingMayShowAHashOfWhatIsHidden(t *testing.T) {
	set := load(t, map[string]string{"a.rego": maskable, "mask.rego": `package system.log
mask contains {"op": "upsert", "path": p, "value": crypto.sha256(input.input.attributes.request.http.headers.authorization)} if {
	p := "/input/attributes/request/http/headers/authorization"
}`})
	line, d := record(t, set)
	if len(d.Masked) != 1 || !regexp.MustCompile(`"authorization":"[0-9a-f]{64}"`).MatchString(line) || strings.Contains(string(d.Input.(json.RawMessage)), "SECRET") {
		t.Errorf("masked %q in %s", d.Masked, line)
	}
}

func TestMaskIsTestedAndTypedWithItsSet(t *testing.T) {
	good := map[string]string{"a.rego": maskable, "mask.rego": "package system.log\nmask contains \"/input/parsed_body\" if input.input.parsed_body",
		"mask_test.rego": "package system.log_test\nimport data.system.log\ntest_mask if log.mask == {\"/input/parsed_body\"} with input as {\"input\": {\"parsed_body\": 1}}"}
	load(t, good)
	good["a.rego"] += "\nallow if input.atributes\n"
	if _, err := policy.LoadFS(t.Context(), mapFS(good), policy.Config{}); err == nil {
		t.Error("a set with a masking rule reads a misspelled input and loads")
	}
}

// TestSetWithMaskingRulesSaysSo: what else shows a request, such as a span, does not know the rules and must leave it out.
func TestSetWithMaskingRulesSaysSo(t *testing.T) {
	for name, test := range map[string]struct {
		files map[string]string
		want  bool
	}{
		"none":                       {map[string]string{"a.rego": maskable}, false},
		"a rule":                     {map[string]string{"a.rego": maskable, "mask.rego": "package system.log\nmask contains \"/input/attributes/source\"\n"}, true},
		"a rule that masks nothing":  {map[string]string{"a.rego": maskable, "mask.rego": "package system.log\nmask contains \"/input/x\" if false\n"}, true},
		"another rule of that place": {map[string]string{"a.rego": maskable, "mask.rego": "package system.other\nmask contains \"/input/x\"\n"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			d := load(t, test.files).Decide(t.Context(), wire(t, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
				Source: &authv3.AttributeContext_Peer{Principal: "spiffe://mesh.example/web"}}}))
			if d.Masked != test.want {
				t.Errorf("it says %v, want %v: %s %s", d.Masked, test.want, d.Outcome, d.Reason)
			}
		})
	}
}
