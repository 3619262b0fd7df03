// Traces that Envoy begins and writ joins, as a collector gets them from both.
package testdomain_test

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	"github.com/writ-dev/writ/internal/testdomain"
)

// collector keeps the spans that it is sent by OTLP.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer
	port int

	mu    sync.Mutex
	spans []sentSpan
}

// sentSpan is a span and who sent it.
type sentSpan struct {
	service string
	*tracev1.Span
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{port: l.Addr().(*net.TCPAddr).Port}
	s := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(s, c)
	done := make(chan struct{})
	go func() { s.Serve(l); close(done) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return c
}

// Export implements the OTLP service.
func (c *collector) Export(_ context.Context, r *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, of := range r.GetResourceSpans() {
		for _, scope := range of.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				c.spans = append(c.spans, sentSpan{attribute(of.GetResource().GetAttributes(), "service.name"), s})
			}
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

func attribute(list []*commonv1.KeyValue, key string) string {
	for _, a := range list {
		if a.GetKey() == key {
			return a.GetValue().GetStringValue()
		}
	}
	return ""
}

// find gives the spans that fit.
func (c *collector) find(fits func(s sentSpan) bool) (out []sentSpan) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if fits(s) {
			out = append(out, s)
		}
	}
	return out
}

// await waits for the one span that fits.
func (c *collector) await(t *testing.T, what string, fits func(s sentSpan) bool) sentSpan {
	t.Helper()
	var found []sentSpan
	testdomain.Until(t, 30*time.Second, "the collector has "+what, func() error {
		if found = c.find(fits); len(found) != 1 {
			return fmt.Errorf("it has %d such spans", len(found))
		}
		return nil
	})
	return found[0]
}

// writTraces is a file for writ dev that sends traces to a port.
func writTraces(t *testing.T, port int) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "dev.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, `agent: {authz: {traces: {endpoint: "http://127.0.0.1:%d"}}}`, port), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestSpansOfDecisionsHangUnderEnvoys(t *testing.T) {
	t.Parallel()
	c := newCollector(t)
	m := newMesh(t, "--config", writTraces(t, c.port))
	m.api.Collector = c.port // web's Envoy does not trace
	m.up(t, "1h")

	// The client says that its trace is not to be sampled, and Envoy heeds it: no span, but the record leads to the trace.
	const quiet, loud = "4bf92f3577b34da6a3ce929d0e0e4736", "5bf92f3577b34da6a3ce929d0e0e4736"
	unsampled, err := m.web.Call("GET", "/orders/7", http.Header{"Traceparent": {"00-" + quiet + "-00f067aa0ba902b7-00"}})
	if err != nil || unsampled.Got == nil {
		t.Fatalf("%+v %v", unsampled, err)
	}
	if d := testdomain.FindDecision(t, m.Decisions, unsampled.Got.Header.Get("X-Writ-Decision-Id")); d.TraceID != quiet {
		t.Errorf("the record names trace %q, want the client's, which Envoy goes on with", d.TraceID)
	}
	// A client of an Envoy that does not trace asks for it in vain.
	forged, err := m.api.Call("GET", "/orders/7", http.Header{"Traceparent": {"00-" + loud + "-00f067aa0ba902b7-01"}})
	if err != nil {
		t.Fatal(err)
	}
	if d := testdomain.FindDecision(t, m.Decisions, forged.Header.Get("X-Writ-Decision-Id")); d.TraceID != "" {
		t.Errorf("the record names trace %q, which only the client knows", d.TraceID)
	}

	for _, row := range []struct{ method, outcome string }{{"GET", "allowed"}, {"DELETE", "denied"}} {
		a, err := m.web.Call(row.method, "/orders/7?token=SECRET", http.Header{"Authorization": {"SECRET"}})
		if err != nil {
			t.Fatal(err)
		}
		id := a.Header.Get("X-Writ-Decision-Id")
		if a.Got != nil {
			id = a.Got.Header.Get("X-Writ-Decision-Id")
		}
		ours := c.await(t, "the span of decision "+id, func(s sentSpan) bool { return attribute(s.GetAttributes(), "writ.decision_id") == id })
		trace := hex.EncodeToString(ours.GetTraceId())
		d := testdomain.FindDecision(t, m.Decisions, id)
		got, want := map[string]string{}, map[string]string{"writ.decision_id": id, "writ.set": "default", "writ.outcome": row.outcome, "writ.reason": "policy",
			"writ.rule": d.Rule, "writ.revision": d.Revision, "writ.source": m.web.ID, "writ.destination": m.api.ID, "http.request.method": row.method}
		for _, a := range ours.GetAttributes() {
			got[a.GetKey()] = a.GetValue().GetStringValue()
		}
		if diff := cmp.Diff(want, got); diff != "" || ours.service != "writ" || ours.GetKind() != tracev1.Span_SPAN_KIND_SERVER || d.TraceID != trace {
			t.Errorf("span of %s, kind %v, its record names trace %s (-want +got):\n%s", ours.service, ours.GetKind(), d.TraceID, diff)
		}
		call := c.await(t, "Envoy's span above it", func(s sentSpan) bool { return string(s.GetSpanId()) == string(ours.GetParentSpanId()) })
		if hex.EncodeToString(call.GetTraceId()) != trace || call.service != "api" || call.GetKind() != tracev1.Span_SPAN_KIND_CLIENT ||
			!strings.Contains(call.GetName(), "Authorization.Check") {
			t.Errorf("above it is %s of %s, want Envoy's call of Check in trace %s", call.Span, call.service, trace)
		}
		c.await(t, "Envoy's span of the request", func(s sentSpan) bool {
			return string(s.GetSpanId()) == string(call.GetParentSpanId()) && s.GetKind() == tracev1.Span_SPAN_KIND_SERVER
		})
	}
	if all := c.find(func(s sentSpan) bool {
		id := hex.EncodeToString(s.GetTraceId())
		return id == quiet || id == loud || s.service == "writ" && strings.Contains(s.String(), "SECRET")
	}); len(all) != 0 {
		t.Errorf("spans of traces that nobody samples, or that say too much: %v", all)
	}
}

func TestDeadCollectorHoldsNoDecisionUp(t *testing.T) {
	t.Parallel()
	dead := testdomain.Port(t)
	m := newMesh(t, "--config", writTraces(t, dead))
	m.api.Collector = dead
	m.up(t, "1h")
	calls := constantly(t, func() (testdomain.Answer, error) { return m.web.Call("GET", "/orders", nil) })
	const lost = `writ_authz_spans_dropped_total{reason="export"}`
	testdomain.Until(t, 60*time.Second, "lost spans are counted", func() error {
		answer, err := http.Get(m.Metrics)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err == nil && (!strings.Contains(string(text), "\n"+lost) || strings.Contains(string(text), "\n"+lost+" 0\n")) {
			err = fmt.Errorf("none yet")
		}
		return err
	})
	calls.more(t, 100)
	calls.allAnswered(t, "while nobody takes spans")
}
