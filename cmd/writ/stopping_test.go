package main

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/writ-dev/writ/authz"
)

// deciderFunc is a decision as a test wants it.
type deciderFunc func(ctx context.Context) authz.Decision

func (f deciderFunc) Decide(ctx context.Context, _ string, _ []byte) authz.Decision { return f(ctx) }

// serveDecider gives a decider behind its gRPC server, as a daemon runs it, what its Serve gives, and a caller's answer.
func serveDecider(t *testing.T, decide deciderFunc) (s *grpc.Server, socket string, serving *errgroup.Group) {
	t.Helper()
	decisions, err := authz.New(authz.Config{Decider: decide})
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(t.TempDir(), "authz.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s, serving = decisions.GRPC(), new(errgroup.Group)
	serving.Go(func() error { return ignoreStopped(s.Serve(l)) })
	return s, socket, serving
}

func callCheck(t *testing.T, socket string) <-chan error {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	answered := make(chan error, 1)
	go func() {
		answer, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), &authv3.CheckRequest{})
		if err == nil && answer.GetStatus().GetCode() != int32(codes.OK) {
			err = errors.New("not allowed")
		}
		answered <- err
	}()
	return answered
}

// TestStoppingDoesNotWaitForADecisionThatDoesNotEnd: some libraries below a policy look at no deadline.
func TestStoppingDoesNotWaitForADecisionThatDoesNotEnd(t *testing.T) {
	started, release := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(release) })
	s, socket, serving := serveDecider(t, func(context.Context) authz.Decision {
		close(started)
		<-release
		return authz.Decision{Outcome: authz.Allowed}
	})
	answered := callCheck(t, socket)
	<-started
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	start := time.Now()
	stopWithin(s, time.Second)
	all, err := waitWithin(ctx, serving, time.Second)
	stopWithin(s, 0) // as close does
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("stopping took %v", took)
	}
	if !all || err != nil {
		t.Errorf("Serve has not returned: %v", err)
	}
	if err := <-answered; err == nil {
		t.Error("an answer that nobody gave")
	}
}

func TestStoppingLetsCallsUnderWayEnd(t *testing.T) {
	started, stopping := make(chan struct{}), make(chan struct{})
	s, socket, serving := serveDecider(t, func(context.Context) authz.Decision {
		close(started)
		<-stopping
		time.Sleep(100 * time.Millisecond) // so that the server is being stopped when this answers
		return authz.Decision{Outcome: authz.Allowed}
	})
	answered := callCheck(t, socket)
	<-started
	close(stopping)
	stopWithin(s, 5*time.Second)
	if err := <-answered; err != nil {
		t.Error(err)
	}
	if err := serving.Wait(); err != nil {
		t.Error(err)
	}
}

// TestStoppingDoesNotWaitForASilentConnection: gRPC waits for it until its handshake times out.
func TestStoppingDoesNotWaitForASilentConnection(t *testing.T) {
	s, socket, serving := serveDecider(t, nil)
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 1)); err != nil { // it was accepted: the server speaks first
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	start := time.Now()
	stopWithin(s, 100*time.Millisecond)
	if _, err := waitWithin(ctx, serving, 100*time.Millisecond); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("stopping took %v", took)
	}
}

// TestWaitWithin: what does not end is left behind only after the context has.
func TestWaitWithin(t *testing.T) {
	fault := errors.New("fault")
	ctx, cancel := context.WithCancel(t.Context())
	failing := new(errgroup.Group)
	failing.Go(func() error { return fault })
	if all, err := waitWithin(ctx, failing, 0); !all || !errors.Is(err, fault) {
		t.Errorf("%v %v, want the fault", all, err)
	}
	release := make(chan struct{})
	stuck := new(errgroup.Group)
	stuck.Go(func() error { <-release; return fault })
	cancel()
	if all, err := waitWithin(ctx, stuck, time.Millisecond); all || !errors.Is(err, context.Canceled) {
		t.Errorf("%v %v, want it left behind", all, err)
	}
	close(release)
}
