package workloadapi_test

import (
	"context"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/agent"
	"github.com/writ-dev/writ/agent/agenttest"
	"github.com/writ-dev/writ/agent/workloadapi"
	"github.com/writ-dev/writ/api/registrationv1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/attest/unix"
)

func TestMain(m *testing.M) { agenttest.Main(m) }

// within is the longest that anything here may take.
const within = 20 * time.Second

// A node is an agent of an authority with its Workload API on a socket.
type node struct {
	t      *testing.T
	server *agenttest.Authority
	config agent.Config
	path   string

	agent     *agent.Agent
	handler   *workloadapi.Handler
	stopAgent func()
	hangUp    func()
}

func newNode(t *testing.T) *node {
	t.Helper()
	server := agenttest.New(t, "example.org")
	server.Start()
	n := &node{t: t, server: server, config: server.Config(t), path: agenttest.Socket(t)}
	n.config.Workload = []attest.WorkloadAttestor{unix.New(unix.Config{})}
	return n
}

// start starts the agent and serves it, also anew on the same data directory and path.
func (n *node) start() {
	n.t.Helper()
	n.agent, n.stopAgent = agenttest.Run(n.t, n.config)
	n.handler = workloadapi.New(workloadapi.Config{Source: n.agent, Log: slog.New(slog.NewTextHandler(n.t.Output(), nil))})
	n.hangUp = agenttest.Serve(n.t, n.path, func(s *grpc.Server) { n.handler.Register(s) })
}

// stop stops as the daemon does.
func (n *node) stop() {
	n.handler.Stop()
	n.hangUp()
	n.stopAgent()
}

func started(t *testing.T) *node {
	t.Helper()
	n := newNode(t)
	n.start()
	return n
}

// entry is for every process of the test's user, or for those with this executable.
func entry(name string, executable ...string) *registrationv1.Entry {
	match := []string{"unix:uid:" + strconv.Itoa(os.Getuid())}
	for _, path := range executable {
		match = append(match, "unix:path:"+path)
	}
	return &registrationv1.Entry{Name: name, SpiffeId: "spiffe://example.org/" + name, Any: true, Match: match}
}

func hinted(name, hint string) *registrationv1.Entry {
	e := entry(name)
	e.Hint = hint
	return e
}

func withHeader(ctx context.Context, values ...string) context.Context {
	for _, v := range values {
		ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", v)
	}
	return ctx
}

// A watch is one stream that a test reads.
type watch[M any] struct {
	t    *testing.T
	recv func() (M, error)
}

func svids(t *testing.T, conn *grpc.ClientConn) watch[*workload.X509SVIDResponse] {
	t.Helper()
	ctx, cancel := context.WithTimeout(withHeader(t.Context(), "true"), within)
	t.Cleanup(cancel)
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return watch[*workload.X509SVIDResponse]{t, stream.Recv}
}

func bundles(t *testing.T, conn *grpc.ClientConn) watch[*workload.X509BundlesResponse] {
	t.Helper()
	ctx, cancel := context.WithTimeout(withHeader(t.Context(), "true"), within)
	t.Cleanup(cancel)
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return watch[*workload.X509BundlesResponse]{t, stream.Recv}
}

func (w watch[M]) next() M {
	w.t.Helper()
	m, err := w.recv()
	if err != nil {
		w.t.Fatalf("the stream ended: %v", err)
	}
	return m
}

// ends wants the stream's end next, and not one message more.
func (w watch[M]) ends(code codes.Code, text string) {
	w.t.Helper()
	m, err := w.recv()
	if err == nil {
		w.t.Fatalf("want the end of the stream, got %v", m)
	}
	if s := status.Convert(err); s.Code() != code || !strings.Contains(s.Message(), text) {
		w.t.Errorf("the stream ended with %v, want %v: %q", err, code, text)
	}
}

// names are the paths of a message's SVIDs, in order.
func names(m *workload.X509SVIDResponse) []string {
	var out []string
	for _, s := range m.GetSvids() {
		out = append(out, strings.TrimPrefix(s.GetSpiffeId(), "spiffe://example.org/"))
	}
	return out
}
