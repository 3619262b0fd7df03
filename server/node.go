package server

import (
	"context"
	"crypto/x509"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"

	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/crowd"
	"github.com/writ-dev/writ/internal/fault"
)

// nodeAPI is the Server as agents see it.
type nodeAPI struct {
	nodev1.UnimplementedNodeServer
	*Server
}

// NodeAPI is a gRPC server that speaks the node API over TLS 1.3, health included. The caller serves and stops it.
func (s *Server) NodeAPI() *grpc.Server {
	g := grpc.NewServer(append(s.interceptors(),
		grpc.Creds(&doorkeeper{credentials.NewTLS(s.tlsConfig()), crowd.New(mostStrangers)}),
		grpc.MaxRecvMsgSize(1<<20),
		grpc.MaxConcurrentStreams(100),
		grpc.MaxHeaderListSize(16<<10),
		grpc.ConnectionTimeout(10*time.Second),
		// An agent's connection has its Sync stream and is never idle; a stranger has no reason to be.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second, MaxConnectionIdle: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}))...)
	nodev1.RegisterNodeServer(g, &nodeAPI{Server: s})
	grpc_health_v1.RegisterHealthServer(g, health.NewServer())
	return g
}

// mostStrangers may be connected who have shown no agent SVID: some 50 KiB each. To attest takes a tenth of a second.
const mostStrangers = 1024

// doorkeeper counts who has shown no agent SVID.
type doorkeeper struct {
	credentials.TransportCredentials
	strangers *crowd.Crowd
}

// ServerHandshake implements credentials.TransportCredentials.
func (d *doorkeeper) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	stranger := d.strangers.Join(conn)
	secured, info, err := d.TransportCredentials.ServerHandshake(stranger)
	if tls, ok := info.(credentials.TLSInfo); err == nil && ok && len(tls.State.PeerCertificates) > 0 { // the handshake verified them
		stranger.Leave()
	}
	return secured, info, err
}

// caller is the node behind the client certificate, if it may ask for anything now.
func (s *nodeAPI) caller(ctx context.Context) (attest.Node, error) {
	shown := agentSVID(ctx)
	if len(shown) == 0 {
		return attest.Node{}, fault.New(fault.Unauthenticated, nil, "the agent SVID is missing; attest first")
	}
	id, err := s.verifyAgent(shown) // again: a connection outlives a certificate
	if err != nil {
		return attest.Node{}, errEnded(err)
	}
	return s.registry.node(id)
}

// lifeOf is how long the agent SVID of a caller's connection is still valid.
func (s *nodeAPI) lifeOf(ctx context.Context) time.Duration {
	return agentSVID(ctx)[0].NotAfter.Sub(s.config.Now())
}

// agentSVID is the certificate, with its chain, that a caller's connection began with.
func agentSVID(ctx context.Context) []*x509.Certificate {
	p, _ := peer.FromContext(ctx)
	info, _ := p.AuthInfo.(credentials.TLSInfo)
	return info.State.PeerCertificates
}

func errEnded(why error) error {
	return fault.New(fault.Unauthenticated, why, "the agent SVID is not valid any more; renew it").With(fault.NodeUnknown, "")
}
