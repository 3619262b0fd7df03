package fault

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// domain is ErrorInfo's domain: who defines the codes.
const domain = "writ.dev"

var wire = map[Kind]codes.Code{
	Internal:        codes.Internal,
	Invalid:         codes.InvalidArgument,
	Unauthenticated: codes.Unauthenticated,
	Denied:          codes.PermissionDenied,
	NotFound:        codes.NotFound,
	Conflict:        codes.AlreadyExists,
	Stale:           codes.FailedPrecondition,
	Throttled:       codes.ResourceExhausted,
	Unavailable:     codes.Unavailable,
	Unreachable:     codes.Unavailable,
}

// Status is err as a surface answers it: the kind's gRPC code, the plain sentence, and ErrorInfo with the P code. What has no
// kind answers "internal error"; a status made by grpc-go, a cancellation and a passed deadline go through as they are. The
// result is nil for nil.
func Status(err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	var foreign interface{ GRPCStatus() *status.Status } // taken out of err, whose text is for the log
	switch {
	case errors.As(err, &e):
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "cancelled")
	case cancelled(err):
		return status.Error(codes.DeadlineExceeded, "deadline exceeded")
	case errors.As(err, &foreign) && foreign.GRPCStatus().Err() != nil: // an error is never OK
		return foreign.GRPCStatus().Err()
	default:
		return status.Error(codes.Internal, "internal error")
	}
	what := e.What
	if e.Kind == Internal {
		what = "internal error"
	}
	s := status.New(wire[e.Kind], what)
	if e.Code == "" && e.Fix == "" && len(e.Why) == 0 {
		return s.Err()
	}
	info := &errdetails.ErrorInfo{Domain: domain, Reason: string(e.Code), Metadata: map[string]string{
		"why": strings.Join(e.Why, "\n"), "fix": e.Fix}}
	if detailed, err := s.WithDetails(info); err == nil {
		s = detailed
	}
	return s.Err()
}

// FromStatus is the other end of Status: a gRPC error from a call becomes an Error of the kind it stands for, with the code, the
// reasons and the fix that came along. The result is nil for nil.
func FromStatus(err error) error {
	s, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	e := &Error{Kind: kindOf(s.Code()), What: s.Message(), cause: err}
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.Domain == domain {
			e.Code, e.Fix = Code(info.Reason), info.Metadata["fix"]
			if why := info.Metadata["why"]; why != "" {
				e.Why = strings.Split(why, "\n")
			}
		}
	}
	e.cause = nil // the status text is What already
	return e
}

func kindOf(c codes.Code) Kind {
	switch c {
	case codes.DeadlineExceeded:
		return Unreachable
	case codes.Unavailable: // before Unreachable, which has the same code
		return Unavailable
	}
	for kind, code := range wire {
		if code == c {
			return kind
		}
	}
	return Internal
}
