// Package sds serves Envoy's Secret Discovery Service v3 on the agent's Unix socket, state of the world and delta. Start with Handler;
// converse.go runs a stream, stream.go and delta.go are its two protocols, secrets.go makes secrets of a view.
//
// A name that is not there yet is no error: the stream stays open and the secret is pushed when it exists, so that an Envoy which
// started first comes up by itself.
package sds

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"golang.org/x/time/rate"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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
	seldom  rate.Sometimes
}

// New gives a Handler.
func New(c Config) *Handler {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Handler{config: c, stopped: make(chan struct{}), seldom: rate.Sometimes{First: 10, Interval: time.Second}}
}

// Stop ends every stream with Unavailable, so that each Envoy comes back.
func (h *Handler) Stop() { h.once.Do(func() { close(h.stopped) }) }

// wholeWithin is how long a first answer waits for SVIDs that are still being signed: an answer in parts would show a default SVID
// that changes with the next part.
const wholeWithin = time.Second

// FetchSecrets answers once. A name that is not there is InvalidArgument: nothing could be pushed later.
func (h *Handler) FetchSecrets(ctx context.Context, r *discoveryv3.DiscoveryRequest) (*discoveryv3.DiscoveryResponse, error) {
	if err := checkType(r.TypeUrl); err != nil {
		return nil, err
	}
	names, err := namesOf(r.ResourceNames)
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		names = []string{wildcard}
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
	view, err := h.settled(ctx, subscription)
	if err != nil {
		return nil, err
	}
	found := secretsOf(view, flavourOf(r.Node)).named(names)
	missing := found.missing(names)
	switch {
	case len(missing) == 0:
		peer.Answered(ctx)
		return &discoveryv3.DiscoveryResponse{TypeUrl: secretType, VersionInfo: found.version(), Resources: found.resources()}, nil
	case view.Pending:
		return nil, status.Error(codes.Unavailable, "an SVID is still being signed; try again")
	}
	return nil, status.Errorf(codes.InvalidArgument, "the caller has no secret named %s", strings.Join(missing, ", "))
}

// settled waits a little while for a view without SVIDs that are being signed.
func (h *Handler) settled(ctx context.Context, s *agent.Subscription) (agent.View, error) {
	grace := time.NewTimer(wholeWithin)
	defer grace.Stop()
	for late := false; ; {
		view := s.View()
		if !view.Known {
			return view, h.answer(ctx, s.Err())
		}
		if late || !view.Pending {
			return view, nil
		}
		select {
		case <-s.Changed():
		case <-grace.C:
			late = true
		case <-s.Done():
			return view, h.answer(ctx, s.Err())
		case <-h.stopped:
			return view, stopping()
		}
	}
}

// subscribe waits while the agent does not know its entries; whatever else is wrong ends the stream.
func (h *Handler) subscribe(ctx context.Context, caller attest.Peer) (*agent.Subscription, error) {
	for {
		subscription, err := h.config.Source.Subscribe(ctx, caller)
		if err == nil || !fault.Is(err, fault.Unavailable) {
			return subscription, err
		}
		select {
		case <-time.After(100 * time.Millisecond): // the agent is starting
		case <-ctx.Done():
			return nil, ctx.Err()
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

// mostNames bounds what is remembered for one stream.
const mostNames = 1000

// namesOf gives the names of a request, sorted, each once. An empty name is none.
func namesOf(names []string) ([]string, error) {
	out := slices.DeleteFunc(slices.Sorted(slices.Values(names)), func(n string) bool { return n == "" })
	out = slices.Compact(out)
	if len(out) > mostNames {
		return nil, errTooMany()
	}
	return out, nil
}

func errTooMany() error {
	return status.Errorf(codes.InvalidArgument, "more than %d names on one stream", mostNames)
}

// refused says that an Envoy would not take what it was sent. It is sent again only when it changes. What any local process can
// cause fills no log.
func (h *Handler) refused(node *corev3.Node, detail *rpcstatus.Status) {
	if detail == nil {
		return
	}
	err := fmt.Errorf("node %.100q: %.300q", node.GetId(), detail.GetMessage())
	h.seldom.Do(func() { h.config.Log.Warn("envoy refused a secret", "err", err) })
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
