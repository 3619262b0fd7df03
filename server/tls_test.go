package server_test

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/writ-dev/writ/agent/member"
	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/ca"
	"github.com/writ-dev/writ/internal/fault"
)

// handshake makes a TLS connection to the node API and gives what was agreed. The first read brings what the server thinks of the
// client's certificate.
func (d *domain) handshake(config *tls.Config) (tls.ConnectionState, error) {
	config.InsecureSkipVerify, config.NextProtos = true, []string{"h2"}
	dialer := &net.Dialer{Deadline: time.Now().Add(patience)}
	conn, err := tls.DialWithDialer(dialer, "tcp", d.address, config)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
		return conn.ConnectionState(), err
	}
	_, err = conn.Read(make([]byte, 1))
	return conn.ConnectionState(), err
}

func TestX509_48_NodeAPISpeaksTLS13WithHybridKeys(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	cache := tls.NewLRUClientSessionCache(4)
	for range 2 {
		state, err := d.handshake(&tls.Config{ClientSessionCache: cache})
		if err != nil {
			t.Fatal(err)
		}
		if state.Version != tls.VersionTLS13 || state.CurveID != tls.X25519MLKEM768 {
			t.Errorf("agreed on %s with %s", tls.VersionName(state.Version), state.CurveID)
		}
		if state.DidResume {
			t.Error("a session was resumed")
		}
	}
	if _, err := d.handshake(&tls.Config{MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("TLS 1.2 is taken")
	}
}

func TestNodeAPITakesAgentCertificatesOnly(t *testing.T) {
	t.Parallel()
	d, other := newDomain(t), newDomain(t)
	d.apply(entry("orders"))
	h, stranger := d.join("web-1"), other.join("web-1")
	unsigned := h.certificate()
	unsigned.Certificate = unsigned.Certificate[:1]
	for _, row := range []struct {
		name string
		cert *tls.Certificate
		ok   bool
	}{
		{"an agent's", h.certificate(), true},
		{"an agent's without the issuing certificate, which the server holds", unsigned, true},
		{"a workload's", h.workload("orders"), false},
		{"an agent's of another authority of the same name", stranger.certificate(), false},
		{"the server's own kind", d.selfSigned("/writ/server/one"), false},
		{"self-signed under an agent's ID", d.selfSigned("/writ/agent/join_token/x"), false},
	} {
		t.Run(row.name, func(t *testing.T) {
			if _, err := d.handshake(&tls.Config{Certificates: []tls.Certificate{*row.cert}}); (err == nil) != row.ok {
				t.Errorf("the connection ends with %v", err)
			}
			_, err := d.dial(row.cert).Sign(t.Context(), &nodev1.SignRequest{})
			if (err == nil) != row.ok {
				t.Errorf("a call is answered %v", err)
			}
		})
	}
}

func TestStrangersMayOnlyAttest(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	c := d.dial(nil)
	_, err := c.Sign(t.Context(), &nodev1.SignRequest{})
	wantFault(t, err, fault.Unauthenticated, "")
	_, err = must(c.Sync(t.Context()))(t).Recv()
	wantFault(t, err, fault.Unauthenticated, "")
}

// A connection outlives the certificate that opened it.
func TestCallsEndWithTheAgentSVID(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	c := d.join("web-1").connect()
	must(c.Sign(t.Context(), &nodev1.SignRequest{}))(t)
	d.ahead.Store(int64(61 * time.Minute))
	_, err := c.Sign(t.Context(), &nodev1.SignRequest{})
	wantFault(t, err, fault.Unauthenticated, fault.NodeUnknown)
}

// What a connection's first call proved holds only while the roots do.
func TestCallsEndWithTheRoot(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	c := d.join("web-1").connect()
	for range 2 {
		must(c.Sign(t.Context(), &nodev1.SignRequest{}))(t)
	}
	for _, r := range must(d.db.Authorities(t.Context()))(t) {
		if r.Tier == ca.TierRoot {
			r.State = ca.StateRevoked
			if err := d.db.RecordAuthority(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
	}
	d.caughtUp()
	_, err := c.Sign(t.Context(), &nodev1.SignRequest{})
	wantFault(t, err, fault.Unauthenticated, fault.NodeUnknown)
}

// Clocks are set back, too: an SVID that verified is not valid before it begins.
func TestCallsWaitForTheAgentSVID(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	c := d.join("web-1").connect()
	must(c.Sign(t.Context(), &nodev1.SignRequest{}))(t)
	d.ahead.Store(int64(-2 * time.Minute))
	_, err := c.Sign(t.Context(), &nodev1.SignRequest{})
	wantFault(t, err, fault.Unauthenticated, fault.NodeUnknown)
}

// posing takes whatever an agent says and admits it.
type posing struct {
	nodev1.UnimplementedNodeServer
	heard chan struct{}
}

func (p *posing) Attest(nodev1.Node_AttestServer) error {
	close(p.heard)
	return nil
}

func TestWorkloadPosingAsServerIsRefused(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	d.apply(entry("orders"))
	cert := d.join("web-1").workload("orders")
	for _, root := range d.authority.Bundle().Roots { // as a server sends it
		cert.Certificate = append(cert.Certificate, root.Raw)
	}
	listener := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	p := &posing{heard: make(chan struct{})}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS13})))
	nodev1.RegisterNodeServer(g, p)
	served := make(chan error, 1)
	go func() { served <- g.Serve(listener) }()
	defer func() {
		g.Stop()
		<-served
	}()
	for _, row := range []struct {
		name, address string
		ok            bool
	}{{"the server", d.address, true}, {"the workload", listener.Addr().String(), false}} {
		err := d.joinAt(row.address)
		switch {
		case row.ok && err != nil:
			t.Errorf("joining %s: %v", row.name, err)
		case !row.ok && !member.HasCode(err, fault.ServerUnproved):
			t.Errorf("joining %s: %v", row.name, err)
		}
	}
	select {
	case <-p.heard:
		t.Error("the agent spoke to the workload")
	default:
	}
}

// joinAt lets the agent's own code join there, believing this domain's roots.
func (d *domain) joinAt(address string) error {
	n, err := member.New(member.Config{TrustDomain: example, DataDir: filepath.Join(d.t.TempDir(), "agent"), Server: address, Roots: pemOf(d.authority.Bundle().Roots[0]),
		Attestors: []attest.Attestor{d.token(&adminv1.CreateTokenRequest{})}, Now: d.now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	return n.Prove(ctx)
}

// Timers stand still while a machine sleeps: the server's SVID is renewed by the clock.
func TestServersSVIDIsRenewedAfterASleep(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	d.ahead.Store(int64(61 * time.Minute))
	d.until("the server renews its SVID", func() bool { return d.server.Ready() == nil })
	d.join("web-1")
}
