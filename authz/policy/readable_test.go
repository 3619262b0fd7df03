package policy_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/open-policy-agent/opa/v1/ast"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	"github.com/writ-dev/writ/authz"
	"github.com/writ-dev/writ/authz/policy"
)

// readable reads an answer as a proxy does whose protobuf stops at a hundred messages in one another, and holds it to Envoy's rules.
// Of these, it leaves out that statuses have a name in the enum: Envoy itself answers with any number.
func readable(answer []byte) (*authv3.CheckResponse, error) {
	var r authv3.CheckResponse
	if n := levels(r.ProtoReflect().Descriptor(), answer); n > 100 {
		return nil, fmt.Errorf("%d messages in one another", n)
	}
	if err := proto.Unmarshal(answer, &r); err != nil {
		return nil, err
	}
	named := proto.CloneOf(&r)
	if s := named.GetDeniedResponse().GetStatus(); s.GetCode() >= 200 && s.GetCode() <= 599 {
		s.Code = typev3.StatusCode_Forbidden
	}
	return &r, named.ValidateAll()
}

// levels counts the messages that stand in one another below this one, as C++ does: an entry of a map is one too.
func levels(d protoreflect.MessageDescriptor, b []byte) (deepest int) {
	for len(b) > 0 {
		number, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return deepest
		}
		b = b[n:]
		f := d.Fields().ByNumber(number)
		if f != nil && f.Message() != nil && wire == protowire.BytesType {
			content, _ := protowire.ConsumeBytes(b)
			deepest = max(deepest, 1+levels(f.Message(), content))
		}
		if n = protowire.ConsumeFieldValue(number, wire, b); n < 0 {
			return deepest
		}
		b = b[n:]
	}
	return deepest
}

// TestEveryAnswerIsReadable: whatever a policy gives, the proxy can read the answer. One that it cannot read is a failed call to it,
// and those it may be told to let pass.
func TestEveryAnswerIsReadable(t *testing.T) {
	var result ast.Value
	server, err := authz.New(authz.Config{Decider: judge(func(_ context.Context, request []byte) authz.Decision {
		return policy.DecisionOf(result, request)
	})})
	if err != nil {
		t.Fatal(err)
	}
	grpcCall := request(t, map[string]any{"attributes": map[string]any{"request": map[string]any{"http": map[string]any{
		"path": "/a?b=c&%62=d", "headers": map[string]any{"content-type": "application/grpc"}}}}})
	codes := map[typev3.StatusCode]int{}
	rapid.Check(t, func(t *rapid.T) {
		result = drawnResult.Draw(t, "result")
		answer, err := server.Answer(context.Background(), grpcCall)
		if err != nil {
			t.Fatal(err)
		}
		r, err := readable(answer)
		if err != nil {
			t.Fatal("a proxy would not take it: ", err)
		}
		codes[r.GetDeniedResponse().GetStatus().GetCode()]++
	})
	if !testing.Short() && (len(codes) < 3 || codes[0] == 0 || codes[typev3.StatusCode_ServiceUnavailable] == 0) { // short, it makes up twenty
		t.Error("answers were of few kinds:", codes)
	}
}

// judge is a decider that is a function.
type judge func(ctx context.Context, request []byte) authz.Decision

func (j judge) Decide(ctx context.Context, _ string, request []byte) authz.Decision {
	return j(ctx, request)
}

// What policies give: mostly what they should, and anywhere what a client may have put there.
var (
	drawnText = rapid.OneOf(rapid.StringMatching(`[a-z-]{1,8}`), rapid.String(), rapid.SampledFrom([]string{"", "\xff", "a\xc3", "\xed\xa0\x80",
		"\x00", "a\r\nb: c", "é", "\ufffe", "\x85", ":path", "content-length", authz.IDHeader, "a=b&c", "%zz", strings.Repeat("v", 256),
		strings.Repeat("v", 257), strings.Repeat("v", 16<<10), strings.Repeat("\xff", 2000)}))
	drawnName   = rapid.OneOf(rapid.StringMatching(`[a-z]{1,8}`), rapid.StringMatching(`[a-z]{1,8}`), drawnText)
	drawnString = rapid.Map(rapid.OneOf(drawnName, drawnName, drawnName, rapid.Just(strings.Repeat("v", 16<<10+1))),
		func(s string) ast.Value { return ast.String(s) })
	drawnNumber = rapid.SampledFrom([]ast.Value{ast.Number("0"), ast.Number("-0"), ast.Number("1"), ast.Number("16"), ast.Number("100"),
		ast.Number("200"), ast.Number("204"), ast.Number("418"), ast.Number("599"), ast.Number("600"), ast.Number("0.1"), ast.Number("1e308"),
		ast.Number("1e999"), ast.Number("-1e999"), ast.Number("NaN"), ast.Number("Infinity"), ast.Number("12345678901234567890123")})
	drawnScalar  = rapid.OneOf(drawnString, drawnNumber, rapid.SampledFrom([]ast.Value{ast.Null{}, ast.Boolean(true), ast.Boolean(false)}))
	drawnPairs   = drawObject(drawnName, rapid.OneOf(drawnString, drawList(drawnString)))
	drawnHeaders = rapid.OneOf(drawnPairs, drawList(drawnPairs))
	drawnTexts   = drawList(drawnString)

	// drawnTree is a value in so many lists or objects.
	drawnTree = rapid.Custom(func(t *rapid.T) ast.Value {
		v, lists := drawnScalar.Draw(t, "scalar"), rapid.Bool().Draw(t, "lists")
		for range rapid.OneOf(rapid.Just(0), rapid.IntRange(0, 60), rapid.IntRange(0, 600)).Draw(t, "deep") {
			if lists {
				v = ast.NewArray(ast.NewTerm(v))
			} else {
				v = ast.NewObject([2]*ast.Term{ast.StringTerm("k"), ast.NewTerm(v)})
			}
		}
		return v
	})

	drawnResult = rapid.Custom(func(t *rapid.T) ast.Value {
		out := ast.NewObject([2]*ast.Term{ast.StringTerm("allowed"), ast.BooleanTerm(rapid.Bool().Draw(t, "allowed"))})
		for _, key := range []struct {
			name string
			fits *rapid.Generator[ast.Value]
		}{
			{"headers", drawnHeaders}, {"response_headers_to_add", drawnHeaders}, {"request_headers_to_remove", drawnTexts},
			{"query_parameters_to_set", drawnPairs}, {"query_parameters_to_remove", drawnTexts}, {"body", drawnString},
			{"http_status", drawnNumber}, {"grpc_status", drawnNumber}, {"reason", drawnScalar}, {"rule", drawnScalar},
			{"dynamic_metadata", drawObject(drawnName, drawnTree)},
		} {
			switch rapid.IntRange(0, 19).Draw(t, key.name) {
			case 0:
				out.Insert(ast.StringTerm(key.name), ast.NewTerm(drawnTree.Draw(t, key.name)))
			case 1, 2, 3:
				out.Insert(ast.StringTerm(key.name), ast.NewTerm(key.fits.Draw(t, key.name)))
			}
		}
		return out
	})
)

func drawList(of *rapid.Generator[ast.Value]) *rapid.Generator[ast.Value] {
	return rapid.Map(rapid.SliceOfN(of, 0, 3), func(values []ast.Value) ast.Value {
		out := make([]*ast.Term, len(values))
		for i, v := range values {
			out[i] = ast.NewTerm(v)
		}
		return ast.NewArray(out...)
	})
}

func drawObject(key *rapid.Generator[string], of *rapid.Generator[ast.Value]) *rapid.Generator[ast.Value] {
	return rapid.Map(rapid.MapOfN(key, of, 0, 3), func(values map[string]ast.Value) ast.Value {
		out := ast.NewObject()
		for k, v := range values {
			out.Insert(ast.StringTerm(k), ast.NewTerm(v))
		}
		return out
	})
}
