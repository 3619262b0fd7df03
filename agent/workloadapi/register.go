package workloadapi

import (
	"context"
	"slices"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Register serves h on a gRPC server that pins its callers (agent/peer). Each method asks for the security header before it reads
// anything of its request, those that are not served too (SPIFFE_Workload_Endpoint.md section 6).
func (h *Handler) Register(s grpc.ServiceRegistrar) {
	desc := workload.SpiffeWorkloadAPI_ServiceDesc
	desc.Methods, desc.Streams = slices.Clone(desc.Methods), slices.Clone(desc.Streams)
	for i := range desc.Methods {
		serve := desc.Methods[i].Handler
		desc.Methods[i].Handler = func(srv any, ctx context.Context, dec func(any) error, i grpc.UnaryServerInterceptor) (any, error) {
			if err := checkHeader(ctx); err != nil {
				return nil, err
			}
			return serve(srv, ctx, dec, i)
		}
	}
	for i := range desc.Streams {
		serve := desc.Streams[i].Handler
		desc.Streams[i].Handler = func(srv any, stream grpc.ServerStream) error {
			if err := checkHeader(stream.Context()); err != nil {
				return err
			}
			return serve(srv, stream)
		}
	}
	s.RegisterService(&desc, service{handler: h})
}

// checkHeader wants `workload.spiffe.io: true`, once: a browser or a proxy that was talked into connecting does not send it
// (SPIFFE_Workload_Endpoint.md section 3).
func checkHeader(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if values := md.Get("workload.spiffe.io"); len(values) != 1 || values[0] != "true" {
		return status.Error(codes.InvalidArgument, "the metadata workload.spiffe.io: true is missing")
	}
	return nil
}

// service is what Register puts behind the header; nobody else can register it without. The methods that it does not have answer
// Unimplemented.
type service struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	handler *Handler
}

// FetchX509SVID implements section 5.2.1: the caller's X.509-SVIDs, and again whenever they change.
func (s service) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	return follow(s.handler, stream, true, composeSVIDs)
}

// FetchX509Bundles implements section 5.2.2: the bundles that the caller may trust, and again whenever they change.
func (s service) FetchX509Bundles(_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	return follow(s.handler, stream, false, composeBundles)
}

// FetchJWTSVID implements section 6.2.1: a JWT-SVID for an audience, of each of the caller's identities or of the one it names.
func (s service) FetchJWTSVID(ctx context.Context, r *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	return s.handler.fetchJWT(ctx, r)
}

// FetchJWTBundles implements section 6.2.2: the keys for JWT-SVIDs that the caller may trust, and again whenever they change.
func (s service) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	return follow(s.handler, stream, false, composeJWTBundles)
}

// ValidateJWTSVID implements section 6.2.3: whose a JWT-SVID is and what it claims, if the caller may trust it.
func (s service) ValidateJWTSVID(ctx context.Context, r *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	return s.handler.validateJWT(ctx, r)
}
