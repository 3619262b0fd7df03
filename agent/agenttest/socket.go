package agenttest

import (
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/writ-dev/writ/agent/peer"
)

// Socket gives a path for a Unix socket in a folder of the test's.
func Socket(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "writ") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	return filepath.Join(folder, "s")
}

// Serve puts what register registers on a Unix socket that pins its callers, within the bounds of the daemon (cmd/writ). It ends with
// the test, or earlier by the function it gives.
func Serve(t *testing.T, path string, register func(*grpc.Server)) (stop func()) {
	t.Helper()
	listener, err := peer.Listen(path, 0o777)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(peer.Credentials(peer.Config{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})),
		grpc.MaxConcurrentStreams(100), grpc.MaxRecvMsgSize(1<<20), grpc.MaxHeaderListSize(16<<10))
	register(server)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	stop = sync.OnceFunc(func() {
		server.Stop()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// Dial connects the test's own process.
func Dial(t *testing.T, path string, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	return connect(t, "unix://"+path, options...)
}

func connect(t *testing.T, target string, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(target, append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
