package policy_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/writ-dev/writ/authz"
	"github.com/writ-dev/writ/authz/policy"
	"github.com/writ-dev/writ/internal/strictyaml"
)

// testCase is one document of ../testdata/*.yaml: a request as protojson has it, and the answer in short. Files are the policy set;
// a document without them goes on with those of the one before.
type testCase struct {
	Description string                    `yaml:"description"`
	Files       map[string]string         `yaml:"files"`
	Descriptors map[string]map[string]any `yaml:"descriptors"` // files too, each a FileDescriptorSet as protojson has it
	Request     map[string]any            `yaml:"request"`
	Wire        string                    `yaml:"wire"` // instead of the request: its bytes, in base64
	Want        short                     `yaml:"want"`
	Plugin      *short                    `yaml:"plugin"` // what opa-envoy-plugin answers, where that is deliberately another answer
}

// short is a CheckResponse without what is in every one: the decision id, the revision.
type short struct {
	HTTP            int               `yaml:"http"`    // 200: allowed
	Headers         []string          `yaml:"headers"` // "name: value", "+name: value" where it is appended
	Remove          []string          `yaml:"remove"`
	ResponseHeaders []string          `yaml:"response_headers"`
	SetQuery        []string          `yaml:"set_query"`
	RemoveQuery     []string          `yaml:"remove_query"`
	Body            string            `yaml:"body"`
	Metadata        map[string]any    `yaml:"metadata"` // the policy's own
	Writ            map[string]string `yaml:"writ"`     // rule and reason; not compared where it is left out
	Error           string            `yaml:"error"`    // instead of an answer: the gRPC code
	Unasked         string            `yaml:"unasked"`  // of the plugin only: why it cannot be asked
}

const casesFolder = "../testdata/"

// cases gives every case by its name, "file: description", and visits them in order with their set's files.
func cases(t testing.TB, visit func(name string, line int, c testCase, files map[string]string)) {
	t.Helper()
	names, err := filepath.Glob(casesFolder + "*.yaml")
	if err != nil || len(names) == 0 {
		t.Fatal("no cases", err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		documents, err := strictyaml.Documents(name, text)
		if err != nil {
			t.Fatal(err)
		}
		var files map[string]string
		for _, d := range documents {
			var c testCase
			if err := d.Decode(&c); err != nil {
				t.Fatal(err)
			}
			if c.Files != nil {
				files = withDescriptors(t, c)
			}
			visit(strings.TrimSuffix(filepath.Base(name), ".yaml")+": "+c.Description, d.Line, c, files)
		}
	}
}

func withDescriptors(t testing.TB, c testCase) map[string]string {
	t.Helper()
	files := maps.Clone(c.Files)
	for name, tree := range c.Descriptors {
		text, err := json.Marshal(tree)
		if err != nil {
			t.Fatal(err)
		}
		var set descriptorpb.FileDescriptorSet
		if err := protojson.Unmarshal(text, &set); err != nil {
			t.Fatal(err)
		}
		files[name] = string(wire(t, &set))
	}
	return files
}

func (c testCase) bytes(t testing.TB) []byte {
	t.Helper()
	if c.Wire == "" {
		return request(t, c.Request)
	}
	b, err := base64.StdEncoding.DecodeString(c.Wire)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCases(t *testing.T) {
	count := 0
	seen := map[string]bool{}
	var server *authz.Server
	cases(t, func(name string, line int, c testCase, files map[string]string) {
		if count++; seen[name] {
			t.Errorf("line %d: a second case %q", line, name)
		}
		seen[name] = true
		if c.Files != nil || server == nil {
			server = serve(t, load(t, files))
		}
		t.Run(name, func(t *testing.T) {
			var got short
			bytes, err := server.Answer(t.Context(), c.bytes(t))
			if err != nil {
				got.Error = status.Code(err).String()
			} else {
				got = shorten(t, parse(t, bytes))
			}
			if c.Want.Writ == nil {
				got.Writ = nil
			}
			if diff := cmp.Diff(c.Want, got); diff != "" {
				t.Errorf("line %d (-want +got):\n%s", line, diff)
			}
		})
	})
	if count < 250 {
		t.Errorf("%d cases", count)
	}
}

func mapFS(files map[string]string) fstest.MapFS {
	out := fstest.MapFS{}
	for name, text := range files {
		out[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return out
}

func load(t testing.TB, files map[string]string) *policy.Set {
	t.Helper()
	set, err := policy.LoadFS(t.Context(), mapFS(files), policy.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// decider makes a Set a Decider.
type decider struct{ *policy.Set }

func (d decider) Decide(ctx context.Context, _ string, request []byte) authz.Decision {
	return d.Set.Decide(ctx, request)
}

func serve(t testing.TB, set *policy.Set) *authz.Server {
	t.Helper()
	server, err := authz.New(authz.Config{Decider: decider{set}})
	if err != nil {
		t.Fatal(err)
	}
	return server
}

func request(t testing.TB, tree map[string]any) []byte {
	t.Helper()
	text, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	var r authv3.CheckRequest
	if err := protojson.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	return wire(t, &r)
}

func wire(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parse(t testing.TB, answer []byte) *authv3.CheckResponse {
	t.Helper()
	r, err := readable(answer)
	if err != nil {
		t.Fatal("a proxy would not take the answer:", err)
	}
	return r
}

// shorten also checks what holds for every answer.
func shorten(t testing.TB, r *authv3.CheckResponse) short {
	t.Helper()
	metadata := r.GetDynamicMetadata().AsMap()
	id, _ := metadata["decision_id"].(string)
	if len(id) < 20 {
		t.Errorf("decision id in metadata is %q", id)
	}
	s := short{HTTP: 200, Body: r.GetDeniedResponse().GetBody()}
	headers := r.GetOkResponse().GetHeaders()
	if denied := r.GetDeniedResponse(); denied != nil {
		s.HTTP, headers = int(denied.GetStatus().GetCode()), denied.GetHeaders()
	}
	if (s.HTTP == 200) != (r.GetStatus().GetCode() == 0) || (r.GetOkResponse() == nil) == (r.GetDeniedResponse() == nil) {
		t.Errorf("the answer contradicts itself: %v", r)
	}
	for i, line := range lines(headers) {
		// Envoy looks at the deprecated field in the one, and loses lines that have it in the other.
		//lint:ignore SA1019 Envoy reads it
		if deprecated := headers[i].GetAppend() != nil; deprecated != (s.HTTP == 200 && strings.HasPrefix(line, "+")) {
			t.Errorf("append of %q is set: %v", line, deprecated)
		}
		if line == authz.IDHeader+": "+id {
			id = ""
			continue
		}
		s.Headers = append(s.Headers, line)
	}
	if id != "" {
		t.Error("no header overwrites the decision id")
	}
	s.Remove = r.GetOkResponse().GetHeadersToRemove()
	s.ResponseHeaders = lines(r.GetOkResponse().GetResponseHeadersToAdd())
	for _, p := range r.GetOkResponse().GetQueryParametersToSet() {
		s.SetQuery = append(s.SetQuery, p.GetKey()+"="+p.GetValue())
	}
	s.RemoveQuery = r.GetOkResponse().GetQueryParametersToRemove()
	ours, _ := metadata["writ"].(map[string]any)
	if len(ours) > 0 {
		s.Writ = map[string]string{}
	}
	for key, value := range ours {
		if key != "revision" {
			s.Writ[key] = fmt.Sprint(value)
		}
	}
	delete(metadata, "decision_id")
	delete(metadata, "writ")
	if len(metadata) > 0 {
		s.Metadata = normal(metadata)
	}
	return s
}

// normal gives numbers the type that YAML gives them.
func normal(m map[string]any) map[string]any {
	for key, value := range m {
		m[key] = normalValue(value)
	}
	return m
}

func normalValue(value any) any {
	switch v := value.(type) {
	case float64:
		if v == float64(uint64(v)) {
			return uint64(v)
		}
	case map[string]any:
		return normal(v)
	case []any:
		for i := range v {
			v[i] = normalValue(v[i])
		}
	}
	return value
}

func lines(headers []*corev3.HeaderValueOption) (out []string) {
	for _, h := range headers {
		line := strings.ToLower(h.GetHeader().GetKey()) + ": " + h.GetHeader().GetValue()
		if h.GetAppendAction() == corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD {
			line = "+" + line
		}
		out = append(out, line)
	}
	return out
}

// What led to an outcome is known for each of them, and is of its kind.
func TestCausesFitTheirOutcomes(t *testing.T) {
	kinds := map[authz.Outcome][]authz.Cause{
		authz.Allowed:   {authz.ByPolicy},
		authz.Denied:    {authz.ByPolicy, authz.Undefined},
		authz.Refused:   {authz.BadTarget, authz.BadMethod, authz.BadBody, authz.TooLarge},
		authz.Failed:    {authz.Evaluation, authz.Unusable},
		authz.Malformed: {authz.BadMessage},
	}
	seen := map[authz.Cause]bool{}
	var set *policy.Set
	cases(t, func(name string, line int, c testCase, files map[string]string) {
		if c.Files != nil || set == nil {
			set = load(t, files)
		}
		d := set.Decide(t.Context(), c.bytes(t))
		if !slices.Contains(kinds[d.Outcome], d.Cause) {
			t.Errorf("%s, line %d: %s by %s", name, line, d.Outcome, d.Cause)
		}
		seen[d.Cause] = true
	})
	for _, list := range kinds {
		for _, c := range list {
			if !seen[c] {
				t.Errorf("no case has the cause %s", c)
			}
		}
	}
}
