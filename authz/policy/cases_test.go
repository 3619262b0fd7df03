package policy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/authz"
	"github.com/writ-dev/writ/authz/policy"
	"github.com/writ-dev/writ/internal/strictyaml"
)

// testCase is one document of testdata/cases: a request as protojson has it, and the answer in short. Files are the policy set;
// a document without them goes on with those of the one before.
type testCase struct {
	Description string            `yaml:"description"`
	Files       map[string]string `yaml:"files"`
	Request     map[string]any    `yaml:"request"`
	Want        short             `yaml:"want"`
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
}

func TestCases(t *testing.T) {
	names, err := filepath.Glob("testdata/cases/*.yaml")
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
		var server *authz.Server
		for _, d := range documents {
			var c testCase
			if err := d.Decode(&c); err != nil {
				t.Fatal(err)
			}
			if c.Files != nil {
				server = serve(t, load(t, c.Files))
			}
			t.Run(filepath.Base(name)+"/"+c.Description, func(t *testing.T) {
				got := shorten(t, answer(t, server, request(t, c.Request)))
				if c.Want.Writ == nil {
					got.Writ = nil
				}
				if diff := cmp.Diff(c.Want, got); diff != "" {
					t.Errorf("line %d (-want +got):\n%s", d.Line, diff)
				}
			})
		}
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

func answer(t testing.TB, server *authz.Server, request []byte) *authv3.CheckResponse {
	t.Helper()
	b, err := server.Answer(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	var r authv3.CheckResponse
	if err := proto.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if err := r.ValidateAll(); err != nil {
		t.Error("Envoy would refuse the response:", err)
	}
	return &r
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
	for _, line := range lines(headers) {
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
		switch v := value.(type) {
		case float64:
			if v == float64(uint64(v)) {
				m[key] = uint64(v)
			}
		case map[string]any:
			m[key] = normal(v)
		}
	}
	return m
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
