package authz_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"

	"github.com/writ-dev/writ/authz"
)

const (
	proxyTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
	proxySpan  = "00f067aa0ba902b7"
	zeroSpan   = "0000000000000000"
)

// traced gives a tracer that samples as its proxy does, or everything, and the spans that it ended.
func traced(t testing.TB, sampler sdktrace.Sampler) (trace.Tracer, *tracetest.InMemoryExporter) {
	t.Helper()
	kept := tracetest.NewInMemoryExporter()
	return sdktrace.NewTracerProvider(sdktrace.WithSyncer(kept), sdktrace.WithSampler(sampler)).Tracer("writ"), kept
}

// byProxy samples what the proxy samples.
func byProxy() sdktrace.Sampler { return sdktrace.ParentBased(sdktrace.NeverSample()) }

func attributes(s tracetest.SpanStub) map[string]string {
	out := map[string]string{}
	for _, a := range s.Attributes {
		out[string(a.Key)] = a.Value.AsString()
	}
	return out
}

func TestSpanSaysWhatBecameOfARequest(t *testing.T) {
	request := authz.Request{Method: "GET", Path: "/a?token=SECRET", Host: "SECRET", Source: "spiffe://a/web", Destination: "spiffe://a/api"}
	odd := request
	odd.Method, odd.Source = "SECRET", "spiffe://a/\xff"
	known := map[string]string{"writ.set": "edge", "writ.outcome": "allowed", "writ.reason": "policy", "writ.rule": "r", "writ.revision": "1",
		"writ.source": "spiffe://a/web", "writ.destination": "spiffe://a/api", "http.request.method": "GET"}
	with := func(pairs ...string) map[string]string {
		out := map[string]string{}
		for k, v := range known {
			out[k] = v
		}
		for i := 0; i < len(pairs); i += 2 {
			if out[pairs[i]] = pairs[i+1]; pairs[i+1] == "" {
				delete(out, pairs[i])
			}
		}
		return out
	}
	for name, test := range map[string]struct {
		decision authz.Decision
		want     map[string]string
		status   codes.Code
	}{
		"allowed": {authz.Decision{Outcome: authz.Allowed, Cause: authz.ByPolicy, Set: "edge", Rule: "r", Revision: "1", Request: request}, known, codes.Unset},
		"denied, which is no error": {authz.Decision{Outcome: authz.Denied, Cause: authz.ByPolicy, Set: "edge", Rule: "r", Revision: "1", Reason: "SECRET", Body: "SECRET", Request: request},
			with("writ.outcome", "denied"), codes.Unset},
		"refused": {authz.Decision{Outcome: authz.Refused, Cause: authz.BadTarget, Set: "edge", Rule: "r", Revision: "1", Reason: "SECRET", Request: request}, with("writ.outcome", "refused", "writ.reason", "target"), codes.Unset},
		"failed": {authz.Decision{Outcome: authz.Failed, Cause: authz.TimedOut, Set: "edge", Rule: "r", Revision: "1", Reason: "SECRET", Request: request},
			with("writ.outcome", "failed", "writ.reason", "timeout"), codes.Error},
		"an answer that cannot be sent": {authz.Decision{Outcome: authz.Allowed, Cause: authz.ByPolicy, Set: "edge", Rule: "r", Revision: "1", Request: request, Body: "SECRET",
			Headers: []authz.Header{{Name: "a", Value: "SECRET\r\n"}}}, with("writ.outcome", "failed", "writ.reason", "unusable"), codes.Error},
		"a method that nobody knows, a principal that is not UTF-8": {authz.Decision{Outcome: authz.Allowed, Cause: authz.ByPolicy, Set: "edge", Rule: "r", Revision: "1", Request: odd},
			with("http.request.method", "_OTHER", "writ.source", "spiffe://a/\uFFFD"), codes.Unset},
		"a set with masking rules of its own": {authz.Decision{Outcome: authz.Allowed, Cause: authz.ByPolicy, Set: "edge", Rule: "r", Revision: "1", Request: request, Masked: true},
			with("http.request.method", "", "writ.source", "", "writ.destination", ""), codes.Unset},
		"the same, its answer cannot be sent": {authz.Decision{Outcome: authz.Allowed, Cause: authz.ByPolicy, Set: "edge", Rule: "r", Revision: "1", Request: request, Masked: true,
			Headers: []authz.Header{{Name: "a", Value: "SECRET\r\n"}}},
			with("writ.outcome", "failed", "writ.reason", "unusable", "http.request.method", "", "writ.source", "", "writ.destination", ""), codes.Error},
		"nothing but an outcome": {authz.Decision{Outcome: authz.Allowed}, map[string]string{"writ.outcome": "allowed", "writ.reason": "internal"}, codes.Unset},
	} {
		t.Run(name, func(t *testing.T) {
			tracer, kept := traced(t, sdktrace.AlwaysSample())
			records := &records{}
			check(t, newServer(t, authz.Config{Decider: always(test.decision), Tracer: tracer, Records: records}), t.Context())
			spans := kept.GetSpans()
			if len(spans) != 1 || len(records.list) != 1 {
				t.Fatalf("%d spans and %d records, want one each", len(spans), len(records.list))
			}
			got := attributes(spans[0])
			if got["writ.decision_id"] != records.list[0].DecisionID || records.list[0].TraceID != spans[0].SpanContext.TraceID().String() {
				t.Errorf("span %v and record %+v do not lead to each other", got, records.list[0])
			}
			delete(got, "writ.decision_id")
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("attributes (-want +got):\n%s", diff)
			}
			if spans[0].Name != "authz.check" || spans[0].SpanKind != trace.SpanKindServer || spans[0].Status.Code != test.status ||
				!spans[0].EndTime.After(spans[0].StartTime) {
				t.Errorf("%s, kind %v, status %v, from %v to %v", spans[0].Name, spans[0].SpanKind, spans[0].Status, spans[0].StartTime, spans[0].EndTime)
			}
			if all := strings.Join(slices.Collect(func(yield func(string) bool) {
				for k, v := range got {
					if !yield(k + v) {
						return
					}
				}
			}), "") + spans[0].Status.Description; strings.Contains(all, "SECRET") {
				t.Errorf("the span shows what the request or the policy said: %s", all)
			}
		})
	}
}

func TestMalformedRequestHasASpan(t *testing.T) {
	tracer, kept := traced(t, sdktrace.AlwaysSample())
	s := newServer(t, authz.Config{Decider: always(authz.Decision{Outcome: authz.Malformed, Cause: authz.BadMessage}), Tracer: tracer})
	if _, err := s.Answer(t.Context(), []byte{1}); err == nil {
		t.Error("no error")
	}
	spans := kept.GetSpans()
	if len(spans) != 1 {
		t.Fatalf("%d spans", len(spans))
	}
	if diff := cmp.Diff(map[string]string{"writ.outcome": "malformed", "writ.reason": "message"}, attributes(spans[0])); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
}

// TestSpanJoinsTheProxysTrace: W3C Trace Context section 3.2, read from the call and from nowhere else.
func TestSpanJoinsTheProxysTrace(t *testing.T) {
	sampled, unsampled := "00-"+proxyTrace+"-"+proxySpan+"-01", "00-"+proxyTrace+"-"+proxySpan+"-00"
	for name, test := range map[string]struct {
		sampler   sdktrace.Sampler
		metadata  []string
		headers   map[string]string // of the request that is asked about
		trace     string            // of the span; empty: no span; "new": one of its own
		parent    string
		inRecords string
	}{
		"the proxy samples":                              {byProxy(), []string{"traceparent", sampled}, nil, proxyTrace, proxySpan, proxyTrace},
		"a version to come":                              {byProxy(), []string{"traceparent", "01-" + proxyTrace + "-" + proxySpan + "-01-more"}, nil, proxyTrace, proxySpan, proxyTrace},
		"the proxy does not sample":                      {byProxy(), []string{"traceparent", unsampled}, nil, "", "", proxyTrace},
		"the proxy does not sample, the agent does":      {sdktrace.AlwaysSample(), []string{"traceparent", unsampled}, nil, proxyTrace, proxySpan, proxyTrace},
		"no context":                                     {byProxy(), nil, nil, "", "", ""},
		"no context, the agent samples":                  {sdktrace.AlwaysSample(), nil, nil, "new", zeroSpan, "new"},
		"the client's header alone":                      {byProxy(), nil, map[string]string{"traceparent": sampled}, "", "", ""},
		"the client's header against the proxy":          {byProxy(), []string{"traceparent", unsampled}, map[string]string{"traceparent": sampled}, "", "", proxyTrace},
		"twice":                                          {byProxy(), []string{"traceparent", sampled, "traceparent", sampled}, nil, "", "", ""},
		"upper case, which section 3.2.2 does not allow": {byProxy(), []string{"traceparent", strings.ToUpper(sampled)}, nil, "", "", ""},
		"a trace of zeros":                               {byProxy(), []string{"traceparent", "00-" + strings.Repeat("0", 32) + "-" + proxySpan + "-01"}, nil, "", "", ""},
		"version ff":                                     {byProxy(), []string{"traceparent", "ff" + sampled[2:]}, nil, "", "", ""},
		"more than version 00 has":                       {byProxy(), []string{"traceparent", sampled + "-00"}, nil, "", "", ""},
		"cut short":                                      {byProxy(), []string{"traceparent", sampled[:50]}, nil, "", "", ""},
		"tracestate, which the client may have written, stays out": {byProxy(), []string{"traceparent", sampled, "tracestate", "a=SECRET"}, nil, proxyTrace, proxySpan, proxyTrace},
	} {
		t.Run(name, func(t *testing.T) {
			tracer, kept := traced(t, test.sampler)
			records := &records{}
			conn := dial(t, newServer(t, authz.Config{Decider: always(authz.Decision{Outcome: authz.Allowed}), Tracer: tracer, Records: records}))
			ctx := metadata.AppendToOutgoingContext(t.Context(), test.metadata...)
			_, err := authv3.NewAuthorizationClient(conn).Check(ctx, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
				Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Headers: test.headers}}}})
			if err != nil {
				t.Fatal(err)
			}
			spans := kept.GetSpans()
			if (len(spans) == 1) != (test.trace != "") || len(spans) > 1 {
				t.Fatalf("%d spans", len(spans))
			}
			recorded := records.list[0].TraceID
			if len(spans) == 0 {
				if recorded != test.inRecords {
					t.Errorf("the record names trace %q, want %q", recorded, test.inRecords)
				}
				return
			}
			got := spans[0].SpanContext.TraceID().String()
			if got != test.trace && (test.trace != "new" || got == proxyTrace) || spans[0].Parent.SpanID().String() != test.parent {
				t.Errorf("trace %s, parent %s, want %s and %s", got, spans[0].Parent.SpanID(), test.trace, test.parent)
			}
			if recorded != got || spans[0].SpanContext.TraceState().Len() != 0 {
				t.Errorf("the record names trace %q, the span is of %s with state %q", recorded, got, spans[0].SpanContext.TraceState())
			}
		})
	}
}

// TestWithoutATracerNothingIsTraced: the context of a call is not even looked at.
func TestWithoutATracerNothingIsTraced(t *testing.T) {
	records := &records{}
	var seen trace.SpanContext
	conn := dial(t, newServer(t, authz.Config{Records: records, Decider: judge(func(ctx context.Context, _ []byte) authz.Decision {
		seen = trace.SpanContextFromContext(ctx)
		return authz.Decision{Outcome: authz.Allowed}
	})}))
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+proxyTrace+"-"+proxySpan+"-01")
	if _, err := authv3.NewAuthorizationClient(conn).Check(ctx, &authv3.CheckRequest{}); err != nil {
		t.Fatal(err)
	}
	if records.list[0].TraceID != "" || seen.IsValid() {
		t.Errorf("the record names trace %q, the decider saw %v", records.list[0].TraceID, seen)
	}
}
