package server_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/writ-dev/writ/agent/peer"
	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/api/registrationv1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/attest/jointoken"
	"github.com/writ-dev/writ/attest/x509pop"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/ca"
	"github.com/writ-dev/writ/ca/keystore"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/server"
	"github.com/writ-dev/writ/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var example = spiffeid.RequireTrustDomainFromString("example.org")

// patience bounds every wait for what must happen: long, since a wait that succeeds costs nothing.
const patience = 30 * time.Second

// domain is a server with its store, its authority and both surfaces, wired as the daemon wires them.
type domain struct {
	t         *testing.T
	config    server.Config
	db        *store.DB
	dataDir   string
	authority *ca.Authority
	jwt       *ca.JWTAuthority
	server    *server.Server
	address   string
	issuer    string // of tokens; none
	jwtKind   keystore.Kind
	admin     adminv1.AdminClient
	metrics   *prometheus.Registry
	log       *lines
	ahead     atomic.Int64       // of the real clock
	factory   *x509.Certificate  // the root of x509pop nodes
	factoryBy *ecdsa.PrivateKey  // its key
	stop      func()             // ends everything; the store last
	running   context.CancelFunc // ends the server's Run alone
}

// newDomain starts a domain. Each option may change the server's configuration.
func newDomain(t *testing.T, options ...func(*server.Config)) *domain {
	t.Helper()
	return newDomainAt(t, "", keystore.P256, options...)
}

// newDomainAt starts a domain whose tokens name an issuer and are signed by a kind of key.
func newDomainAt(t *testing.T, issuer string, kind keystore.Kind, options ...func(*server.Config)) *domain {
	t.Helper()
	d := &domain{t: t, issuer: issuer, jwtKind: kind, metrics: prometheus.NewRegistry(), log: &lines{}, dataDir: t.TempDir()}
	d.makeFactory()
	d.open(options)
	t.Cleanup(func() { d.stop() })
	return d
}

func (d *domain) now() time.Time { return time.Now().Add(time.Duration(d.ahead.Load())) }

// open opens store, authority and server, and serves.
func (d *domain) open(options []func(*server.Config)) {
	d.t.Helper()
	ctx := d.t.Context()
	log := slog.New(slog.NewJSONHandler(d.log, nil))
	d.db = must(store.Open(ctx, store.Config{DataDir: d.dataDir, Server: "one", Now: d.now, Log: log}))(d.t)
	keys := must(keystore.Open("memory", d.dataDir))(d.t)
	d.authority = must(ca.New(ctx, ca.Config{TrustDomain: example, Server: "one", Keys: keys, Ledger: d.db, Now: d.now, Log: log}))(d.t)
	d.jwt = must(ca.NewJWT(ctx, ca.JWTConfig{TrustDomain: example, Server: "one", Keys: keystore.MemoryFor(d.jwtKind), Ledger: d.db, Issuer: d.issuer, Now: d.now, Log: log}))(d.t)
	node := must(net.Listen("tcp", "127.0.0.1:0"))(d.t)
	d.address = node.Addr().String()
	pop := must(x509pop.NewVerifier(x509pop.VerifierConfig{Roots: pemOf(d.factory)}))(d.t)
	d.config = server.Config{TrustDomain: example, Name: "one", Authority: d.authority, JWT: d.jwt, Tokens: d.makeToken, Addresses: []string{d.address},
		Store:     server.Store{Feed: d.db, Entries: d.db, Nodes: d.db, Admissions: d.db, Operator: d.db, Issuances: d.db, Ledger: d.db},
		Verifiers: map[string]attest.Verifier{jointoken.Method: jointoken.NewVerifier(d.db), x509pop.Method: pop},
		MaxTTL:    12 * time.Hour, MaxJWTTTL: 12 * time.Hour, Now: d.now, Log: log, Registerer: d.metrics}
	for _, option := range options {
		option(&d.config)
	}
	d.server = must(server.New(ctx, d.config))(d.t)
	d.serve(node)
}

func (d *domain) serve(node net.Listener) {
	folder := must(os.MkdirTemp("", "writ"))(d.t) // the test's own is too long for a socket
	socket := filepath.Join(folder, "admin.sock")
	admin := must(peer.Listen(socket, 0o600))(d.t)
	nodeAPI, adminAPI := d.server.NodeAPI(), d.server.AdminAPI()
	ctx, cancel := context.WithCancel(context.Background())
	run, end := context.WithCancel(ctx)
	d.running = end
	var g errgroup.Group
	g.Go(func() error { return d.authority.Run(ctx) })
	g.Go(func() error { return d.jwt.Run(ctx) })
	g.Go(func() error { return d.server.Run(run) })
	g.Go(func() error { return nodeAPI.Serve(node) })
	g.Go(func() error { return adminAPI.Serve(admin) })
	conn := must(grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20))))(d.t)
	d.admin = adminv1.NewAdminClient(conn)
	d.stop = sync.OnceFunc(func() {
		conn.Close()
		cancel()
		nodeAPI.Stop()
		adminAPI.Stop()
		if err := g.Wait(); err != nil {
			d.t.Errorf("the server ended with %v", err)
		}
		if err := d.db.Close(); err != nil {
			d.t.Errorf("close the store: %v", err)
		}
		os.RemoveAll(folder)
	})
}

func (d *domain) makeToken(addresses []string, pins [][32]byte, wanted attest.Token) (attest.Token, string, error) {
	now := d.now()
	return jointoken.New(jointoken.Request{Addresses: addresses, Pins: pins, TTL: wanted.Expires.Sub(now), Name: wanted.Name, CIDR: wanted.CIDR,
		Server: wanted.Server, Now: now})
}

// makeFactory makes the CA whose certificates x509pop takes.
func (d *domain) makeFactory() {
	d.factoryBy = newKey(d.t)
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "factory"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour)}
	der := must(x509.CreateCertificate(rand.Reader, c, c, &d.factoryBy.PublicKey, d.factoryBy))(d.t)
	d.factory = must(x509.ParseCertificate(der))(d.t)
}

// machine gives the x509pop attestor of a machine of that name.
func (d *domain) machine(name string) attest.Attestor { return d.certified(newKey(d.t), name) }

// certified is a machine whose certificate is for that key.
func (d *domain) certified(key *ecdsa.PrivateKey, name string) attest.Attestor {
	d.t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(100 * time.Hour)}
	der := must(x509.CreateCertificate(rand.Reader, c, d.factory, &key.PublicKey, d.factoryBy))(d.t)
	leaf := must(x509.ParseCertificate(der))(d.t)
	folder := d.t.TempDir()
	config := x509pop.AttestorConfig{CertFile: filepath.Join(folder, "node.pem"), KeyFile: filepath.Join(folder, "node.key")}
	pkcs8 := must(x509.MarshalPKCS8PrivateKey(key))(d.t)
	for path, text := range map[string][]byte{config.CertFile: pemOf(leaf), config.KeyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			d.t.Fatal(err)
		}
	}
	return must(x509pop.NewAttestor(config))(d.t)
}

// selfSigned gives a certificate of that path that nobody but itself signed.
func (d *domain) selfSigned(path string) *tls.Certificate {
	d.t.Helper()
	key := newKey(d.t)
	c := &x509.Certificate{SerialNumber: big.NewInt(3), BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, URIs: []*url.URL{{Scheme: "spiffe", Host: example.Name(), Path: path}},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}
	der := must(x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key))(d.t)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// token makes a join token and gives the attestor that holds it.
func (d *domain) token(r *adminv1.CreateTokenRequest) attest.Attestor {
	d.t.Helper()
	made := must(d.admin.CreateToken(d.t.Context(), r))(d.t)
	return attestorOf(d.t, made.Token)
}

func attestorOf(t *testing.T, token string) attest.Attestor {
	t.Helper()
	return jointoken.NewAttestor(must(jointoken.Decode(token))(t))
}

// apply applies entries and gives the revision that has them.
func (d *domain) apply(entries ...*registrationv1.Entry) uint64 {
	d.t.Helper()
	return must(d.admin.ApplyEntries(d.t.Context(), &adminv1.ApplyEntriesRequest{Entries: entries}))(d.t).Revision
}

func (d *domain) remove(names ...string) uint64 {
	d.t.Helper()
	return must(d.admin.DeleteEntries(d.t.Context(), &adminv1.DeleteEntriesRequest{Names: names}))(d.t).Revision
}

// entry is one for every node, unless where says otherwise.
func entry(name string, where ...string) *registrationv1.Entry {
	return &registrationv1.Entry{Name: name, SpiffeId: "spiffe://example.org/" + name, Where: where, Any: len(where) == 0,
		Match: []string{"unix:uid:1000"}}
}

// records are the audit records of one kind.
func records[T any](d *domain, kind string) []T {
	d.t.Helper()
	var out []T
	for after := uint64(0); ; {
		rows := must(d.db.AuditRows(context.Background(), after, 1000))(d.t)
		for _, row := range rows {
			after = row.ID
			if row.Kind != kind {
				continue
			}
			var record T
			if err := json.Unmarshal(row.Record, &record); err != nil {
				d.t.Fatal(err)
			}
			out = append(out, record)
		}
		if len(rows) == 0 {
			return out
		}
	}
}

// held is the revision that the server's registry has read, by its own metric.
func (d *domain) held() uint64 { return uint64(d.metric("writ_server_revision")) }

// caughtUp waits until the server's registry holds what is in the store.
func (d *domain) caughtUp() {
	d.t.Helper()
	newest := must(d.db.Newest(d.t.Context()))(d.t)
	d.until("the registry catches up", func() bool { return d.held() >= newest.Number })
}

// metric is the sum over all labels.
func (d *domain) metric(name string) (sum float64) {
	families, err := d.metrics.Gather()
	if err != nil {
		d.t.Error(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == name {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// until waits for a condition that nothing signals.
func (d *domain) until(what string, holds func() bool) {
	d.t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			d.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// checkIssuances is what must hold at any time: each serial has exactly one record.
func (d *domain) checkIssuances() {
	d.t.Helper()
	seen := map[string]int{}
	for _, i := range records[audit.Issuance](d, audit.KindIssuance) {
		if seen[i.Serial]++; seen[i.Serial] > 1 {
			d.t.Errorf("serial %s is recorded %d times", i.Serial, seen[i.Serial])
		}
	}
}

// client is a connection to a node API as a test makes it; it believes any server, which is not what is tested with it.
type client struct {
	nodev1.NodeClient
	conn *grpc.ClientConn
}

// dial connects with a certificate, or as a stranger without one.
func (d *domain) dial(certificate *tls.Certificate, options ...grpc.DialOption) *client {
	d.t.Helper()
	config := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
	if certificate != nil {
		config.Certificates = []tls.Certificate{*certificate}
	}
	options = append([]grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithDisableServiceConfig()}, options...)
	conn := must(grpc.NewClient("passthrough:///"+d.address, options...))(d.t)
	d.t.Cleanup(func() { conn.Close() })
	return &client{nodev1.NewNodeClient(conn), conn}
}

// lines is a log that tests read.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.text.Bytes(), []byte("\n"))
}

// wantFault checks what a call answered: its kind, and its P code where one is given.
func wantFault(t *testing.T, err error, kind fault.Kind, code fault.Code) {
	t.Helper()
	var got fault.Code
	err = fault.FromStatus(err)
	if f, ok := err.(*fault.Error); ok {
		got = f.Code
	}
	if err == nil || fault.KindOf(err) != kind || got != code {
		t.Errorf("answer is %v: %s %s, want %s %s", err, fault.KindOf(err), got, kind, code)
	}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
}

func pemOf(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// must gives the value, and ends the test where there is an error.
func must[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// act is what the records of changes that a test makes in the store itself say.
var act = audit.Admin{Principal: "test"}
