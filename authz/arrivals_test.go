package authz_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/writ-dev/writ/authz"
)

// A staller is a connection whose requests begin and never end.
type staller struct {
	*http2.Framer
	conn  net.Conn
	ended chan struct{} // closed once the server ended the connection

	ponged chan struct{} // closed once it answered a ping
	last   uint32        // stream
}

func newStaller(t *testing.T, socket string) *staller {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &staller{Framer: http2.NewFramer(conn, conn), conn: conn, ended: make(chan struct{}), ponged: make(chan struct{})}
	var reader sync.WaitGroup
	reader.Go(s.read)
	t.Cleanup(func() { conn.Close(); reader.Wait() })
	conn.Write([]byte(http2.ClientPreface))
	s.WriteSettings()
	return s
}

func (s *staller) read() {
	defer close(s.ended)
	for {
		f, err := s.ReadFrame()
		if err != nil {
			return
		}
		if ping, ok := f.(*http2.PingFrame); ok && ping.IsAck() {
			close(s.ponged)
		}
	}
}

// begin opens n streams, and leaves each after its headers and some bytes of its message, so many times.
func (s *staller) begin(t *testing.T, n int, some []byte, times int) {
	t.Helper()
	var headers bytes.Buffer
	for range n {
		headers.Reset()
		e := hpack.NewEncoder(&headers)
		for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", authv3.Authorization_Check_FullMethodName},
			{":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
			e.WriteField(hpack.HeaderField{Name: h[0], Value: h[1], Sensitive: true})
		}
		s.last = max(s.last+2, 1) | 1
		s.WriteHeaders(http2.HeadersFrameParam{StreamID: s.last, BlockFragment: headers.Bytes(), EndHeaders: true})
		for range times {
			s.WriteData(s.last, false, some)
		}
	}
}

// listening serves Check on a Unix socket until the test ends.
func listening(t *testing.T) (socket string) {
	t.Helper()
	server := newServer(t, authz.Config{Decider: always(authz.Decision{Outcome: authz.Allowed})}).GRPC()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(l) })
	t.Cleanup(func() { server.Stop(); serving.Wait() })
	return socket
}

func honest(t *testing.T, socket string) func() {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if r, err := authv3.NewAuthorizationClient(conn).Check(ctx, &authv3.CheckRequest{}); err != nil || r.GetOkResponse() == nil {
			t.Errorf("an honest caller gets %v and %v", r, err)
		}
	}
}

// TestRequestsThatNeverEndAreBounded: requests that stop in the middle hold so much and no more, over all connections, however they are
// cut into frames. The connection that holds most is ended; a caller whose requests are whole goes on.
func TestRequestsThatNeverEndAreBounded(t *testing.T) {
	for name, row := range map[string]struct {
		conns, streams int
		some           []byte
		times          int // that some is sent on each stream
	}{
		"streams that only begin": {20, 1000, nil, 0},
		"messages without an end": {10, 1000, append([]byte{0, 0, 0x40, 0, 0}, make([]byte, 15<<10)...), 1},
		"frames of three bytes":   {10, 1000, []byte{0, 0, 0x40}, 45}, // so does the message begin: it has 4 MiB
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			socket := listening(t)
			ask := honest(t, socket)
			ask()
			var all []*staller
			for range row.conns {
				s := newStaller(t, socket)
				s.begin(t, row.streams, row.some, row.times)
				all = append(all, s)
			}
			within := time.Now().Add(30 * time.Second)
			for ended := false; !ended; {
				for _, s := range all {
					select {
					case <-s.ended:
						ended = true
					case <-time.After(time.Millisecond):
					}
				}
				if !ended && time.Now().After(within) {
					t.Fatal("no connection is ended")
				}
			}
			ask()
		})
	}
}

// TestWholeRequestsHoldNothing: requests without an end of their own, but answered, and those that the caller takes back are forgotten.
func TestWholeRequestsHoldNothing(t *testing.T) {
	socket := listening(t)
	s := newStaller(t, socket)
	for range 40 { // each round alone is a twentieth of what may be held
		s.begin(t, 800, nil, 0)
		for i := range 800 {
			s.WriteRSTStream(s.last-uint32(2*i), http2.ErrCodeCancel)
		}
	}
	s.WritePing(false, [8]byte{1})
	select {
	case <-s.ponged:
	case <-s.ended:
		t.Error("the connection is ended")
	}
}

// TestConnectionsAreBounded: connections that ask for nothing, with and without a beginning, keep neither descriptors nor places. Who asks
// is not the one to go.
func TestConnectionsAreBounded(t *testing.T) {
	socket := listening(t)
	ask := honest(t, socket)
	ask()
	const come, stay = 1500, 1023 // beside the one that asks
	var ended atomic.Int64
	var readers sync.WaitGroup
	defer readers.Wait()
	begun := time.Now()
	for i := range come {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i%2 == 0 {
			conn.Write([]byte(http2.ClientPreface))
			http2.NewFramer(conn, conn).WriteSettings()
		}
		readers.Go(func() { io.Copy(io.Discard, conn); ended.Add(1) })
		if i%100 == 0 {
			ask()
		}
	}
	for ended.Load() < come-stay {
		if time.Since(begun) > 9*time.Second { // one without a beginning is ended after ten, whatever else there is
			t.Fatalf("%d of %d connections were ended, want %d", ended.Load(), come, come-stay)
		}
		time.Sleep(time.Millisecond)
	}
	ask()
}
