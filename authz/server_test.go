package authz_test

import (
	"context"
	"math"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/authz"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// judge is a Decider made of a function.
type judge func(ctx context.Context, request []byte) authz.Decision

func (j judge) Decide(ctx context.Context, _ string, request []byte) authz.Decision {
	return j(ctx, request)
}

func always(d authz.Decision) judge {
	return func(context.Context, []byte) authz.Decision { return d }
}

// records keeps what is put into it.
type records struct {
	mu   sync.Mutex
	list []*audit.Decision
}

func (r *records) Put(d *audit.Decision) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, d)
	return true
}

func newServer(t testing.TB, c authz.Config) *authz.Server {
	t.Helper()
	s, err := authz.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func check(t testing.TB, s *authz.Server, ctx context.Context) *authv3.CheckResponse {
	t.Helper()
	b, err := s.Answer(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	var r authv3.CheckResponse
	if err := proto.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if r.GetDynamicMetadata().GetFields()["decision_id"].GetStringValue() == "" {
		t.Error("no decision id in", &r)
	}
	return &r
}

// dial serves on a Unix socket and connects to it.
func dial(t testing.TB, s *authz.Server) *grpc.ClientConn {
	t.Helper()
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := s.GRPC()
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(listener) })
	conn, err := grpc.NewClient("unix://"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); server.Stop(); wg.Wait() })
	return conn
}

func TestFailuresAreDeniedAnswers(t *testing.T) {
	expired, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	patient := judge(func(ctx context.Context, _ []byte) authz.Decision {
		<-ctx.Done()
		return authz.Fail(authz.TimedOut, "timeout")
	})
	rows := []struct {
		name    string
		decider authz.Decider
		ctx     context.Context
	}{
		{"the zero decision", always(authz.Decision{}), t.Context()},
		{"a decider that panics", judge(func(context.Context, []byte) authz.Decision { panic("x") }), t.Context()},
		{"a decider that does not end by itself", patient, t.Context()},
		{"a deadline that has passed", patient, expired},
		{"a header that would be two", always(authz.Decision{Outcome: authz.Allowed, Headers: []authz.Header{{"a", "b\r\nc: d"}}}), t.Context()},
		{"a status that is none", always(authz.Decision{Outcome: authz.Denied, Status: 1 << 33}), t.Context()},
		{"a body that is not UTF-8", always(authz.Decision{Outcome: authz.Denied, Body: "\xff"}), t.Context()},
		{"a header value over 16 KiB", always(authz.Decision{Outcome: authz.Allowed, Headers: []authz.Header{{"a", strings.Repeat("x", 16<<10+1)}}}), t.Context()},
		{"more than 1,000 headers", always(authz.Decision{Outcome: authz.Allowed, RemoveHeaders: slices.Repeat([]string{"a"}, 1001)}), t.Context()},
		{"a body over 1 MiB", always(authz.Decision{Outcome: authz.Denied, Body: strings.Repeat("x", 1<<20)}), t.Context()},
		{"metadata over 1 MiB", always(authz.Decision{Outcome: authz.Allowed, Metadata: large(t)}), t.Context()},
		{"metadata of 44 lists", always(authz.Decision{Outcome: authz.Denied, Metadata: nested(t, 44, listOf)}), t.Context()},
		{"metadata of 30 objects", always(authz.Decision{Outcome: authz.Denied, Metadata: nested(t, 30, objectOf)}), t.Context()},
		{"metadata of 5,000 lists", always(authz.Decision{Outcome: authz.Denied, Metadata: nested(t, 5000, listOf)}), t.Context()},
		{"NaN in metadata", always(authz.Decision{Outcome: authz.Denied, Metadata: structOf(t, structpb.NewNumberValue(math.NaN()))}), t.Context()},
		{"an infinity in metadata", always(authz.Decision{Outcome: authz.Denied, Metadata: structOf(t, structpb.NewNumberValue(math.Inf(-1)))}), t.Context()},
		{"a text in metadata that is not UTF-8", always(authz.Decision{Outcome: authz.Denied, Metadata: []byte("\x0a\x08\x0a\x01k\x12\x03\x1a\x01\xff")}), t.Context()},
		{"a key of metadata that is not UTF-8", always(authz.Decision{Outcome: authz.Denied, Metadata: []byte("\x0a\x08\x0a\x01\xff\x12\x03\x1a\x01v")}), t.Context()},
		{"bytes that are no metadata", always(authz.Decision{Outcome: authz.Denied, Metadata: []byte("\x0a\x08\x0a\x01k")}), t.Context()},
		{"an unknown outcome", always(authz.Decision{Outcome: 0}), t.Context()},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			kept := &records{}
			s := newServer(t, authz.Config{Decider: row.decider, Timeout: 20 * time.Millisecond, Records: kept})
			if r := check(t, s, row.ctx); r.GetDeniedResponse().GetStatus().GetCode() != 503 || r.GetStatus().GetCode() == 0 {
				t.Error(r)
			}
			if len(kept.list) != 1 || kept.list[0].Allow || kept.list[0].Reason == "" && row.name != "the zero decision" && row.name != "an unknown outcome" {
				t.Error("recorded:", kept.list)
			}
		})
	}
}

// structOf is a Struct of one value.
func structOf(t testing.TB, v *structpb.Value) []byte {
	t.Helper()
	b, err := proto.Marshal(&structpb.Struct{Fields: map[string]*structpb.Value{"k": v}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// large is metadata of over 1 MiB.
func large(t testing.TB) []byte {
	return structOf(t, structpb.NewStringValue(strings.Repeat("x", 1<<20)))
}

// nested is metadata of one text in so many lists or objects.
func nested(t testing.TB, n int, in func(*structpb.Value) *structpb.Value) []byte {
	v := structpb.NewStringValue("x")
	for range n {
		v = in(v)
	}
	return structOf(t, v)
}

func listOf(v *structpb.Value) *structpb.Value {
	return structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{v}})
}

func objectOf(v *structpb.Value) *structpb.Value {
	return structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"k": v}})
}

// TestLargeAnswersAreSent: what stands at the bounds goes out.
func TestLargeAnswersAreSent(t *testing.T) {
	for name, d := range map[string]authz.Decision{
		"a header value of 16 KiB": {Outcome: authz.Allowed, Headers: []authz.Header{{"a", strings.Repeat("x", 16<<10)}}},
		"metadata of 43 lists":     {Outcome: authz.Denied, Metadata: nested(t, 43, listOf)},
		"metadata of 29 objects":   {Outcome: authz.Denied, Metadata: nested(t, 29, objectOf)},
		"1,000 headers":            {Outcome: authz.Allowed, RemoveHeaders: slices.Repeat([]string{"a"}, 1000)},
		"a body of nearly 1 MiB":   {Outcome: authz.Denied, Body: strings.Repeat("x", 1<<20-1024)},
	} {
		t.Run(name, func(t *testing.T) {
			r := check(t, newServer(t, authz.Config{Decider: always(d)}), t.Context())
			if code := r.GetDeniedResponse().GetStatus().GetCode(); code == 503 {
				t.Error("it was not sent")
			}
		})
	}
}

func TestRecord(t *testing.T) {
	kept := &records{}
	now := time.Date(2026, 11, 24, 5, 0, 0, 0, time.UTC)
	s := newServer(t, authz.Config{Records: kept, Now: func() time.Time { return now }, Decider: always(authz.Decision{Outcome: authz.Denied, Reason: "no", Rule: "r",
		Revision: "1", Input: "i", Request: authz.Request{Method: "GET", Path: "/a?token=secret", Host: "h", Source: "s", Destination: "d"}})})
	check(t, s, t.Context())
	check(t, s, t.Context())
	want := audit.Decision{Time: now, Revision: "1", Source: "s", Destination: "d", Method: "GET", Path: "/a", Host: "h", Reason: "no", Rule: "r", Input: "i", Outcome: "denied", Weight: 1}
	if diff := cmp.Diff(want, *kept.list[0], cmpopts.IgnoreFields(audit.Decision{}, "DecisionID")); diff != "" {
		t.Error(diff)
	}
	if kept.list[0].DecisionID == kept.list[1].DecisionID {
		t.Error("two decisions have one id")
	}
}

func TestCheckOverGRPC(t *testing.T) {
	request := &authv3.CheckRequest{Attributes: &authv3.AttributeContext{ContextExtensions: map[string]string{"a": strings.Repeat("x", 100_000)}}}
	registry := prometheus.NewRegistry()
	s := newServer(t, authz.Config{Reflection: true, Registerer: registry, Decider: judge(func(_ context.Context, b []byte) authz.Decision {
		var got authv3.CheckRequest
		if err := proto.Unmarshal(b, &got); err != nil {
			return authz.Decision{Outcome: authz.Malformed}
		}
		if !proto.Equal(&got, request) {
			return authz.Decision{Outcome: authz.Denied}
		}
		return authz.Decision{Outcome: authz.Allowed}
	})})
	conn := dial(t, s)
	r, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), request)
	if err != nil || r.GetOkResponse() == nil {
		t.Error(r, err)
	}
	request.Attributes.ContextExtensions["a"] = strings.Repeat("x", authz.MaxMessage)
	if _, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), request); status.Code(err) != codes.ResourceExhausted {
		t.Error("a message over 4 MiB:", err)
	}
	want := "# HELP writ_decisions_total Requests decided, by policy set, outcome and what led to it.\n# TYPE writ_decisions_total counter\n" +
		"writ_decisions_total{outcome=\"allowed\",reason=\"internal\",set=\"none\"} 1\nwrit_decisions_total{outcome=\"malformed\",reason=\"size\",set=\"none\"} 1\n"
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "writ_decisions_total"); err != nil {
		t.Error(err)
	}
	err = conn.Invoke(t.Context(), "/envoy.service.auth.v3.Authorization/Check", &grpc_health_v1.HealthCheckRequest{Service: "\x0f"}, &authv3.CheckResponse{})
	if status.Code(err) != codes.InvalidArgument {
		t.Error("bytes that are no CheckRequest:", err)
	}
	if h, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil || h.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Error("health:", h, err)
	}
	if !strings.Contains(services(t, conn), "envoy.service.auth.v3.Authorization") {
		t.Error("reflection does not name the service")
	}
	families, err := registry.Gather()
	if err != nil || len(families) != 2 {
		t.Error("metrics:", families, err)
	}
}

func services(t testing.TB, conn *grpc.ClientConn) string {
	t.Helper()
	stream, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ask := &grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_FileContainingSymbol{
		FileContainingSymbol: "envoy.service.auth.v3.Authorization"}}
	if err := stream.Send(ask); err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Recv(); err != nil || r.GetErrorResponse() != nil {
		t.Error(r, err)
	}
	ask.MessageRequest = &grpc_reflection_v1.ServerReflectionRequest_ListServices{}
	if err := stream.Send(ask); err != nil {
		t.Fatal(err)
	}
	r, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return r.String()
}

// TestManyCallers: buffers of requests and answers must not be mixed up.
func TestManyCallers(t *testing.T) {
	conn := dial(t, newServer(t, authz.Config{Decider: judge(func(_ context.Context, b []byte) authz.Decision {
		var got authv3.CheckRequest
		if err := proto.Unmarshal(b, &got); err != nil {
			return authz.Decision{Outcome: authz.Malformed}
		}
		return authz.Decision{Outcome: authz.Denied, Body: got.GetAttributes().GetSource().GetPrincipal()}
	})}))
	var wg sync.WaitGroup
	for c := range 16 {
		wg.Go(func() {
			for i := range 50 {
				name := strings.Repeat(string(rune('a'+c)), 1+i*97)
				r, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
					Source: &authv3.AttributeContext_Peer{Principal: name}}})
				if err != nil || r.GetDeniedResponse().GetBody() != name {
					t.Error("another's answer, or none:", err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// FuzzEncode: whatever a policy says, the answer is an error or one that protobuf, Envoy's own rules and ours take.
func FuzzEncode(f *testing.F) {
	f.Fuzz(func(t *testing.T, allow bool, code int, path, name, value, body, reason string, metadata []byte) {
		if !utf8.ValidString(path) {
			return // such a request is malformed
		}
		d := authz.Decision{Outcome: authz.Denied, Status: code, Reason: reason, ShowReason: true, Rule: reason, Body: body,
			Headers: []authz.Header{{name, value}, {name, value}, {"x-writ-decision-id", "forged"}}, RemoveHeaders: []string{name, "X-Writ-Decision-Id"},
			ResponseHeaders: []authz.Header{{name, value}}, SetQuery: []authz.Parameter{{name, value}}, RemoveQuery: []string{value + "x"},
			Request: authz.Request{Path: path}}
		var s structpb.Struct
		if proto.Unmarshal(metadata, &s) == nil {
			d.Metadata = metadata // the decider makes no other
		}
		if allow {
			d.Outcome = authz.Allowed
		}
		b, err := authz.Encode(d, "ID")
		if err != nil {
			return
		}
		var r authv3.CheckResponse
		if err := proto.Unmarshal(b, &r); err != nil {
			t.Fatal(err)
		}
		checkSent(t, &r)
		if s := r.GetDeniedResponse().GetStatus(); s.GetCode() >= 200 && s.GetCode() <= 599 {
			s.Code = typev3.StatusCode_Forbidden // Envoy's rules know few numbers, Envoy answers with any
		}
		if err := r.ValidateAll(); err != nil {
			t.Fatal(err)
		}
		if (r.GetStatus().GetCode() == 0) != allow || (r.GetOkResponse() != nil) != allow || r.GetErrorResponse() != nil {
			t.Fatal("the answer is not the decision:", &r)
		}
	})
}

var (
	sentName    = regexp.MustCompile("^[0-9A-Za-z!#$%&'*+.^_`|~-]{1,256}$")
	sentControl = regexp.MustCompile("[\x00-\x08\x0a-\x1f\x7f]")
	sentRaw     = regexp.MustCompile(`[^!$%'()*+,./0-9:=?@A-Z\[\]_a-z~-]`) // what cannot stand in a parameter as it is
)

// checkSent holds what leaves to what a message may be made of.
func checkSent(t *testing.T, r *authv3.CheckResponse) {
	ids := 0
	headers := slices.Concat(r.GetOkResponse().GetHeaders(), r.GetDeniedResponse().GetHeaders(), r.GetOkResponse().GetResponseHeadersToAdd())
	for _, h := range headers {
		key, value := h.GetHeader().GetKey(), h.GetHeader().GetValue()
		if !sentName.MatchString(key) || sentControl.MatchString(value) || len(value) > 16<<10 {
			t.Fatalf("header %q: %q", key, value)
		}
		if strings.EqualFold(key, authz.IDHeader) {
			ids++
		}
	}
	if ids != 1 || r.GetDynamicMetadata().GetFields()["decision_id"].GetStringValue() != "ID" {
		t.Fatal("the decision id is not the one it is:", r)
	}
	for _, name := range r.GetOkResponse().GetHeadersToRemove() {
		if !sentName.MatchString(name) || strings.EqualFold(name, authz.IDHeader) {
			t.Fatalf("header %q is removed", name)
		}
	}
	for _, name := range r.GetOkResponse().GetQueryParametersToRemove() {
		if name == "" || sentControl.MatchString(name) {
			t.Fatalf("parameter %q is removed", name)
		}
	}
	for _, p := range r.GetOkResponse().GetQueryParametersToSet() {
		if p.GetKey() == "" || sentRaw.MatchString(p.GetKey()) || strings.Contains(p.GetKey(), "=") || sentRaw.MatchString(p.GetValue()) {
			t.Fatalf("parameter %q: %q", p.GetKey(), p.GetValue())
		}
	}
}

func TestParseTarget(t *testing.T) {
	for raw, want := range map[string]authz.Target{"/a%20b?c=%2F": {Path: "/a b", Query: "c=%2F"}, "": {}, "/?": {Path: "/"}, "/a?b?c": {Path: "/a", Query: "b?c"}} {
		got, err := authz.ParseTarget(raw, false)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Error(raw, err, diff)
		}
	}
}

// FuzzParseTarget: what the rule lets through has one reading: cleaning its path changes nothing but a trailing slash.
func FuzzParseTarget(f *testing.F) {
	for _, seed := range []string{"/a/b", "/a/%2e%2e/b", "/a;b/..;c", "//", "/%5c"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		target, err := authz.ParseTarget(raw, false)
		if err != nil || !strings.HasPrefix(target.Path, "/") || target.Path == "/" {
			return
		}
		if clean := filepath.Clean(target.Path); clean != strings.TrimSuffix(target.Path, "/") || strings.ContainsAny(target.Path, "\\\x00") {
			t.Errorf("%q reads as %q and %q", raw, target.Path, clean)
		}
	})
}

// TestWhatCannotBeSentIsDenied: no bytes at all would be a response that allows. What stands in for an unusable decision, or for one without
// its record, always encodes.
func TestWhatCannotBeSentIsDenied(t *testing.T) {
	long := strings.Repeat("é\n\xff", 1<<20)
	for name, d := range map[string]authz.Decision{
		"a header of two lines":    {Outcome: authz.Allowed, Headers: []authz.Header{{"a", "b\nc"}}},
		"an answer of over 1 MiB":  {Outcome: authz.Denied, Body: strings.Repeat("x", 2<<20), Metadata: []byte("\xff")},
		"a name to remove":         {Outcome: authz.Allowed, RemoveQuery: []string{""}},
		"metadata of over 1 MiB":   {Outcome: authz.Allowed, Metadata: make([]byte, 2<<20)},
		"a refusal of a long text": {Outcome: authz.Refused},
	} {
		t.Run(name, func(t *testing.T) {
			d.Reason, d.Rule, d.ShowReason, d.Revision = long, long, true, "revision"
			for _, c := range []authz.Config{{}, {Records: fullRing{}, Required: true}} {
				c.Decider = always(d)
				r := check(t, newServer(t, c), t.Context())
				if r.GetStatus().GetCode() != int32(codes.PermissionDenied) || r.GetDeniedResponse().GetStatus().GetCode() < 400 {
					t.Error("it is not denied:", r.GetStatus())
				}
			}
		})
	}
}

// fullRing takes records of one caller only.
type fullRing struct{}

func (fullRing) Put(d *audit.Decision) bool { return d.Source == "other" }

func TestRequiredRecordThatFindsNoRoomDenies(t *testing.T) {
	for name, test := range map[string]struct {
		outcome  authz.Outcome
		source   string
		required bool
		want     typev3.StatusCode // 0: allowed
	}{
		"allowed, not required":                    {authz.Allowed, "a", false, 0},
		"allowed, required":                        {authz.Allowed, "a", true, typev3.StatusCode_ServiceUnavailable},
		"allowed, required, from one who has room": {authz.Allowed, "other", true, 0},
		"denied, not required":                     {authz.Denied, "a", false, typev3.StatusCode_Forbidden},
		"denied, required":                         {authz.Denied, "a", true, typev3.StatusCode_ServiceUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, authz.Config{Records: fullRing{}, Required: test.required, Decider: always(authz.Decision{Outcome: test.outcome,
				Headers: []authz.Header{{"x-secret", "of the policy"}}, Request: authz.Request{Source: test.source}})})
			r := check(t, s, t.Context())
			if got := r.GetDeniedResponse().GetStatus().GetCode(); got != test.want || (test.want == 0) != (r.GetStatus().GetCode() == int32(codes.OK)) {
				t.Errorf("HTTP status %v and gRPC status %v, want %v", got, r.GetStatus(), test.want)
			}
			if test.want == typev3.StatusCode_ServiceUnavailable && strings.Contains(r.String(), "x-secret") {
				t.Errorf("the answer still holds the policy's headers: %v", r)
			}
		})
	}
}

// Each decision is counted by its set, its outcome and what led to it, also one that no outcome or cause is known for.
func TestDecisionsAreCounted(t *testing.T) {
	decisions := []authz.Decision{
		{Set: "a", Outcome: authz.Allowed, Cause: authz.ByPolicy},
		{Set: "b", Outcome: authz.Denied, Cause: authz.Undefined},
		authz.Refuse(authz.BadTarget, "no"),
		authz.Fail(authz.Shed, "no"),
		{Set: "a", Outcome: authz.Malformed, Cause: authz.BadMessage},
		{Set: "a", Outcome: 77, Cause: authz.ByPolicy},
		{Set: "a", Outcome: authz.Denied, Cause: 77},
	}
	metrics := prometheus.NewRegistry()
	next := 0
	s := newServer(t, authz.Config{Registerer: metrics, Decider: judge(func(context.Context, []byte) authz.Decision { next++; return decisions[next-1] })})
	for range decisions {
		s.Answer(t.Context(), nil)
	}
	want := `
		# HELP writ_decisions_total Requests decided, by policy set, outcome and what led to it.
		# TYPE writ_decisions_total counter
		writ_decisions_total{outcome="allowed",reason="policy",set="a"} 1
		writ_decisions_total{outcome="denied",reason="undefined",set="b"} 1
		writ_decisions_total{outcome="failed",reason="internal",set="a"} 2
		writ_decisions_total{outcome="failed",reason="shed",set="none"} 1
		writ_decisions_total{outcome="malformed",reason="message",set="a"} 1
		writ_decisions_total{outcome="refused",reason="target",set="none"} 1
	`
	if err := testutil.GatherAndCompare(metrics, strings.NewReader(want), "writ_decisions_total"); err != nil {
		t.Error(err)
	}
}
