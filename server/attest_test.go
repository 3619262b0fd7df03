package server_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"

	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/attest/x509pop"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/server"
	"github.com/writ-dev/writ/svid"
)

func TestTokenAdmitsANode(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	d.apply(entry("orders", "join_token:name:web-1"), entry("billing", "join_token:name:web-2"))
	token := must(d.admin.CreateToken(t.Context(), &adminv1.CreateTokenRequest{Node: "web-1"}))(t)
	h := d.newHost(attestorOf(t, token.Token))
	a := must(h.attest(bent{}))(t)
	if want := "spiffe://example.org/writ/agent/join_token/" + token.Id; a.AgentId != want {
		t.Errorf("agent ID is %s, want %s", a.AgentId, want)
	}
	if a.Generation != 1 || a.Assurance != uint32(attest.Bearer) || a.Reattestable || !slices.Equal(a.Selectors, []string{"join_token:name:web-1"}) {
		t.Errorf("admission is %v", a)
	}
	if got := entryNames(a.Sync); !slices.Equal(got, []string{"orders"}) {
		t.Errorf("the first sync holds %v", got)
	}
	d.checkAgent(a, h.svidKey)
	attested := records[audit.Attestation](d, audit.KindAttestation)
	if len(attested) != 1 || attested[0].AgentID != a.AgentId || attested[0].Outcome != audit.Admitted || attested[0].From != "127.0.0.1" {
		t.Errorf("attestation records are %+v", attested)
	}
	d.checkIssuances()
}

// checkAgent verifies an admission's certificate as an agent does.
func (d *domain) checkAgent(a *nodev1.Admission, key crypto.Signer) {
	d.t.Helper()
	var chain []*x509.Certificate
	for _, der := range a.Certificates {
		chain = append(chain, must(x509.ParseCertificate(der))(d.t))
	}
	id, err := svid.Verify(chain[0], chain[1:], svid.Anchors{TrustDomain: example, Roots: d.authority.Bundle().Roots}, d.now())
	if err != nil || id.String() != a.AgentId {
		d.t.Errorf("the agent SVID is for %s: %v", id, err)
	}
	if !chain[0].PublicKey.(*ecdsa.PublicKey).Equal(key.Public()) {
		d.t.Error("the agent SVID is for another key")
	}
}

func entryNames(messages []*nodev1.SyncResponse) (names []string) {
	for _, m := range messages {
		for _, c := range m.Changes {
			if e := c.GetEntry(); e != nil {
				names = append(names, e.Name)
			}
		}
	}
	return names
}

func TestOfFiftyNodesOneWinsTheToken(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	token := d.token(&adminv1.CreateTokenRequest{})
	errs := make([]error, 50)
	var racers sync.WaitGroup
	start := make(chan struct{})
	for i := range errs {
		h, c := d.newHost(token), d.dial(nil)
		racers.Go(func() {
			<-start
			_, errs[i] = h.attestOver(c, bent{})
		})
	}
	close(start)
	racers.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
			continue
		}
		wantFault(t, err, fault.Stale, fault.TokenUsed)
	}
	if nodes := must(d.db.Nodes(t.Context()))(t); won != 1 || len(nodes) != 1 {
		t.Errorf("%d won, %d nodes are there", won, len(nodes))
	}
	d.checkIssuances()
}

func TestTokenServesItsNodeKeyAgain(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	d.apply(entry("orders"))
	token := d.token(&adminv1.CreateTokenRequest{})
	h := d.newHost(token)
	first := must(h.attest(bent{}))(t)
	again := must(h.attest(bent{}))(t) // the answer was lost: the same keys
	if again.AgentId != first.AgentId {
		t.Errorf("asked again, the node is %s, not %s", again.AgentId, first.AgentId)
	}
	if results := must(h.sign("orders"))(t); results[0].Status != 0 {
		t.Errorf("after asking again the node may not sign: %s", results[0].Message)
	}
	thief := d.newHost(token)
	_, err := thief.attest(bent{})
	wantFault(t, err, fault.Stale, fault.TokenUsed)
	d.ahead.Store(int64(11 * time.Minute)) // beyond the token's life
	_, err = h.attest(bent{})
	wantFault(t, err, fault.Unauthenticated, fault.TokenUsed)
}

// A refusal is one way to attest that must not succeed. The node has a token named web-1 and a machine's certificate.
type refusal struct {
	name    string
	prepare func(d *domain, h *host)
	bent    func(d *domain, h *host) bent
}

func hello(change func(*nodev1.Hello)) func(*domain, *host) bent {
	return func(*domain, *host) bent { return bent{hello: change} }
}

func binding(change func(*attest.Binding)) func(*domain, *host) bent {
	return func(*domain, *host) bent { return bent{binding: change} }
}

func proof(change func(*nodev1.Proof)) func(*domain, *host) bent {
	return func(*domain, *host) bent { return bent{proof: change} }
}

var badEvidence = []refusal{
	{name: "bound to another connection", bent: binding(func(b *attest.Binding) { b.Exporter = make([]byte, 32) })},
	{name: "bound to another nonce", bent: binding(func(b *attest.Binding) { b.Nonce = make([]byte, 32) })},
	{name: "bound to another trust domain", bent: binding(func(b *attest.Binding) { b.TrustDomain = "example.net" })},
	{name: "bound to another node key", bent: binding(func(b *attest.Binding) { b.NodeKey = b.SVIDKey })},
	{name: "bound to another SVID key", bent: binding(func(b *attest.Binding) { b.SVIDKey = b.NodeKey })},
	{name: "bound to other methods", bent: binding(func(b *attest.Binding) { b.Methods = []string{attest.Renewal} })},
	{name: "node key's signature is missing", bent: proof(func(p *nodev1.Proof) { p.NodeKeySignature = nil })},
	{name: "SVID key's signature is missing", bent: proof(func(p *nodev1.Proof) { p.SvidKeySignature = nil })},
	{name: "signatures are swapped", bent: proof(func(p *nodev1.Proof) {
		p.NodeKeySignature, p.SvidKeySignature = p.SvidKeySignature, p.NodeKeySignature
	})},
	{name: "signature is random", bent: proof(func(p *nodev1.Proof) { rand.Read(p.NodeKeySignature) })},
	{name: "evidence is missing", bent: proof(func(p *nodev1.Proof) { p.Evidence = nil })},
	{name: "evidence is there twice", bent: proof(func(p *nodev1.Proof) { p.Evidence = append(p.Evidence, p.Evidence...) })},
	{name: "evidence names another method", bent: proof(func(p *nodev1.Proof) { p.Evidence[0].Method = x509pop.Method })},
}

var badPayload = []refusal{
	{name: "evidence is empty", bent: proof(func(p *nodev1.Proof) { p.Evidence[0].Payload = nil })},
	{name: "evidence is cut off", bent: proof(func(p *nodev1.Proof) { p.Evidence[0].Payload = p.Evidence[0].Payload[:40] })},
	{name: "evidence has a byte too many", bent: proof(func(p *nodev1.Proof) { p.Evidence[0].Payload = append(p.Evidence[0].Payload, 0) })},
	{name: "evidence is random", bent: proof(func(p *nodev1.Proof) { rand.Read(p.Evidence[0].Payload) })},
	{name: "token is unknown", bent: proof(func(p *nodev1.Proof) { copy(p.Evidence[0].Payload, strings.Repeat("0", 32)) })},
	{name: "token has expired", prepare: func(d *domain, _ *host) { d.ahead.Store(int64(10*time.Minute + time.Second)) }},
	{name: "token is for another network", prepare: func(d *domain, h *host) {
		h.attestors = []attest.Attestor{d.token(&adminv1.CreateTokenRequest{Cidr: "10.0.0.0/8"})}
	}},
}

var badHello = []refusal{
	{name: "proof comes first", bent: func(*domain, *host) bent {
		return bent{first: &nodev1.AttestRequest{Step: &nodev1.AttestRequest_Proof{Proof: &nodev1.Proof{}}}}
	}},
	{name: "first message is empty", bent: func(*domain, *host) bent { return bent{first: &nodev1.AttestRequest{}} }},
	{name: "version is not ours", bent: hello(func(h *nodev1.Hello) { h.Version = 2 })},
	{name: "too many methods", bent: hello(func(h *nodev1.Hello) { h.Methods = []string{"a", "b", "c", "d", "e"} })},
	{name: "method is named twice", bent: hello(func(h *nodev1.Hello) { h.Methods = append(h.Methods, h.Methods...) })},
	{name: "neither method nor agent ID", bent: hello(func(h *nodev1.Hello) { h.Methods = nil })},
	{name: "node key is the SVID key", bent: hello(func(h *nodev1.Hello) { h.SvidKey = h.NodeKey })},
	{name: "node key is random", bent: hello(func(h *nodev1.Hello) { rand.Read(h.NodeKey) })},
	{name: "node key is missing", bent: hello(func(h *nodev1.Hello) { h.NodeKey = nil })},
	{name: "SVID key is too long", bent: hello(func(h *nodev1.Hello) { h.SvidKey = make([]byte, 2000) })},
	{name: "node key is on P-224", prepare: func(d *domain, h *host) {
		h.key = must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))(d.t)
	}},
	{name: "SVID key is RSA", prepare: func(d *domain, h *host) { h.svidKey = must(rsa.GenerateKey(rand.Reader, 2048))(d.t) }},
	{name: "agent ID to renew is none", bent: hello(func(h *nodev1.Hello) { h.Methods, h.AgentId = nil, "spiffe://example.org/../x" }),
		prepare: func(_ *domain, h *host) { h.attestors = nil }},
}

func TestAttestRefuses(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	for _, group := range []struct {
		rows []refusal
		kind fault.Kind
		code fault.Code
	}{{badEvidence, fault.Unauthenticated, fault.BadEvidence}, {badPayload, fault.Unauthenticated, fault.TokenUsed}, {badHello, fault.Invalid, ""}} {
		for _, row := range group.rows {
			t.Run(row.name, func(t *testing.T) {
				d.ahead.Store(0)
				h := d.newHost(d.token(&adminv1.CreateTokenRequest{}))
				honest := h.attestors
				if row.prepare != nil {
					row.prepare(d, h)
				}
				var b bent
				if row.bent != nil {
					b = row.bent(d, h)
				}
				_, err := h.attest(b)
				wantFault(t, err, group.kind, group.code)
				if nodes := must(d.db.Nodes(t.Context()))(t); len(nodes) > 0 {
					t.Fatalf("a node was admitted: %s", nodes[0].ID)
				}
				d.ahead.Store(0)
				h.attestors, h.key, h.svidKey = honest, newKey(t), newKey(t)
				a := must(h.attest(bent{}))(t) // the refusal used nothing up
				must(d.admin.EvictNode(t.Context(), &adminv1.EvictNodeRequest{AgentId: a.AgentId}))(t)
			})
		}
	}
}

func TestMethodThatIsOffIsRefused(t *testing.T) {
	t.Parallel()
	d := newDomain(t, func(c *server.Config) { delete(c.Verifiers, x509pop.Method) })
	_, err := d.newHost(d.machine("web-1")).attest(bent{})
	wantFault(t, err, fault.Denied, fault.MethodOff)
	_, err = d.newHost(d.token(&adminv1.CreateTokenRequest{}), d.machine("web-1")).attest(bent{})
	wantFault(t, err, fault.Denied, fault.MethodOff)
	if nodes := must(d.db.Nodes(t.Context()))(t); len(nodes) > 0 {
		t.Errorf("a node was admitted: %s", nodes[0].ID)
	}
}

// Who records a whole attestation and plays it again has the right bytes for the wrong connection.
func TestRecordedProofDoesNotServeAgain(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	for _, a := range []attest.Attestor{d.token(&adminv1.CreateTokenRequest{}), d.machine("web-1")} {
		var recorded *nodev1.Proof
		h := d.newHost(a)
		must(h.attest(bent{proof: func(p *nodev1.Proof) { recorded = p }}))(t)
		replay := bent{proof: func(p *nodev1.Proof) {
			p.NodeKeySignature, p.SvidKeySignature, p.Evidence = recorded.NodeKeySignature, recorded.SvidKeySignature, recorded.Evidence
		}}
		_, err := h.attest(replay)
		wantFault(t, err, fault.Unauthenticated, fault.BadEvidence)
		// With signatures of its own keys over the right binding, the recorded evidence is still bound to another connection.
		thief := d.newHost(a)
		if _, err = thief.attest(bent{proof: func(p *nodev1.Proof) { p.Evidence = recorded.Evidence }}); !fault.Is(fault.FromStatus(err), fault.Unauthenticated) {
			t.Errorf("%s: recorded evidence is answered %v", a.Method(), err)
		}
	}
}

func TestMethodsOfOneStreamShareOneBinding(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	token, machine := d.token(&adminv1.CreateTokenRequest{Node: "web-1"}), d.machine("web-1")
	// Evidence made for one method alone is no part of a proof by two.
	alone := d.newHost(token, machine)
	_, err := alone.attest(bent{binding: func(b *attest.Binding) { b.Methods = b.Methods[:1] }})
	wantFault(t, err, fault.Unauthenticated, fault.BadEvidence)
	mixed := d.newHost(token, machine)
	_, err = mixed.attest(bent{proof: func(p *nodev1.Proof) { p.Evidence[1] = p.Evidence[0] }})
	wantFault(t, err, fault.Unauthenticated, fault.BadEvidence)

	h := d.newHost(token, machine)
	a := must(h.attest(bent{}))(t)
	if !strings.HasPrefix(a.AgentId, "spiffe://example.org/writ/agent/join_token/") || a.Assurance != uint32(attest.KeyFile) || a.Reattestable {
		t.Errorf("admission is %v", a)
	}
	var named []string
	for _, s := range a.Selectors {
		if strings.Contains(s, "web-1") {
			named = append(named, s)
		}
	}
	if diff := cmp.Diff([]string{"join_token:name:web-1", "x509pop:subject:web-1"}, named); diff != "" {
		t.Errorf("selectors (-want +got):\n%s", diff)
	}
}

func TestOversizedMessagesAreRefused(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	h := d.newHost(d.token(&adminv1.CreateTokenRequest{}))
	_, err := h.attest(bent{proof: func(p *nodev1.Proof) { p.Evidence[0].Payload = make([]byte, 1<<20) }})
	wantFault(t, err, fault.Throttled, "") // grpc-go's answer: ResourceExhausted
	_, err = h.attest(bent{hello: func(hello *nodev1.Hello) { hello.Capabilities = []string{strings.Repeat("x", 1<<20)} }})
	wantFault(t, err, fault.Throttled, "")
	must(h.attest(bent{}))(t)
}

// A stranger holds nothing for longer than ten seconds, however little it says.
func TestStallingStrangerIsCut(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	c := d.dial(nil)
	begin := time.Now()
	var strangers sync.WaitGroup
	stall := func(name string, wait func() error) {
		strangers.Go(func() {
			err := wait()
			if took := time.Since(begin); err == nil || took > patience || took < 9*time.Second {
				t.Errorf("%s is cut after %s: %v", name, took, err)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience+10*time.Second)
	defer cancel()
	stall("who says nothing", func() error {
		_, err := must(c.Attest(ctx))(t).Recv()
		wantFault(t, err, fault.Unreachable, "") // DeadlineExceeded
		return err
	})
	h := d.newHost()
	stall("who gives no proof", func() error {
		stream := must(c.Attest(ctx))(t)
		first := &nodev1.Hello{Version: 1, Methods: []string{"join_token"}, NodeKey: keyDER(t, h.key), SvidKey: keyDER(t, h.svidKey)}
		if err := stream.Send(&nodev1.AttestRequest{Step: &nodev1.AttestRequest_Hello{Hello: first}}); err != nil {
			return nil
		}
		must(stream.Recv())(t)
		_, err := stream.Recv()
		wantFault(t, err, fault.Unreachable, "")
		return err
	})
	stall("who does not begin TLS", func() error {
		conn := must(net.Dial("tcp", d.address))(t)
		defer conn.Close()
		conn.SetDeadline(begin.Add(patience + 10*time.Second))
		_, err := conn.Read(make([]byte, 1))
		if err != io.EOF {
			t.Errorf("the connection ends with %v", err)
		}
		return err
	})
	stall("who begins HTTP/2 and asks for nothing", func() error {
		conn := must(tls.Dial("tcp", d.address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}))(t)
		defer conn.Close()
		conn.SetDeadline(begin.Add(patience + 10*time.Second))
		must(conn.Write([]byte(http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00")))(t) // empty settings
		if _, err := io.Copy(io.Discard, conn); err != nil {
			t.Errorf("the connection ends with %v", err)
		}
		return io.EOF
	})
	strangers.Wait()
}

// Strangers keep neither a node's connection nor another stranger out.
func TestStrangersAreBounded(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	f := d.join("web-1").follow()
	f.next()
	const come, stay = 1500, 1024
	var ended atomic.Int64
	var readers sync.WaitGroup
	defer readers.Wait()
	begun := time.Now()
	for range come {
		conn := must(net.Dial("tcp", d.address))(t)
		defer conn.Close()
		readers.Go(func() { io.Copy(io.Discard, conn); ended.Add(1) })
	}
	for ended.Load() < come-stay {
		if time.Since(begun) > 9*time.Second { // who does not begin TLS is cut after ten
			t.Fatalf("%d of %d connections were ended, want %d", ended.Load(), come, come-stay)
		}
		time.Sleep(time.Millisecond)
	}
	d.join("web-2")
	f.reach(d.apply(entry("orders")))
}

func TestRandomBytesHurtNobody(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	for range 20 {
		conn := must(net.Dial("tcp", d.address))(t)
		junk := make([]byte, 4096)
		rand.Read(junk)
		conn.Write(junk)
		conn.SetDeadline(time.Now().Add(patience))
		io.Copy(io.Discard, conn) // until the server hangs up
		conn.Close()
	}
	d.join("web-1")
}

// One line or row for each refused stranger would let strangers fill a disk.
func TestRefusedStrangersAreCountedNotWritten(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	c := d.dial(nil)
	const strangers = 1000
	rows, lines, begin := must(d.db.AuditRows(t.Context(), 0, 10_000))(t), d.log.count(), time.Now()
	refuse := []func(*host) bent{ // the ways in which a stranger fails, as often as each other
		func(*host) bent { return bent{proof: func(p *nodev1.Proof) { p.Evidence[0].Payload = nil }} },
		func(*host) bent { return bent{hello: func(h *nodev1.Hello) { h.Version = 9 }} },
		func(*host) bent { return bent{hello: func(h *nodev1.Hello) { h.Methods = []string{"magic"} }} },
		func(*host) bent {
			return bent{hello: func(h *nodev1.Hello) { h.Capabilities = []string{strings.Repeat("x", 1<<20)} }}
		},
	}
	token := d.token(&adminv1.CreateTokenRequest{})
	throttled := 0
	h := d.newHost(token)
	for i := range strangers {
		if i%5 == 4 { // who hangs up
			stream := must(c.Attest(t.Context()))(t)
			stream.CloseSend()
			if _, err := stream.Recv(); err == nil {
				t.Fatal("who says nothing is answered")
			}
			continue
		}
		_, err := h.attestOver(c, refuse[i%5](h))
		if err == nil {
			t.Fatal("a stranger is admitted")
		}
		if strings.Contains(err.Error(), "too many attestations") {
			wantFault(t, err, fault.Throttled, "")
			throttled++
		}
	}
	if throttled == 0 {
		t.Error("nobody was throttled")
	}
	d.until("all are counted", func() bool { return d.metric("writ_server_attestations_refused_total") >= strangers })
	if got := d.metric("writ_server_attestations_refused_total"); got != strangers {
		t.Errorf("%v are counted", got)
	}
	if now := must(d.db.AuditRows(t.Context(), 0, 10_000))(t); len(now)-len(rows) != 1 { // the token's
		t.Errorf("%d audit rows were written", len(now)-len(rows))
	}
	if wrote, most := d.log.count()-lines, 12+int(time.Since(begin).Seconds()); wrote > most || wrote == 0 {
		d.log.mu.Lock()
		t.Errorf("%d lines were written, at most %d may be:\n%s", wrote, most, bytes.Join(bytes.SplitN(d.log.text.Bytes(), []byte("\n"), 20)[:19], []byte("\n")))
		d.log.mu.Unlock()
	}
}
