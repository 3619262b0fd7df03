package policy_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/authz"
	"github.com/writ-dev/writ/authz/policy"
)

// benchRequests are 256 distinct requests of about 1.3 KiB with 20 headers.
func benchRequests(t testing.TB) [][]byte {
	paths := []string{"/api/v1/orders/%d", "/api/v1/products/%d?page=2", "/api/v1/payments/%d", "/api/v1/users/%d/profile", "/internal/%d"}
	callers := []string{"ns/shop/sa/web", "ns/shop/sa/profile", "ns/finance/sa/reporting", "ns/infra/sa/prometheus"}
	var out [][]byte
	for i := range 256 {
		path := fmt.Sprintf(paths[i%len(paths)], i)
		headers := map[string]string{":path": path, ":method": "GET", ":authority": "api.mesh.example", "x-forwarded-proto": "https",
			"authorization": "Bearer eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ3ZWIifQ.c2lnbmF0dXJlLW9mLXNvbWUtbGVuZ3Ro", "content-type": "application/json"}
		for h := range 14 {
			headers[fmt.Sprintf("x-header-%d", h)] = fmt.Sprintf("value-%d-of-header-%d", i, h)
		}
		address := func(port uint32) *corev3.Address {
			return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: "10.1.2.3",
				PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port}}}}
		}
		out = append(out, wire(t, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
			Source:      &authv3.AttributeContext_Peer{Address: address(41000), Principal: "spiffe://mesh.example/" + callers[i%len(callers)]},
			Destination: &authv3.AttributeContext_Peer{Address: address(8443), Principal: "spiffe://mesh.example/ns/shop/sa/api"},
			Request: &authv3.AttributeContext_Request{Time: timestamppb.Now(), Http: &authv3.AttributeContext_HttpRequest{Id: fmt.Sprint(i),
				Method: "GET", Path: path, Host: "api.mesh.example", Scheme: "https", Protocol: "HTTP/2", Headers: headers}},
			MetadataContext: &corev3.Metadata{}}}))
	}
	return out
}

func benchSet(t testing.TB, name string) *policy.Set {
	text, err := os.ReadFile("testdata/" + name + ".rego")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"a.rego": string(text)}
	if name == "p4" {
		files["policy.yaml"] = "decision: envoy/authz/result\n"
	}
	return load(t, files)
}

// BenchmarkAnswer is one decision from bytes to bytes, without a transport.
func BenchmarkAnswer(b *testing.B) {
	requests := benchRequests(b)
	for _, name := range []string{"p0", "p1", "p4"} {
		b.Run(name, func(b *testing.B) {
			server := serve(b, benchSet(b, name))
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := server.Answer(b.Context(), requests[i%len(requests)]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCheck is Check over a Unix socket at c=16, beside a bare grpc-go server that decodes the request and answers a constant.
func BenchmarkCheck(b *testing.B) {
	requests := benchRequests(b)
	b.Run("floor", func(b *testing.B) {
		server := grpc.NewServer()
		authv3.RegisterAuthorizationServer(server, floor{})
		load16(b, server, requests)
	})
	for _, name := range []string{"p0", "p1", "p4"} {
		b.Run(name, func(b *testing.B) { load16(b, serve(b, benchSet(b, name)).GRPC(), requests) })
	}
}

type floor struct{}

func (floor) Check(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return &authv3.CheckResponse{}, nil
}

func load16(b *testing.B, server *grpc.Server, requests [][]byte) {
	conn, stop := connect(b, server, grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{encoding.GetCodecV2(proto.Name)})))
	var callers sync.WaitGroup
	const concurrency = 16
	b.ResetTimer()
	for c := range concurrency {
		callers.Go(func() {
			for i := c; i < b.N; i += concurrency {
				var answer []byte
				if err := conn.Invoke(context.Background(), "/envoy.service.auth.v3.Authorization/Check", requests[i%len(requests)], &answer); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	callers.Wait()
	b.StopTimer()
	stop()
}

// connect serves on a Unix socket and connects to it.
func connect(t testing.TB, server *grpc.Server, options ...grpc.DialOption) (conn *grpc.ClientConn, stop func()) {
	t.Helper()
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	conn, err = grpc.NewClient("unix://"+listener.Addr().String(), append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	return conn, func() {
		conn.Close()
		server.Stop()
		serving.Wait()
	}
}

// rawCodec sends and takes bytes, so that the caller costs little.
type rawCodec struct{ encoding.CodecV2 }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// BenchmarkTraces is what traces cost: the same decisions with none, with a call that brings no trace, with a trace that the proxy
// does not sample, and with one that it does. Exporting is not in it.
func BenchmarkTraces(b *testing.B) {
	requests := benchRequests(b)
	set := benchSet(b, "p1")
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.NeverSample()))).Tracer("writ")
	parent := trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, Remote: true}
	unsampled := trace.ContextWithRemoteSpanContext(b.Context(), trace.NewSpanContext(parent))
	parent.TraceFlags = trace.FlagsSampled
	sampled := trace.ContextWithRemoteSpanContext(b.Context(), trace.NewSpanContext(parent))
	for _, row := range []struct {
		name   string
		tracer trace.Tracer
		ctx    context.Context
	}{{"off", nil, sampled}, {"on, no trace", tracer, b.Context()}, {"on, not sampled", tracer, unsampled}, {"on, sampled", tracer, sampled}} {
		b.Run(row.name, func(b *testing.B) {
			server, err := authz.New(authz.Config{Decider: decider{set}, Tracer: row.tracer})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := server.Answer(row.ctx, requests[i%len(requests)]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRecords is what records cost: the same decisions with none, with the ring and its file, and with a masking rule too.
func BenchmarkRecords(b *testing.B) {
	requests := benchRequests(b)
	text, err := os.ReadFile("testdata/p1.rego")
	if err != nil {
		b.Fatal(err)
	}
	files := map[string]string{"a.rego": string(text)}
	ruled := map[string]string{"a.rego": string(text),
		"mask.rego": "package system.log\nmask contains \"/input/attributes/request/http/headers/authorization\"\n"}
	for _, row := range []struct {
		name  string
		files map[string]string
		on    bool
	}{{"off", files, false}, {"on", files, true}, {"on with a masking rule", ruled, true}} {
		b.Run(row.name, func(b *testing.B) {
			config := authz.Config{Decider: decider{load(b, row.files)}}
			var ring *audit.Ring
			if row.on {
				lines, err := audit.OpenRotating(filepath.Join(b.TempDir(), "decisions.jsonl"), audit.Rotation{Size: 100 << 20, Keep: 1})
				if err != nil {
					b.Fatal(err)
				}
				defer lines.Close()
				ring = audit.NewRing(lines, audit.RingConfig{Size: 32 << 10})
				config.Records = ring
			}
			server, err := authz.New(config)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := server.Answer(b.Context(), requests[i%len(requests)]); err != nil {
					b.Fatal(err)
				}
			}
			if ring != nil {
				b.StopTimer()
				_ = ring.Close()
				b.ReportMetric(float64(ring.Count(audit.Written))/float64(b.N), "written/op")
			}
		})
	}
}
