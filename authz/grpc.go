package authz

import (
	"context"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
)

// MaxMessage is the largest CheckRequest that is read.
const MaxMessage = 4 << 20

const (
	maxStreams = 1024 // of one connection
	workers    = 64   // goroutines kept for requests, with the stacks that evaluation grew; more requests get their own
)

// GRPC gives a server with ext_authz v3 and grpc.health.v1, for any number of listeners: call Serve for each. Interceptors do not
// see Check.
func (s *Server) GRPC(options ...grpc.ServerOption) *grpc.Server {
	options = append([]grpc.ServerOption{
		grpc.ForceServerCodecV2(wireCodec{encoding.GetCodecV2(proto.Name)}),
		grpc.Creds(watched{insecure.NewCredentials(), newArrivals(s.config.Log)}),
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxHeaderListSize(16 << 10), // of the call itself; those of the request that it is about stand in the message
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.NumStreamWorkers(workers),
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	}, options...)
	server := grpc.NewServer(options...)
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: authv3.Authorization_ServiceDesc.ServiceName,
		HandlerType: (*answerer)(nil),
		Streams:     []grpc.StreamDesc{{StreamName: "Check", Handler: check}},
		Metadata:    authv3.Authorization_ServiceDesc.Metadata,
	}, s)
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	if s.config.Reflection {
		reflection.Register(server)
	}
	return server
}

type answerer interface {
	joinTrace(ctx context.Context) context.Context
	Answer(ctx context.Context, request []byte) ([]byte, error)
	tooLarge()
}

// check is a unary call served as a stream of one message each way, which is the same on the wire and costs the same: only so does
// one learn of a message that was too large to be read.
func check(server any, stream grpc.ServerStream) error {
	var in wireMessage
	s := server.(answerer)
	if err := stream.RecvMsg(&in); err != nil {
		if status.Code(err) == codes.ResourceExhausted {
			s.tooLarge()
		}
		return err
	}
	defer in.buffer.Free()
	out, err := s.Answer(s.joinTrace(stream.Context()), in.buffer.ReadOnlyData())
	if err != nil {
		return err
	}
	return stream.SendMsg(&wireMessage{mem.SliceBuffer(out)})
}

// tooLarge counts a message over MaxMessage.
func (s *Server) tooLarge() { s.metrics.add(Decision{Outcome: Malformed, Cause: TooLarge}, 0) }

// wireMessage goes through the codec as it is.
type wireMessage struct{ buffer mem.Buffer }

// wireCodec leaves Check's messages in their bytes and everything else to protobuf.
type wireCodec struct{ encoding.CodecV2 }

func (c wireCodec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(*wireMessage); ok {
		return mem.BufferSlice{m.buffer}, nil
	}
	return c.CodecV2.Marshal(v)
}

func (c wireCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(*wireMessage); ok {
		m.buffer = data.MaterializeToBuffer(mem.DefaultBufferPool())
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}
