// Package workloadapi serves the SPIFFE Workload API (SPIFFE_Workload_API.md) on the agent's Unix socket: each stream follows one
// pinned process and says what it may hold, now and whenever that changes. Start with Handler; register.go is the door, compose.go
// turns a view into messages, jwt.go answers what is asked about JWT-SVIDs.
//
// The profile for WIT-SVIDs is not served: its methods answer Unimplemented.
package workloadapi

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/agent"
	"github.com/writ-dev/writ/agent/peer"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
)

// Source gives a process its share of what the agent holds. *agent.Agent is one.
type Source interface {
	Subscribe(ctx context.Context, p attest.Peer) (*agent.Subscription, error)
	ViewOf(ctx context.Context, p attest.Peer) (agent.View, error)
	FetchJWTs(ctx context.Context, p attest.Peer, r agent.JWTRequest) ([]agent.JWTSVID, error)
}

// Config is what a Handler needs.
type Config struct {
	Source Source
	Log    *slog.Logger     // nil: nothing is logged
	Now    func() time.Time // nil: time.Now
}

// Handler follows callers. Register puts it on a gRPC server. All methods are safe to call concurrently.
type Handler struct {
	config  Config
	stopped chan struct{}
	once    sync.Once
}

// New gives a Handler.
func New(c Config) *Handler {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Handler{config: c, stopped: make(chan struct{})}
}

// Stop ends every stream with Unavailable: with any other code, or none, clients stop watching for good (clients.md rule 1).
func (h *Handler) Stop() { h.once.Do(func() { close(h.stopped) }) }

// wholeWithin is how long a first answer waits for SVIDs that are still being signed: an answer in parts would show a default SVID
// that changes with the next part (clients.md rule 13).
const wholeWithin = time.Second

// follow sends what compose makes of the caller's view, at once and after each change, until the stream, the process, the
// entitlement or the agent ends. SVIDs that are still being signed hold up a first message that has SVIDs, and no other.
func follow[M proto.Message](h *Handler, stream interface {
	Context() context.Context
	SendMsg(any) error
}, hasSVIDs bool, compose func(agent.View) (M, int, error)) error {
	ctx := stream.Context()
	caller, err := peer.From(ctx)
	if err != nil {
		return h.answer(ctx, err)
	}
	subscription, err := h.config.Source.Subscribe(ctx, caller)
	if err != nil {
		return h.answer(ctx, err)
	}
	defer subscription.Close()
	grace := time.NewTimer(wholeWithin)
	defer grace.Stop()
	answered := sync.OnceFunc(func() { peer.Answered(ctx) })
	var sent []byte
	for whole := false; ; {
		view := subscription.View()
		if !view.Known {
			return h.answer(ctx, ended(subscription))
		}
		whole = whole || !view.Pending
		switch {
		case !entitled(view):
			return h.answer(ctx, errNoIdentity(caller.Process().PID))
		case hasSVIDs && (!whole || len(view.Identities) == 0): // they are being signed: no reason to deny
		default:
			message, left, err := compose(view)
			if err != nil {
				return h.answer(ctx, err)
			}
			if left > 0 {
				h.config.Log.WarnContext(ctx, "a workload may hold more than its clients take", "peer_pid", caller.Process().PID,
					"err", fmt.Errorf("%d SVIDs or bundles are left out", left))
			}
			if sent, err = sendChanged(stream.SendMsg, message, sent); err != nil {
				return err
			}
			answered()
		}
		select {
		case <-subscription.Changed():
		case <-grace.C:
			whole = true // part of it is better than nothing
		case <-subscription.Done():
			return h.answer(ctx, ended(subscription))
		case <-h.stopped:
			return status.Error(codes.Unavailable, "the agent is stopping")
		}
	}
}

// entitled says whether an entry is for the caller, whether or not its SVID is signed yet.
func entitled(v agent.View) bool { return len(v.Identities) > 0 || v.Pending }

// sendChanged sends a message unless it says what the last one said (clients.md rule 24), and gives its bytes.
func sendChanged(send func(any) error, message proto.Message, sent []byte) ([]byte, error) {
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(message)
	if err != nil || bytes.Equal(encoded, sent) {
		return sent, err
	}
	return encoded, send(message)
}

// ended is why a subscription is over; a stopping agent looks the same as one that does not know its entries yet.
func ended(s *agent.Subscription) error {
	if err := s.Err(); err != nil {
		return err
	}
	return fault.New(fault.Unavailable, nil, "the agent does not know its entries yet").With(fault.AgentStarting, "")
}

// answer turns an error into what the standard has: PermissionDenied only where entries are known and none is for this process,
// Unavailable for everything that may pass. A workload that is denied may throw its identity away (clients.md rule 2).
func (h *Handler) answer(ctx context.Context, err error) error {
	kind := fault.KindOf(err)
	switch {
	case ctx.Err() != nil: // the caller went away; nobody reads this
		return status.FromContextError(ctx.Err()).Err()
	case kind == fault.Denied || kind == fault.Unavailable:
		return fault.Status(err)
	}
	h.config.Log.ErrorContext(ctx, "workload not served", "err", err)
	return status.Error(codes.Unavailable, "the caller could not be attested; try again")
}
