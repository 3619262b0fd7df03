// Package agenttest is what tests of the agent and of its surfaces stand on: a small Authority whose answers a test can bend, and
// an agent that runs against it. Start with New, then Run.
package agenttest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/api/registrationv1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
)

// Authority is a small server with the node API's rules, real TLS and real certificates, whose answers a test can bend.
type Authority struct {
	nodev1.UnimplementedNodeServer
	t       *testing.T
	domain  string
	Root    *x509.Certificate
	Issuing *x509.Certificate
	key     *ecdsa.PrivateKey // of Issuing

	Ahead atomic.Int64 // of the real clock, for server and agents

	sync.Mutex // guards what follows, once the authority is started
	address    string
	server     *grpc.Server
	Identity   tls.Certificate
	Nodes      map[string]*Node // by agent ID
	entries    map[string]*registrationv1.Entry
	bundles    map[string]*nodev1.Bundle // by trust domain
	facts      map[string]*nodev1.Identity
	log        []*nodev1.SyncResponse // one per revision
	moved      chan struct{}
	TTL        time.Duration  // of workload SVIDs
	JWTTTL     time.Duration  // of JWT-SVIDs
	SignedJWTs map[string]int // by entry and audience: "web db,cache"
	jwtKeys    []jwtKey       // the first signs
	AgentTTL   time.Duration
	Signed     map[string]int // by entry
	Opened     []uint64       // revisions that agents opened Sync with
	acked      uint64
	Proofs     int                        // Attest streams that came to a proof
	LoseProof  bool                       // commit the next proof and lose the answer
	Selectors  []string                   // of every node; set before one joins
	Bend       func(*nodev1.SyncResponse) // applied to each delta
	Refuse     func(entry string) bool    // says whether to refuse to sign for an entry now

	// BeforeJWT is called without the lock before JWT-SVIDs are signed; its error is the answer. BendJWT is applied to each result.
	BeforeJWT func(context.Context, *nodev1.SignJWTRequest) error
	BendJWT   func(*nodev1.JWTSigningResult)
}

// Node is what the authority knows of one node.
type Node struct {
	key, svidKey []byte
	generation   uint64
	Locked       bool
}

// New gives an authority of a trust domain that does not listen yet. It ends with the test.
func New(t *testing.T, domain string) *Authority {
	t.Helper()
	a := &Authority{t: t, domain: domain, Nodes: map[string]*Node{}, entries: map[string]*registrationv1.Entry{}, facts: map[string]*nodev1.Identity{}, moved: make(chan struct{}),
		TTL: time.Hour, AgentTTL: time.Hour, Selectors: []string{"test:name:node"}, Signed: map[string]int{}, JWTTTL: 5 * time.Minute, SignedJWTs: map[string]int{}}
	a.jwtKeys = []jwtKey{a.newJWTKey()}
	rootKey := newKey(t)
	a.Root = a.certify(nil, rootKey, &rootKey.PublicKey, ca(domain, "root"))
	a.key = newKey(t)
	issuing := ca(domain, "issuing")
	issuing.MaxPathLenZero = true
	a.Issuing = a.certify(a.Root, rootKey, &a.key.PublicKey, issuing)
	a.Identity = a.ServerSVID("/writ/server/one")
	a.bundles = map[string]*nodev1.Bundle{domain: a.Bundle().GetBundle()}
	t.Cleanup(a.Stop)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func ca(domain, name string) *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: name, SerialNumber: rand.Text()}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{{Scheme: "spiffe", Host: domain}}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour)}
}

// Now is the time for server and agents.
func (a *Authority) Now() time.Time { return time.Now().Add(time.Duration(a.Ahead.Load())) }

func (a *Authority) leaf(path string, ttl time.Duration) *x509.Certificate {
	return &x509.Certificate{BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, Subject: pkix.Name{CommonName: "leaf"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{{Scheme: "spiffe", Host: a.domain, Path: path}}, NotBefore: a.Now().Add(-ttl / 10), NotAfter: a.Now().Add(ttl)}
}

func (a *Authority) certify(parent *x509.Certificate, by *ecdsa.PrivateKey, pub any, c *x509.Certificate) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	c.SerialNumber = serial
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, pub, by)
	if err != nil {
		a.t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return out
}

// ServerSVID gives a certificate with its key for a path of the trust domain, the chain up to the root with it.
func (a *Authority) ServerSVID(path string) tls.Certificate {
	key := newKey(a.t)
	c := a.certify(a.Issuing, a.key, &key.PublicKey, a.leaf(path, time.Hour))
	return tls.Certificate{Certificate: [][]byte{c.Raw, a.Issuing.Raw, a.Root.Raw}, PrivateKey: key}
}

// Stray gives a leaf for any ID that the authority's issuing certificate signed, as an authority that errs or lies would.
func (a *Authority) Stray(id string) []byte {
	u, err := url.Parse(id)
	if err != nil {
		a.t.Fatal(err)
	}
	c := a.leaf("", time.Hour)
	c.URIs = []*url.URL{u}
	return a.certify(a.Issuing, a.key, &newKey(a.t).PublicKey, c).Raw
}

// Pin is the SHA-256 of the root's key.
func (a *Authority) Pin() [32]byte { return sha256.Sum256(a.Root.RawSubjectPublicKeyInfo) }

// Start listens, on the address of the time before if there was one.
func (a *Authority) Start() string {
	a.t.Helper()
	a.Lock()
	defer a.Unlock()
	if a.address == "" {
		a.address = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", a.address)
	if err != nil {
		a.t.Fatal(err)
	}
	a.address = listener.Addr().String()
	config := &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert, SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			a.Lock()
			defer a.Unlock()
			identity := a.Identity
			return &identity, nil
		}}
	a.server = grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	nodev1.RegisterNodeServer(a.server, a)
	go func(s *grpc.Server) { _ = s.Serve(listener) }(a.server)
	return a.address
}

// Stop ends every connection. Start may be called again.
func (a *Authority) Stop() {
	a.Lock()
	server := a.server
	a.server = nil
	a.Unlock()
	if server != nil {
		server.Stop()
	}
}

func (a *Authority) caller(ctx context.Context) (string, tls.ConnectionState) {
	p, _ := peer.FromContext(ctx)
	state := p.AuthInfo.(credentials.TLSInfo).State
	if len(state.PeerCertificates) == 0 {
		return "", state
	}
	return state.PeerCertificates[0].URIs[0].String(), state
}

// known is what every call but Attest asks first.
func (a *Authority) known(ctx context.Context) error {
	id, state := a.caller(ctx)
	a.Lock()
	defer a.Unlock()
	row := a.Nodes[id]
	switch {
	case id == "" || a.Now().After(state.PeerCertificates[0].NotAfter):
		return fault.Status(fault.New(fault.Unauthenticated, nil, "no valid agent SVID"))
	case row == nil:
		return fault.Status(fault.New(fault.Unauthenticated, nil, "no such node").With(fault.NodeUnknown, ""))
	case row.Locked:
		return fault.Status(fault.New(fault.Denied, nil, "locked").With(fault.NodeLocked, ""))
	}
	return nil
}

// Attest is the node API's.
func (a *Authority) Attest(stream nodev1.Node_AttestServer) error {
	_, state := a.caller(stream.Context())
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	nonce := make([]byte, attest.NonceSize)
	_, _ = rand.Read(nonce)
	if err := stream.Send(&nodev1.AttestResponse{Step: &nodev1.AttestResponse_Challenge{Challenge: &nodev1.Challenge{Nonce: nonce}}}); err != nil {
		return err
	}
	second, err := stream.Recv()
	if err != nil {
		return err
	}
	exporter, err := state.ExportKeyingMaterial(attest.ExporterLabel, nil, attest.NonceSize)
	if err != nil {
		return err
	}
	binding := attest.Binding{Methods: hello.GetMethods(), TrustDomain: a.domain, Exporter: exporter, Nonce: nonce, NodeKey: hello.GetNodeKey(),
		SVIDKey: hello.GetSvidKey()}
	if len(hello.GetMethods()) == 0 {
		binding.Methods = []string{attest.Renewal}
	}
	admission, lost, err := a.judge(hello, second.GetProof(), binding)
	if err != nil {
		return fault.Status(err)
	}
	if lost {
		return fault.Status(fault.New(fault.Unavailable, nil, "the answer is lost"))
	}
	return stream.Send(&nodev1.AttestResponse{Step: &nodev1.AttestResponse_Admission{Admission: admission}})
}

func (a *Authority) judge(hello *nodev1.Hello, p *nodev1.Proof, b attest.Binding) (*nodev1.Admission, bool, error) {
	a.Lock()
	defer a.Unlock()
	a.Proofs++
	svidKey, err := x509.ParsePKIXPublicKey(b.SVIDKey)
	if err != nil {
		return nil, false, err
	}
	if !signedBy(b.NodeKey, b, p.GetNodeKeySignature()) || !signedBy(b.SVIDKey, b, p.GetSvidKeySignature()) {
		return nil, false, fault.New(fault.Unauthenticated, nil, "a key did not sign").With(fault.BadEvidence, "")
	}
	digest := b.Digest()
	for i, e := range p.GetEvidence() {
		if e.GetMethod() != b.Methods[i] || !bytes.Equal(e.GetPayload(), digest[:]) {
			return nil, false, fault.New(fault.Unauthenticated, nil, "evidence does not verify").With(fault.BadEvidence, "")
		}
	}
	id := hello.GetAgentId()
	if id == "" {
		id = fmt.Sprintf("spiffe://%s/writ/agent/test/%x", a.domain, sha256.Sum256(b.NodeKey))
	}
	row := a.Nodes[id]
	if len(p.GetEvidence()) > 0 && row == nil {
		row = &Node{key: b.NodeKey}
		a.Nodes[id] = row
	}
	if err := row.renew(hello, b); err != nil {
		return nil, false, err
	}
	u := []byte(id)[len("spiffe://"+a.domain):]
	c := a.certify(a.Issuing, a.key, svidKey, a.leaf(string(u), a.AgentTTL))
	lost := a.LoseProof
	a.LoseProof = false
	admission := &nodev1.Admission{AgentId: id, Certificates: [][]byte{c.Raw, a.Issuing.Raw}, Generation: row.generation, Reattestable: true,
		Selectors: a.Selectors}
	if len(p.GetEvidence()) > 0 {
		admission.Sync = []*nodev1.SyncResponse{a.snapshot()}
	}
	return admission, lost, nil
}

// renew is the rule of generations: the next one, or the same one with the same key.
func (r *Node) renew(hello *nodev1.Hello, b attest.Binding) error {
	switch {
	case r == nil:
		return fault.New(fault.Unauthenticated, nil, "no such node").With(fault.NodeUnknown, "")
	case r.Locked:
		return fault.New(fault.Denied, nil, "locked").With(fault.NodeLocked, "")
	case !bytes.Equal(r.key, b.NodeKey):
		return fault.New(fault.Unauthenticated, nil, "another node key").With(fault.BadEvidence, "")
	case len(hello.GetMethods()) > 0 && bytes.Equal(r.svidKey, b.SVIDKey), hello.GetGeneration() == r.generation && bytes.Equal(r.svidKey, b.SVIDKey):
		return nil
	case len(hello.GetMethods()) > 0, hello.GetGeneration() == r.generation+1:
		r.generation, r.svidKey = r.generation+1, b.SVIDKey
		return nil
	}
	r.Locked = true
	return fault.New(fault.Denied, nil, "locked").With(fault.NodeLocked, "")
}

func signedBy(pkix []byte, b attest.Binding, signature []byte) bool {
	key, err := x509.ParsePKIXPublicKey(pkix)
	if err != nil {
		return false
	}
	digest := b.Digest()
	return ecdsa.VerifyASN1(key.(*ecdsa.PublicKey), digest[:], signature)
}

// Bundle is the change that says the bundle of the authority's own trust domain.
func (a *Authority) Bundle() *nodev1.Change {
	return &nodev1.Change{Kind: &nodev1.Change_Bundle{Bundle: &nodev1.Bundle{TrustDomain: a.domain, X509Authorities: [][]byte{a.Root.Raw},
		IssuingCertificates: [][]byte{a.Issuing.Raw}, JwtAuthorities: a.jwks(), Sequence: 1}}}
}

func (a *Authority) snapshot() *nodev1.SyncResponse {
	var changes []*nodev1.Change
	for _, name := range slices.Sorted(maps.Keys(a.bundles)) {
		changes = append(changes, &nodev1.Change{Kind: &nodev1.Change_Bundle{Bundle: a.bundles[name]}})
	}
	for _, name := range slices.Sorted(maps.Keys(a.entries)) {
		changes = append(changes, &nodev1.Change{Kind: &nodev1.Change_Entry{Entry: proto.Clone(a.entries[name]).(*registrationv1.Entry)}})
	}
	for _, f := range a.facts {
		changes = append(changes, &nodev1.Change{Kind: &nodev1.Change_Identity{Identity: f}})
	}
	return &nodev1.SyncResponse{Version: 1, Snapshot: true, Revision: uint64(len(a.log)), Chain: []byte{1}, Changes: changes, Digest: a.digest()}
}

func (a *Authority) digest() []byte {
	var entries []registration.Entry
	for _, w := range a.entries {
		e, err := registration.FromWire(w)
		if err != nil {
			a.t.Error(err)
		}
		entries = append(entries, e)
	}
	return registration.Digest(entries)
}

// Change commits one revision and wakes the streams.
func (a *Authority) Change(changes ...*nodev1.Change) {
	a.Lock()
	defer a.Unlock()
	revision := uint64(len(a.log) + 1)
	for _, c := range changes {
		if e := c.GetEntry(); e != nil {
			e.Revision, e.Created = revision, revision
			if old := a.entries[e.GetName()]; old != nil {
				e.Created = old.Created
			}
			a.entries[e.GetName()] = e
		}
		delete(a.entries, c.GetEntryRemoved())
		if b := c.GetBundle(); b != nil {
			a.bundles[b.GetTrustDomain()] = b
		}
		delete(a.bundles, c.GetBundleRemoved())
		if f := c.GetIdentity(); f != nil {
			a.facts[f.GetSpiffeId()] = f
		}
		delete(a.facts, c.GetIdentityRemoved())
	}
	m := &nodev1.SyncResponse{Revision: revision, Chain: []byte{1}, Changes: changes, Digest: a.digest()}
	if a.Bend != nil {
		a.Bend(m)
	}
	a.log = append(a.log, m)
	close(a.moved)
	a.moved = make(chan struct{})
}

// Apply sets entries in one revision.
func (a *Authority) Apply(entries ...*registrationv1.Entry) {
	var changes []*nodev1.Change
	for _, e := range entries {
		changes = append(changes, &nodev1.Change{Kind: &nodev1.Change_Entry{Entry: e}})
	}
	a.Change(changes...)
}

// Remove removes an entry.
func (a *Authority) Remove(name string) {
	a.Change(&nodev1.Change{Kind: &nodev1.Change_EntryRemoved{EntryRemoved: name}})
}

// Trust makes the roots the bundle of a foreign trust domain, or of the authority's own.
func (a *Authority) Trust(domain string, roots ...*x509.Certificate) {
	b := &nodev1.Bundle{TrustDomain: domain, Sequence: 1}
	for _, root := range roots {
		b.X509Authorities = append(b.X509Authorities, root.Raw)
	}
	a.Change(&nodev1.Change{Kind: &nodev1.Change_Bundle{Bundle: b}})
}

// Distrust removes the bundle of a trust domain.
func (a *Authority) Distrust(domain string) {
	a.Change(&nodev1.Change{Kind: &nodev1.Change_BundleRemoved{BundleRemoved: domain}})
}

// Sync is the node API's.
func (a *Authority) Sync(stream nodev1.Node_SyncServer) error {
	if err := a.known(stream.Context()); err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	at := first.GetOpen().GetRevision()
	a.Lock()
	a.Opened = append(a.Opened, at)
	a.Unlock()
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			a.Lock()
			a.acked = m.GetAck().GetRevision()
			a.Unlock()
		}
	}()
	for fresh := at == 0; ; fresh = false {
		a.Lock()
		var send []*nodev1.SyncResponse
		if fresh {
			send = append(send, a.snapshot())
		} else {
			send = slices.Clone(a.log[at:])
		}
		at = uint64(len(a.log))
		moved := a.moved
		a.Unlock()
		for _, m := range send {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		select {
		case <-moved:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// Count reads a number under the lock.
func (a *Authority) Count(of func() int) int {
	a.Lock()
	defer a.Unlock()
	return of()
}
