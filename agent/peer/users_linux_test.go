package peer_test

import (
	"context"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/agent/peer"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	grpcpeer "google.golang.org/grpc/peer"
)

// dial connects from this process and pins.
func (s *socket) dial() (attest.Peer, error) {
	s.t.Helper()
	c, err := net.Dial("unix", s.path)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	pinned, p, err := s.handshake(s.accept())
	if err == nil {
		s.t.Cleanup(func() { _ = pinned.Close() })
	}
	return p, err
}

func (s *socket) mustDial() attest.Peer {
	s.t.Helper()
	p, err := s.dial()
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// call is the context of a call on p's connection.
func call(p attest.Peer) (context.Context, context.CancelFunc) {
	return context.WithCancel(grpcpeer.NewContext(context.Background(), &grpcpeer.Peer{AuthInfo: peer.Info{Peer: p}}))
}

func open(p attest.Peer) bool {
	select {
	case <-p.Done():
		return false
	default:
		return true
	}
}

func TestWhoGivesWay(t *testing.T) {
	t.Run("the oldest connection without an answer", func(t *testing.T) {
		s := newSocket(t, peer.Config{PerUser: 3})
		answered, first, second := s.mustDial(), s.mustDial(), s.mustDial()
		ctx, end := call(answered)
		defer end()
		peer.Answered(ctx)
		s.mustDial()
		if !open(answered) || open(first) || !open(second) {
			t.Errorf("open: answered %t, first %t, second %t", open(answered), open(first), open(second))
		}
	})
	t.Run("one whose answered calls have ended, where all were answered", func(t *testing.T) {
		s := newSocket(t, peer.Config{PerUser: 2})
		live, idle := s.mustDial(), s.mustDial()
		ctx, end := call(live)
		defer end()
		peer.Answered(ctx)
		ctx, end = call(idle)
		peer.Answered(ctx)
		if _, err := s.dial(); !fault.Is(err, fault.Throttled) {
			t.Errorf("all are live: %v", err)
		}
		end()
		for deadline := time.Now().Add(within); open(idle); {
			if _, err := s.dial(); err != nil && time.Now().After(deadline) {
				t.Fatalf("its call has ended: %v", err)
			}
		}
		if !open(live) {
			t.Error("the live one gave way")
		}
	})
	t.Run("nobody of another user", func(t *testing.T) {
		s := newSocket(t, peer.Config{PerUser: 1})
		h := startProgram(t, program(t, 0o755, 0), as(alice))
		h.do("connect", s.path, 1)
		_, theirs := s.pin()
		s.mustDial()
		s.mustDial()
		if !open(theirs) {
			t.Error("another user's connection gave way")
		}
	})
}

// answering marks calls as the surfaces do.
func answering(s grpc.ServerStream) grpc.ServerStream { return &answeringStream{ServerStream: s} }

type answeringStream struct {
	grpc.ServerStream
	marked bool
}

func (s *answeringStream) SendMsg(m any) error {
	err := s.ServerStream.SendMsg(m)
	if !s.marked {
		s.marked = true
		peer.Answered(s.Context())
	}
	return err
}

// Ten thousand idle connections of a user delay neither his live stream nor his next call.
func TestFloodOfOneUser(t *testing.T) {
	const flood, kept = 10000, 1500
	s := newSocket(t, peer.Config{})
	server := grpc.NewServer(grpc.Creds(s.creds),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			return next(srv, answering(stream))
		}))
	status := health.NewServer()
	grpc_health_v1.RegisterHealthServer(server, status)
	served := make(chan error, 1)
	go func() { served <- server.Serve(s.l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 3*within)
	defer cancel()
	live, err := client(t, s.path).Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := live.Recv(); err != nil {
		t.Fatal(err)
	}
	before := descriptors(t)
	var idle []net.Conn
	defer func() {
		for _, c := range idle {
			_ = c.Close()
		}
	}()
	for range flood {
		c := connect(t, s.path)
		if idle = append(idle, c); len(idle) > kept {
			_ = idle[0].Close()
			idle = idle[1:]
		}
	}
	begin := time.Now()
	if _, err := client(t, s.path).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Errorf("next call: %v", err)
	}
	t.Logf("next call took %s", time.Since(begin))
	if now := descriptors(t) - before; now > kept+2*1000+50 {
		t.Errorf("%d descriptors more, %d of them the flood's own", now, kept)
	}
	status.SetServingStatus("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	if got, err := live.Recv(); err != nil || got.Status != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("live stream gives %v, %v", got, err)
	}
}

// connect waits while the listener's queue is full, which net.Dial does not: a flood is as fast as the kernel lets it be.
func connect(t *testing.T, path string) net.Conn {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer func() { _ = file.Close() }()
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	c, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func client(t *testing.T, path string) grpc_health_v1.HealthClient {
	t.Helper()
	c, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return grpc_health_v1.NewHealthClient(c)
}

// Most callers that end before they are pinned gave up waiting; the log must not send anybody after namespaces.
func TestCallerThatEndedIsSaidToHaveEnded(t *testing.T) {
	s := newSocket(t, peer.Config{})
	h := start(t, nil)
	h.do("connect", s.path, 1)
	raw := s.accept()
	h.kill()
	if _, _, err := s.handshake(raw); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("it is refused with %v", err)
	}
}
