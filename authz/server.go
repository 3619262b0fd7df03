package authz

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/audit"
)

// MaxTime is what a decision may take where neither its caller nor its set allows it less.
const MaxTime = time.Second

// Recorder takes decision records without waiting; *audit.Ring is one.
type Recorder interface {
	Put(d *audit.Decision) bool
}

// Config is what a Server needs. Only Decider must be there.
type Config struct {
	Decider    Decider
	Set        string        // the policy set to ask for; empty: the only one
	Records    Recorder      // nil: no records
	Required   bool          // what Records does not take is denied
	Timeout    time.Duration // of one decision where the caller sets no earlier deadline; 0: MaxTime
	Reflection bool
	Tracer     trace.Tracer // a span for each decision; nil: none
	Now        func() time.Time
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Server answers Check.
type Server struct {
	config  Config
	metrics metrics
}

// New gives a Server that is ready to answer.
func New(c Config) (*Server, error) {
	if c.Decider == nil {
		return nil, errors.New("authz needs a decider")
	}
	if c.Timeout == 0 {
		c.Timeout = MaxTime
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{config: c}
	return s, s.metrics.register(c.Registerer)
}

// Answer takes the wire bytes of a CheckRequest and gives those of its CheckResponse. The error is a gRPC status, and only for
// bytes that are no CheckRequest.
func (s *Server) Answer(ctx context.Context, request []byte) ([]byte, error) {
	start := s.config.Now()
	span := s.startSpan(ctx)
	d := s.decide(ctx, start, request)
	if d.Outcome == Malformed {
		span.end(&d, "")
		s.metrics.add(d, s.config.Now().Sub(start))
		return nil, status.Error(codes.InvalidArgument, "the message is no CheckRequest")
	}
	id := rand.Text()
	answer, err := Encode(d, id)
	if err != nil {
		d = unusable(d, err)
		answer, _ = Encode(d, id) // holds nothing of the policy
	}
	elapsed := s.config.Now().Sub(start)
	if s.config.Records != nil {
		r := record(d, id, start, elapsed)
		r.TraceID = span.traceID()
		r.Weight = 1 + len(request)>>10
		if !s.config.Records.Put(r) && s.config.Required {
			d = unrecorded(d)
			answer, _ = Encode(d, id)
		}
	}
	s.metrics.add(d, elapsed)
	span.end(&d, id)
	return answer, nil
}

// unusable keeps what the record needs of a decision that cannot be sent.
func unusable(d Decision, err error) Decision {
	return Decision{Outcome: Failed, Cause: Unusable, Reason: "the policy's answer cannot be sent: " + err.Error(), ShowReason: d.ShowReason,
		Rule: d.Rule, Set: d.Set, Revision: d.Revision, Request: d.Request, Input: d.Input, Masked: d.Masked}
}

// unrecorded is a decision that may not stand without its record.
func unrecorded(d Decision) Decision {
	return Decision{Outcome: Failed, Cause: Unrecorded, Reason: "no room for the decision's record", ShowReason: d.ShowReason, Rule: d.Rule,
		Set: d.Set, Revision: d.Revision}
}

// decide asks the Decider, for no longer than the caller waits, and turns a panic of it into a denial.
func (s *Server) decide(ctx context.Context, now time.Time, request []byte) (d Decision) {
	defer func() {
		if r := recover(); r != nil {
			s.config.Log.ErrorContext(ctx, "decider panicked", "err", fmt.Sprint(r), "stack", string(debug.Stack()))
			d = Fail(Internal, "internal error")
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, s.patience(ctx, now))
	defer cancel()
	return s.config.Decider.Decide(ctx, s.config.Set, request)
}

// patience is how long a decision may take: a little less than the caller waits, so that the answer still reaches it.
func (s *Server) patience(ctx context.Context, now time.Time) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return s.config.Timeout
	}
	left := deadline.Sub(now)
	return min(s.config.Timeout, left-min(left/10, 5*time.Millisecond))
}

func record(d Decision, id string, start time.Time, elapsed time.Duration) *audit.Decision {
	path, _, _ := strings.Cut(d.Request.Path, "?")
	return &audit.Decision{Time: start, DecisionID: id, Set: d.Set, Revision: d.Revision, Source: d.Request.Source,
		Destination: d.Request.Destination, Method: d.Request.Method, Path: path, Host: d.Request.Host,
		Allow: d.Outcome == Allowed, Outcome: d.Outcome.String(), Reason: d.Reason, Rule: d.Rule, ElapsedUS: elapsed.Microseconds(), Input: d.Input}
}
