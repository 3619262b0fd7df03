package member

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/svid"
)

// Trust is by what a server is believed. A value.
type Trust struct {
	Domain spiffeid.TrustDomain // zero: whichever the server's root answers for
	Roots  []*x509.Certificate
	Pins   [][32]byte // SHA-256 of a root's SPKI
	Now    func() time.Time
}

// anchors are the held roots and those that the server presented and that are pinned.
func (t Trust) anchors(presented []*x509.Certificate, domain spiffeid.TrustDomain) svid.Anchors {
	a := svid.Anchors{TrustDomain: t.Domain, Roots: slices.Clone(t.Roots)}
	if a.TrustDomain.IsZero() {
		a.TrustDomain = domain
	}
	for _, c := range presented {
		if slices.Contains(t.Pins, sha256.Sum256(c.RawSubjectPublicKeyInfo)) && svid.CheckAuthority(c) == nil {
			a.Roots = append(a.Roots, c)
		}
	}
	return a
}

// server says which server stands at the other end of a connection. X509-SVID section 5: the chain is checked against the roots of
// the ID's own trust domain; beyond that only an ID below /writ/server/ will do, which no workload can get.
func (t Trust) server(state tls.ConnectionState) (spiffeid.ID, error) {
	if len(state.PeerCertificates) == 0 {
		return spiffeid.ID{}, errors.New("it presents no certificate")
	}
	leaf, rest := state.PeerCertificates[0], state.PeerCertificates[1:]
	claimed, err := svid.IDFromCert(leaf)
	if err != nil {
		return spiffeid.ID{}, err
	}
	id, err := svid.Verify(leaf, rest, t.anchors(rest, claimed.TrustDomain()), t.Now())
	if err != nil {
		return spiffeid.ID{}, skewed(err, leaf, t.Now())
	}
	if path := svid.Segments(id); len(path) != 3 || path[0] != "writ" || path[1] != "server" {
		return spiffeid.ID{}, fmt.Errorf("%s is not a server's ID", id)
	}
	return id, nil
}

// skewed says by how much this node's clock lies outside the certificate's life, since a wrong clock looks like a forgery.
func skewed(err error, leaf *x509.Certificate, now time.Time) error {
	if wait := leaf.NotBefore.Sub(now); wait > 0 {
		return fmt.Errorf("%w: this node's clock is at least %s behind", err, wait.Round(time.Second))
	}
	if over := now.Sub(leaf.NotAfter); over > 0 {
		return fmt.Errorf("%w: it ended %s ago by this node's clock", err, over.Round(time.Second))
	}
	return err
}

// Server is one connection to one server.
type Server struct {
	nodev1.NodeClient
	Address string

	conn *grpc.ClientConn

	mu      sync.Mutex
	refused error // why the server was not believed, from the last handshake; guarded by mu
}

// dial prepares a connection; the first call makes it. With a certificate the agent says who it is.
func dial(address string, t Trust, certificate *tls.Certificate) (*Server, error) {
	r := &Server{Address: address}
	config := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		CurvePreferences:   []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256},
		InsecureSkipVerify: true, // SPIFFE has no host names: VerifyConnection does all of it
		VerifyConnection: func(state tls.ConnectionState) error {
			_, err := t.server(state)
			r.mu.Lock()
			defer r.mu.Unlock()
			r.refused = err
			return err
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if certificate == nil {
				return &tls.Certificate{}, nil
			}
			return certificate, nil
		},
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", address)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: dialTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDisableServiceConfig())
	if err != nil {
		return nil, fault.New(fault.Invalid, err, fmt.Sprintf("server address %q cannot be used", address))
	}
	r.conn, r.NodeClient = conn, nodev1.NewNodeClient(conn)
	return r, nil
}

const dialTimeout = 5 * time.Second

// Close ends it and its streams.
func (r *Server) Close() { _ = r.conn.Close() } // its only error is that it was closed before

// Why turns what a call gave into an error of a kind, and tells a server that was not believed from one that did not answer.
func (r *Server) Why(err error) error {
	r.mu.Lock()
	refused := r.refused
	r.mu.Unlock()
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	if refused != nil {
		return fault.New(fault.Unauthenticated, nil, fmt.Sprintf("%s did not prove to be a server of this trust domain", r.Address)).
			Because(refused.Error()).
			With(fault.ServerUnproved, "check the address; if the authority was replaced, join again with a new token")
	}
	if s, ok := status.FromError(err); ok && s.Code() == codes.Unavailable && len(s.Details()) == 0 {
		return fault.New(fault.Unreachable, err, fmt.Sprintf("server %s does not answer", r.Address))
	}
	return fault.FromStatus(err)
}

// TurnedAway says that the server knows us and refuses: asking again soon changes nothing.
func TurnedAway(err error) bool {
	var e *fault.Error
	if !errors.As(err, &e) || e.Code == fault.ServerUnproved {
		return false
	}
	switch e.Kind {
	case fault.Invalid, fault.Unauthenticated, fault.Denied, fault.NotFound, fault.Conflict, fault.Stale:
		return true
	}
	return false
}

// HasCode says whether err carries that P code.
func HasCode(err error, code fault.Code) bool {
	var e *fault.Error
	return errors.As(err, &e) && e.Code == code
}
