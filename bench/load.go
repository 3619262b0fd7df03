package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	statusv3 "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
)

// concurrency is the number of requests under way at once, over one connection, as an Envoy worker sends them.
const concurrency = 16

// load sends n CheckRequests in turn and prints rate and p99 as JSON. It runs as a process of its own.
func load(ctx context.Context, args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	conn, err := dial(args[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	client, all := authv3.NewAuthorizationClient(conn), requests()
	took := make(samples, n)
	var next atomic.Int64
	var failed atomic.Value
	var wg sync.WaitGroup
	begun := time.Now()
	for range concurrency {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				sent := time.Now()
				if _, err := client.Check(ctx, all[i%len(all)]); err != nil {
					failed.Store(err)
					return
				}
				took[i] = time.Since(sent)
			}
		})
	}
	wg.Wait()
	if err, ok := failed.Load().(error); ok {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(loaded{Rate: float64(n) / time.Since(begun).Seconds(), P99: float64(took.at(0.99).Microseconds())})
}

// checkOnce is nil when the server at the socket decides, and does not only say that it has no policy.
func checkOnce(ctx context.Context, socket string) error {
	conn, err := dial(socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	response, err := authv3.NewAuthorizationClient(conn).Check(ctx, requests()[0])
	if err == nil && response.GetDeniedResponse().GetStatus().GetCode() == 503 {
		err = fmt.Errorf("no policy yet")
	}
	return err
}

// requests are 256 different CheckRequests as Envoy sends them, some of which P1 allows.
func requests() []*authv3.CheckRequest {
	paths := []string{"/api/v1/orders/%d", "/api/v1/products/%d", "/api/v1/users/%d/profile", "/internal/%d"}
	callers := []string{"/ns/shop/sa/web", "/ns/shop/sa/checkout", "/ns/infra/sa/prometheus", "/ns/finance/sa/ledger"}
	var out []*authv3.CheckRequest
	for i := range 256 {
		headers := map[string]string{":authority": "api.mesh.example", ":method": "GET", ":path": fmt.Sprintf(paths[i%4], i), ":scheme": "https",
			"x-forwarded-proto": "https", "x-request-id": fmt.Sprintf("7a1d2c94-5b6e-4f3a-9c8d-%012d", i), "user-agent": "bench/1.0 (load; c=16)"}
		for h := len(headers); h < 20; h++ {
			headers[fmt.Sprintf("x-header-%02d", h)] = fmt.Sprintf("value-%02d-of-the-request-number-%04d", h, i)
		}
		out = append(out, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
			Source:      &authv3.AttributeContext_Peer{Principal: "spiffe://" + benchDomain + callers[(i/4)%4]},
			Destination: &authv3.AttributeContext_Peer{Principal: "spiffe://" + benchDomain + "/ns/shop/sa/api"},
			Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Id: strconv.Itoa(i), Method: "GET",
				Path: headers[":path"], Host: "api.mesh.example", Scheme: "https", Protocol: "HTTP/1.1", Headers: headers}},
		}})
	}
	return out
}

// bareServer decodes the request, because grpc-go does, and answers a constant.
type bareServer struct {
	authv3.UnimplementedAuthorizationServer
	answer *authv3.CheckResponse
}

// Check implements authv3.AuthorizationServer.
func (s *bareServer) Check(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return s.answer, nil
}

// serveFloor is the yardstick. It runs as a process of its own.
func serveFloor(ctx context.Context, socket string) error {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	answer := &authv3.CheckResponse{Status: &statusv3.Status{}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{}}}
	authv3.RegisterAuthorizationServer(s, &bareServer{answer: answer})
	go func() { <-ctx.Done(); s.Stop() }()
	return s.Serve(l)
}
