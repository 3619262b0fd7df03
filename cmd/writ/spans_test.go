package main

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// otlp is a collector that answers as it is told to.
type otlp struct {
	collectorv1.UnimplementedTraceServiceServer
	answer func(ctx context.Context) (*collectorv1.ExportTraceServiceResponse, error) // nil: takes all

	mu     sync.Mutex
	tokens []string
	got    []*tracev1.ResourceSpans
}

func (o *otlp) Export(ctx context.Context, r *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	o.mu.Lock()
	md, _ := metadata.FromIncomingContext(ctx)
	o.tokens = append(o.tokens, strings.Join(md["authorization"], "|"))
	o.got = append(o.got, r.GetResourceSpans()...)
	o.mu.Unlock()
	if o.answer != nil {
		return o.answer(ctx)
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// serve gives the collector an address on loopback.
func (o *otlp) serve(t *testing.T) (endpoint string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(s, o)
	done := make(chan struct{})
	go func() { _ = s.Serve(l); close(done) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return "http://" + l.Addr().String()
}

// traceTo starts tracing every decision; close is for the test to call.
func traceTo(t *testing.T, c tracesConfig, log *slog.Logger) *tracing {
	t.Helper()
	c.Sample = "always"
	traces, err := newTracing(&c, "example.org", log, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return traces
}

// end ends that many spans.
func (t *tracing) end(n int) {
	for range n {
		_, span := t.tracer().Start(context.Background(), "authz.check", trace.WithAttributes(attribute.String("writ.set", "default")))
		span.End()
	}
}

func eventuallyTrue(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never came to it: ", what)
		}
	}
}

func keyValues(list []*commonv1.KeyValue) map[string]string {
	out := map[string]string{}
	for _, a := range list {
		out[a.GetKey()] = a.GetValue().GetStringValue()
	}
	return out
}

func TestSpansReachACollectorOverTLS(t *testing.T) {
	at := &otlp{}
	server := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(server, at)
	secure := httptest.NewUnstartedServer(server)
	secure.EnableHTTP2 = true
	secure.StartTLS()
	defer secure.Close()
	roots, token := filepath.Join(t.TempDir(), "roots.pem"), filepath.Join(t.TempDir(), "token")
	write := func(file string, text []byte) {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}))
	write(token, []byte("first\n"))
	traces := traceTo(t, tracesConfig{Endpoint: secure.URL, Roots: roots, TokenFile: token}, slog.New(slog.DiscardHandler))
	defer traces.close()
	traces.end(1)
	eventuallyTrue(t, "the span is taken", func() bool { return traces.spans.sent.Load() == 1 })
	write(token, []byte("second"))
	traces.end(1)
	eventuallyTrue(t, "the second is taken", func() bool { return traces.spans.sent.Load() == 2 })

	if diff := cmp.Diff([]string{"Bearer first", "Bearer second"}, at.tokens); diff != "" {
		t.Errorf("tokens (-want +got):\n%s", diff)
	}
	host, _ := os.Hostname()
	version, _ := build()
	want := map[string]string{"service.name": "writ", "service.version": version, "host.name": host, "writ.trust_domain": "example.org"}
	if diff := cmp.Diff(want, keyValues(at.got[0].GetResource().GetAttributes())); diff != "" {
		t.Errorf("resource (-want +got):\n%s", diff)
	}
	span := at.got[0].GetScopeSpans()[0].GetSpans()[0]
	if diff := cmp.Diff(map[string]string{"writ.set": "default"}, keyValues(span.GetAttributes())); diff != "" || span.GetName() != "authz.check" {
		t.Errorf("%s (-want +got):\n%s", span.GetName(), diff)
	}
}

// TestCollectorUnderAnotherRootGetsNothing: neither spans nor the token.
func TestCollectorUnderAnotherRootGetsNothing(t *testing.T) {
	at := &otlp{}
	server := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(server, at)
	secure := httptest.NewUnstartedServer(server)
	secure.EnableHTTP2 = true
	secure.StartTLS()
	defer secure.Close()
	traces := traceTo(t, tracesConfig{Endpoint: secure.URL}, slog.New(slog.DiscardHandler))
	traces.end(1)
	traces.close()
	if traces.spans.lost.Load() != 1 || len(at.tokens) != 0 {
		t.Errorf("%d spans lost, %d calls", traces.spans.lost.Load(), len(at.tokens))
	}
}

// TestStuckCollectorHoldsNothingUp: what finds no room is counted, and every span once.
func TestStuckCollectorHoldsNothingUp(t *testing.T) {
	stuck, release := make(chan struct{}, 1), make(chan struct{})
	at := &otlp{answer: func(ctx context.Context) (*collectorv1.ExportTraceServiceResponse, error) {
		select {
		case stuck <- struct{}{}:
		default:
		}
		select {
		case <-release:
		case <-ctx.Done():
		}
		return &collectorv1.ExportTraceServiceResponse{}, ctx.Err()
	}}
	traces := traceTo(t, tracesConfig{Endpoint: at.serve(t)}, slog.New(slog.DiscardHandler))
	traces.end(1)
	<-stuck
	// On a busy machine attempts may run out of time meanwhile and make room, so nothing but the sum is certain.
	ended := uint64(1)
	for traces.spans.full.Load() < 100 {
		traces.end(1)
		if ended++; ended > 100*spansWaiting {
			t.Fatal("the queue has no bound")
		}
	}
	close(release)
	eventuallyTrue(t, "every span is counted once", func() bool {
		return traces.spans.sent.Load()+traces.spans.lost.Load()+traces.spans.full.Load() == ended
	})
	traces.close()
	if sent := traces.spans.sent.Load(); sent == 0 || ended < spansWaiting+100 {
		t.Errorf("%d sent of %d ended, want some, and no more than %d waiting", sent, ended, spansWaiting)
	}
}

func TestDeadCollectorIsToldOfOnceAndEndsSoon(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // nobody is there
	var log bytes.Buffer
	traces := traceTo(t, tracesConfig{Endpoint: "http://" + l.Addr().String()}, slog.New(slog.NewJSONHandler(&log, nil)))
	traces.end(5 * spanBatch)
	eventuallyTrue(t, "an attempt failed", func() bool { return traces.spans.lost.Load() > 0 })
	start := time.Now()
	traces.close()
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("it took %v to end", took)
	}
	if sent, lost := traces.spans.sent.Load(), traces.spans.lost.Load(); sent != 0 || lost != 5*spanBatch {
		t.Errorf("%d sent and %d lost, want none and %d", sent, lost, 5*spanBatch)
	}
	if n := strings.Count(log.String(), "spans not taken"); n != 1 || !strings.Contains(log.String(), "refused") {
		t.Errorf("it was told of %d times, want once and why:\n%s", n, log.String())
	}
}

func TestRefusedSpansAreCounted(t *testing.T) {
	for name, test := range map[string]struct {
		refused int64
		err     error
		sent    uint64
	}{
		"some": {2, nil, 3}, "more than there were": {99, nil, 0}, "a negative number, which is none": {-1, nil, 5}, "all": {0, errors.New("no"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			at := &otlp{answer: func(context.Context) (*collectorv1.ExportTraceServiceResponse, error) {
				return &collectorv1.ExportTraceServiceResponse{PartialSuccess: &collectorv1.ExportTracePartialSuccess{RejectedSpans: test.refused}}, test.err
			}}
			traces := traceTo(t, tracesConfig{Endpoint: at.serve(t)}, slog.New(slog.DiscardHandler))
			defer traces.close()
			traces.spans.send(t.Context(), make(tracetest.SpanStubs, 5).Snapshots())
			if sent, lost := traces.spans.sent.Load(), traces.spans.lost.Load(); sent != test.sent || lost != 5-test.sent {
				t.Errorf("%d sent and %d lost, want %d and %d", sent, lost, test.sent, 5-test.sent)
			}
		})
	}
}

// TestSampling: what the proxy says holds, but for always; a number is for what comes without a trace.
func TestSampling(t *testing.T) {
	proxy := func(flags trace.TraceFlags) context.Context {
		return trace.ContextWithRemoteSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceFlags: flags, Remote: true}))
	}
	for _, row := range []struct {
		sample                     string
		alone, sampled, notSampled bool
	}{
		{"", false, true, false}, {"parent", false, true, false}, {"always", true, true, true}, {"0", false, true, false}, {"1", true, true, false}, {"1.0", true, true, false},
	} {
		t.Run("sample "+row.sample, func(t *testing.T) {
			traces, err := newTracing(&tracesConfig{Endpoint: (&otlp{}).serve(t), Sample: row.sample}, "example.org", slog.New(slog.DiscardHandler), prometheus.NewRegistry())
			if err != nil {
				t.Fatal(err)
			}
			defer traces.close()
			for name, ask := range map[string]struct {
				ctx  context.Context
				want bool
			}{"no trace": {t.Context(), row.alone}, "sampled by the proxy": {proxy(trace.FlagsSampled), row.sampled}, "not sampled by the proxy": {proxy(0), row.notSampled}} {
				_, span := traces.tracer().Start(ask.ctx, "authz.check")
				if span.IsRecording() != ask.want {
					t.Errorf("%s: %v, want %v", name, span.IsRecording(), ask.want)
				}
				span.End()
			}
		})
	}
}
