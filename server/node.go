package server

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"

	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/attest"
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
		grpc.Creds(credentials.NewTLS(s.tlsConfig())),
		grpc.MaxRecvMsgSize(1<<20),
		grpc.MaxConcurrentStreams(100),
		grpc.MaxHeaderListSize(16<<10),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second, MaxConnectionIdle: 5 * time.Minute}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}))...)
	nodev1.RegisterNodeServer(g, &nodeAPI{Server: s})
	grpc_health_v1.RegisterHealthServer(g, health.NewServer())
	return g
}

// caller is the node behind the client certificate, if it may ask for anything now.
func (s *nodeAPI) caller(ctx context.Context) (attest.Node, error) {
	p, _ := peer.FromContext(ctx)
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return attest.Node{}, fault.New(fault.Unauthenticated, nil, "the agent SVID is missing; attest first")
	}
	id, err := s.verifyAgent(info.State.PeerCertificates) // again: a connection outlives a certificate
	if err != nil {
		return attest.Node{}, fault.New(fault.Unauthenticated, err, "the agent SVID is not valid any more; renew it").With(fault.NodeUnknown, "")
	}
	return s.registry.node(id)
}
