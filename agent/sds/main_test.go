package sds_test

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-dev/writ/agent"
	"github.com/writ-dev/writ/agent/agenttest"
	"github.com/writ-dev/writ/agent/sds"
	"github.com/writ-dev/writ/api/registrationv1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/attest/unix"
)

func TestMain(m *testing.M) { agenttest.Main(m) }

// within is the longest that anything here may take.
const within = 20 * time.Second

const secretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

// A node is an agent of an authority with SDS on a socket.
type node struct {
	t      *testing.T
	server *agenttest.Authority
	config agent.Config
	path   string

	agent     *agent.Agent
	handler   *sds.Handler
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
	n.handler = sds.New(sds.Config{Source: n.agent, Log: slog.New(slog.NewTextHandler(n.t.Output(), nil))})
	n.hangUp = agenttest.Serve(n.t, n.path, func(s *grpc.Server) { secretv3.RegisterSecretDiscoveryServiceServer(s, n.handler) })
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

// entry is for every process of the test's user.
func entry(name string, dns ...string) *registrationv1.Entry {
	return &registrationv1.Entry{Name: name, SpiffeId: "spiffe://example.org/" + name, Any: true, Dns: dns,
		Match: []string{"unix:uid:" + strconv.Itoa(os.Getuid())}}
}

func federated(name string, domains ...string) *registrationv1.Entry {
	e := entry(name)
	e.FederatesWith = domains
	return e
}

// A talk is one stream of either protocol, as far as both are the same.
type talk interface {
	ask(names ...string) // the first time
	next() (found map[string]*tlsv3.Secret, removed []string)
	ends(code codes.Code, text string)
}

// protocols runs a test over both.
func protocols(t *testing.T, test func(t *testing.T, open func(t *testing.T, conn *grpc.ClientConn) talk)) {
	t.Run("state of the world", func(t *testing.T) {
		test(t, func(t *testing.T, conn *grpc.ClientConn) talk { return world(t, conn) })
	})
	t.Run("delta", func(t *testing.T) {
		test(t, func(t *testing.T, conn *grpc.ClientConn) talk { return delta(t, conn) })
	})
}

// background ends with the test. No stream needs the security header of the Workload API (SDS-01, WEP-08).
func background(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), within)
	t.Cleanup(cancel)
	return ctx
}

type worldStream struct {
	t      *testing.T
	stream secretv3.SecretDiscoveryService_StreamSecretsClient
	names  []string
	last   *discoveryv3.DiscoveryResponse
}

func world(t *testing.T, conn *grpc.ClientConn) *worldStream {
	t.Helper()
	stream, err := secretv3.NewSecretDiscoveryServiceClient(conn).StreamSecrets(background(t))
	if err != nil {
		t.Fatal(err)
	}
	return &worldStream{t: t, stream: stream}
}

func (w *worldStream) send(r *discoveryv3.DiscoveryRequest) {
	w.t.Helper()
	if err := w.stream.Send(r); err != nil {
		w.t.Fatal(err)
	}
}

// ask asks for other names, as an answer to the last response.
func (w *worldStream) ask(names ...string) {
	w.t.Helper()
	w.names = names
	w.send(&discoveryv3.DiscoveryRequest{TypeUrl: secretType, ResourceNames: names, ResponseNonce: w.last.GetNonce(), VersionInfo: w.last.GetVersionInfo()})
}

// response takes one response without a word.
func (w *worldStream) response() *discoveryv3.DiscoveryResponse {
	w.t.Helper()
	r, err := w.stream.Recv()
	if err != nil {
		w.t.Fatalf("the stream ended: %v", err)
	}
	if r.GetTypeUrl() != secretType || r.GetNonce() == "" || r.GetNonce() == w.last.GetNonce() || r.GetVersionInfo() == "" {
		w.t.Errorf("type %q, nonce %q after %q, version %q", r.GetTypeUrl(), r.GetNonce(), w.last.GetNonce(), r.GetVersionInfo())
	}
	w.last = r
	return r
}

func (w *worldStream) next() (map[string]*tlsv3.Secret, []string) {
	w.t.Helper()
	r := w.response()
	w.ask(w.names...) // acknowledges
	return read(w.t, r.GetResources()...), nil
}

func (w *worldStream) ends(code codes.Code, text string) {
	w.t.Helper()
	r, err := w.stream.Recv()
	ended(w.t, r.GetResources(), err, code, text)
}

type deltaStream struct {
	t      *testing.T
	stream secretv3.SecretDiscoveryService_DeltaSecretsClient
}

func delta(t *testing.T, conn *grpc.ClientConn) *deltaStream {
	t.Helper()
	stream, err := secretv3.NewSecretDiscoveryServiceClient(conn).DeltaSecrets(background(t))
	if err != nil {
		t.Fatal(err)
	}
	return &deltaStream{t: t, stream: stream}
}

func (d *deltaStream) send(r *discoveryv3.DeltaDiscoveryRequest) {
	d.t.Helper()
	r.TypeUrl = secretType
	if err := d.stream.Send(r); err != nil {
		d.t.Fatal(err)
	}
}

func (d *deltaStream) ask(names ...string) {
	d.t.Helper()
	d.send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: names})
}

// response takes one response without a word.
func (d *deltaStream) response() *discoveryv3.DeltaDiscoveryResponse {
	d.t.Helper()
	r, err := d.stream.Recv()
	if err != nil {
		d.t.Fatalf("the stream ended: %v", err)
	}
	if r.GetTypeUrl() != secretType || r.GetNonce() == "" {
		d.t.Errorf("type %q, nonce %q", r.GetTypeUrl(), r.GetNonce())
	}
	return r
}

func (d *deltaStream) next() (map[string]*tlsv3.Secret, []string) {
	d.t.Helper()
	r := d.response()
	d.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: r.GetNonce()}) // acknowledges
	var all []*anypb.Any
	for _, one := range r.GetResources() {
		all = append(all, one.GetResource())
	}
	found := read(d.t, all...)
	for _, one := range r.GetResources() {
		if found[one.GetName()] == nil || one.GetVersion() == "" {
			d.t.Errorf("resource %q of version %q", one.GetName(), one.GetVersion())
		}
	}
	return found, r.GetRemovedResources()
}

func (d *deltaStream) ends(code codes.Code, text string) {
	d.t.Helper()
	r, err := d.stream.Recv()
	ended(d.t, r.GetResources(), err, code, text)
}

func ended(t *testing.T, got any, err error, code codes.Code, text string) {
	t.Helper()
	if err == nil {
		t.Fatalf("want the end of the stream, got %v", got)
	}
	if s := status.Convert(err); s.Code() != code || !strings.Contains(s.Message(), text) {
		t.Errorf("the stream ended with %v, want %v: %q", err, code, text)
	}
}

// read reads resources; a name that comes twice is wrong.
func read(t *testing.T, resources ...*anypb.Any) map[string]*tlsv3.Secret {
	t.Helper()
	found := map[string]*tlsv3.Secret{}
	for _, resource := range resources {
		secret := &tlsv3.Secret{}
		if err := resource.UnmarshalTo(secret); err != nil {
			t.Fatal(err)
		}
		if found[secret.GetName()] != nil {
			t.Errorf("%q comes twice", secret.GetName())
		}
		found[secret.GetName()] = secret
	}
	return found
}

func fetch(t *testing.T, conn *grpc.ClientConn, node *corev3.Node, names ...string) (map[string]*tlsv3.Secret, error) {
	t.Helper()
	r, err := secretv3.NewSecretDiscoveryServiceClient(conn).FetchSecrets(background(t), &discoveryv3.DiscoveryRequest{Node: node, ResourceNames: names})
	if err != nil {
		return nil, err
	}
	return read(t, r.GetResources()...), nil
}

func namesOf(found map[string]*tlsv3.Secret) []string {
	var out []string
	for name := range found {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
