package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/internal/fault"
)

// requestKey is under which a call's id stands in its context.
type requestKey struct{}

// requestID joins a call's log lines, records and answer; empty outside of a call.
func requestID(ctx context.Context) string {
	id, _ := ctx.Value(requestKey{}).(string)
	return id
}

// interceptors give every call an id, turn a panic into an internal error, log a failure once and answer with its kind.
func (s *Server) interceptors() []grpc.ServerOption {
	unary := func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (answer any, err error) {
		ctx = context.WithValue(ctx, requestKey{}, rand.Text())
		defer func() { err = s.end(ctx, info.FullMethod, recover(), err) }()
		return handle(ctx, request)
	}
	stream := func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
		ctx := context.WithValue(stream.Context(), requestKey{}, rand.Text())
		defer func() { err = s.end(ctx, info.FullMethod, recover(), err) }()
		return handle(srv, &identified{stream, ctx})
	}
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(unary), grpc.ChainStreamInterceptor(stream)}
}

// identified is a stream whose context carries the call's id.
type identified struct {
	grpc.ServerStream
	ctx context.Context
}

// Context is the stream's with the id.
func (s *identified) Context() context.Context { return s.ctx }

// end logs how a call failed, at the level of its kind, and gives the answer. Attestations that fail are counted and sampled where
// they do (tally.refused): a line for each would let strangers fill a disk.
func (s *Server) end(ctx context.Context, method string, panicked any, err error) error {
	if panicked != nil {
		err = fmt.Errorf("panic in %s: %v\n%s", method, panicked, debug.Stack())
	}
	if err == nil || errors.Is(err, context.Canceled) {
		return fault.Status(err)
	}
	level := slog.LevelInfo
	switch fault.KindOf(err) {
	case fault.Internal, fault.Unavailable:
		level = slog.LevelError
	case fault.Denied, fault.Unauthenticated:
		level = slog.LevelDebug // counted and sampled where it was refused
	}
	if _, ours := status.FromError(err); ours && fault.KindOf(err) == fault.Internal {
		level = slog.LevelDebug // the transport's own: a connection that broke
	}
	if method == nodev1.Node_Attest_FullMethodName && panicked == nil {
		level = slog.LevelDebug
	}
	s.config.Log.Log(ctx, level, "call failed", "method", method, "request_id", requestID(ctx), "err", err)
	return fault.Status(err)
}

// wireStatus is the status that an error answers with.
func wireStatus(err error) *status.Status { return status.Convert(fault.Status(err)) }

// codeOf is an error's P code, empty where it has none.
func codeOf(err error) string {
	var f *fault.Error
	if errors.As(err, &f) {
		return string(f.Code)
	}
	return ""
}
