// Package sds serves Envoy's Secret Discovery Service v3 on the agent's Unix socket, state of the world and delta. Start with Handler;
// stream.go and delta.go are the two protocols, secrets.go makes secrets of a view.
//
// A name that is not there yet is no error: the stream stays open and the secret is pushed when it exists, so that an Envoy which
// started first comes up by itself.
package sds

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-dev/writ/agent"
	"github.com/writ-dev/writ/agent/peer"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
)

// secretType is the only type_url that is served.
const secretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

// Source gives a process its share of what the agent holds. *agent.Agent is one.
type Source interface {
	Subscribe(ctx context.Context, p attest.Peer) (*agent.Subscription, error)
}

// Config is what a Handler needs.
type Config struct {
	Source Source
	Log    *slog.Logger // nil: nothing is logged
}

// Handler implements secretv3.SecretDiscoveryServiceServer. Register it on a gRPC server that pins its callers (agent/peer). All
// methods are safe to call concurrently.
type Handler struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer
	config  Config
	stopped chan struct{}
	once    sync.Once
}

// New gives a Handler.
func New(c Config) *Handler {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Handler{config: c, stopped: make(chan struct{})}
}

// Stop ends every stream with Unavailable, so that each Envoy comes back.
func (h *Handler) Stop() { h.once.Do(func() { close(h.stopped) }) }

// FetchSecrets answers once. A name that is not there is InvalidArgument: nothing could be pushed later.
func (h *Handler) FetchSecrets(ctx context.Context, r *discoveryv3.DiscoveryRequest) (*discoveryv3.DiscoveryResponse, error) {
	if err := checkType(r.TypeUrl); err != nil {
		return nil, err
	}
	caller, err := peer.From(ctx)
	if err != nil {
		return nil, h.answer(ctx, err)
	}
	subscription, err := h.config.Source.Subscribe(ctx, caller)
	if err != nil {
		return nil, h.answer(ctx, err)
	}
	defer subscription.Close()
	for {
		view := subscription.View()
		if !view.Known {
			return nil, h.answer(ctx, subscription.Err())
		}
		found := secretsOf(view, flavourOf(r.Node)).named(r.ResourceNames)
		missing := found.missing(r.ResourceNames)
		switch {
		case len(missing) == 0:
			peer.Answered(ctx)
			return &discoveryv3.DiscoveryResponse{TypeUrl: secretType, VersionInfo: found.version(), Resources: found.resources()}, nil
		case !view.Pending:
			return nil, status.Errorf(codes.InvalidArgument, "the caller has no secret named %s", strings.Join(missing, ", "))
		}
		select { // an SVID is being signed
		case <-subscription.Changed():
		case <-subscription.Done():
			return nil, h.answer(ctx, subscription.Err())
		case <-h.stopped:
			return nil, stopping()
		}
	}
}

// watch hands over the caller's views as they change, an empty one while the agent does not know its entries. It returns when the
// stream, the process or the agent ends, with the answer for the stream.
func (h *Handler) watch(ctx context.Context, caller attest.Peer, views chan<- agent.View) error {
	for {
		subscription, err := h.config.Source.Subscribe(ctx, caller)
		switch {
		case err == nil:
			err = h.hand(ctx, subscription, views)
			subscription.Close()
			return err
		case !fault.Is(err, fault.Unavailable):
			return h.answer(ctx, err)
		}
		select {
		case <-time.After(100 * time.Millisecond): // the agent is starting
		case <-ctx.Done():
			return h.answer(ctx, ctx.Err())
		case <-h.stopped:
			return stopping()
		}
	}
}

func (h *Handler) hand(ctx context.Context, s *agent.Subscription, views chan<- agent.View) error {
	for {
		if view := s.View(); view.Known {
			select {
			case views <- view:
			case <-ctx.Done():
				return h.answer(ctx, ctx.Err())
			}
		}
		select {
		case <-s.Changed():
		case <-s.Done():
			return h.answer(ctx, s.Err())
		case <-h.stopped:
			return stopping()
		}
	}
}

func stopping() error { return status.Error(codes.Unavailable, "the agent is stopping") }

func checkType(url string) error {
	if url != "" && url != secretType {
		return status.Errorf(codes.InvalidArgument, "type_url %q is not %s", url, secretType)
	}
	return nil
}

// answer turns an error into a stream's end: whatever may pass is Unavailable.
func (h *Handler) answer(ctx context.Context, err error) error {
	switch kind := fault.KindOf(err); {
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	case err == nil:
		return stopping()
	case kind == fault.Denied || kind == fault.Unavailable:
		return fault.Status(err)
	}
	h.config.Log.ErrorContext(ctx, "secrets not served", "err", err)
	return status.Error(codes.Unavailable, "the caller could not be attested; try again")
}

// secrets are the resources that one caller may have now, by name.
type secrets map[string]*anypb.Any

// resources gives them by name, sorted.
func (s secrets) resources() []*anypb.Any {
	out := make([]*anypb.Any, 0, len(s))
	for _, name := range s.names() {
		out = append(out, s[name])
	}
	return out
}

func (s secrets) names() []string {
	names := make([]string, 0, len(s))
	for name := range s {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// missing gives the names that are not there, sorted.
func (s secrets) missing(names []string) []string {
	var out []string
	for _, name := range names {
		if s[name] == nil && name != "" {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
