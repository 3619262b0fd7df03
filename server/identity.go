package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/ca"
	"github.com/writ-dev/writ/svid"
)

// serverTTL is the lifetime of this server's own SVID.
const serverTTL = time.Hour

// identity is this server's own SVID, with the root behind its chain: a joining agent knows the root's key only by its digest.
type identity struct {
	now atomic.Pointer[tls.Certificate]
}

func (i *identity) current() *tls.Certificate { return i.now.Load() }

// renewIdentity makes the server's SVID anew, recorded as any other.
func (s *Server) renewIdentity(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	draft, err := s.config.Authority.Draft(ca.ServerSVID(), ca.Request{ID: s.id, Key: key.Public(), DNS: s.ownNames(), TTL: serverTTL})
	if err != nil {
		return fmt.Errorf("draft this server's SVID: %w", err)
	}
	chain, err := s.issue(ctx, draft, s.intent(ctx, draft))
	if err != nil {
		return fmt.Errorf("issue this server's SVID: %w", err)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return err
	}
	for _, root := range s.config.Authority.Bundle().Roots {
		chain = append(chain, root.Raw)
	}
	s.identity.now.Store(&tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf})
	return nil
}

// ownNames is the issuer's host where the OIDC listener has no certificate of its own.
func (s *Server) ownNames() []string {
	if s.config.OIDC == nil || s.config.OIDC.Certificate != nil {
		return nil
	}
	host, err := CheckIssuer(s.config.OIDC.Issuer)
	if err != nil || host == "" {
		return nil
	}
	return []string{host}
}

// keepIdentity renews at half life until ctx ends; what fails is tried again every second. So often it looks at the clock, which may have
// been set, or have gone on while the machine and with it every timer slept.
func (s *Server) keepIdentity(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		leaf := s.identity.current().Leaf
		if s.config.Now().Before(leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)) {
			continue
		}
		if err := s.renewIdentity(ctx); err != nil && ctx.Err() == nil {
			s.config.Log.ErrorContext(ctx, "this server's SVID could not be renewed", "err", err)
		}
	}
}

// tlsConfig is that of the node API: TLS 1.3 only, no resumption (a ban must hold at once), and a client certificate that is
// either absent, as for a node that attests, or an agent's of our own trust domain.
func (s *Server) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		CurvePreferences:       []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256},
		SessionTicketsDisabled: true,
		ClientAuth:             tls.RequestClientCert,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.identity.current(), nil },
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return nil
			}
			_, err := s.verifyAgent(state.PeerCertificates)
			return err
		},
	}
}

// verifyAgent wants an agent's SVID: a workload's own does not open this door.
func (s *Server) verifyAgent(chain []*x509.Certificate) (spiffeid.ID, error) {
	bundle := s.config.Authority.Bundle()
	id, err := s.proven.verify(chain, svid.Anchors{TrustDomain: s.config.TrustDomain, Roots: bundle.Roots, Intermediates: bundle.Issuing}, s.config.Now())
	if err != nil {
		return id, err
	}
	if !agentID(id) {
		return id, errors.New("the client's SVID is not an agent's")
	}
	return id, nil
}
