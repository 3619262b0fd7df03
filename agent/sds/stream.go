package sds

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/genproto/googleapis/rpc/status"

	"github.com/writ-dev/writ/agent"
	"github.com/writ-dev/writ/agent/peer"
)

// StreamSecrets is the state-of-the-world protocol: each response holds all secrets of the names asked for that there are.
func (h *Handler) StreamSecrets(stream secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	s := &subscriber{log: h.config.Log}
	return converse(h, stream, func(r *discoveryv3.DiscoveryRequest) error {
		if err := checkType(r.TypeUrl); err != nil {
			return err
		}
		return s.request(r, stream.Send)
	}, func(v agent.View) error { return s.update(v, stream.Send) })
}

// subscriber is what one Envoy asked for on a state-of-the-world stream, and what it was sent. One goroutine owns it.
type subscriber struct {
	log     *slog.Logger
	asked   bool // a request came
	names   []string
	flavour flavour
	view    agent.View
	version string // of the last response; empty: none
	nonce   string
}

// request takes a request: the first, an acknowledgement, a refusal, or other names.
func (s *subscriber) request(r *discoveryv3.DiscoveryRequest, send func(*discoveryv3.DiscoveryResponse) error) error {
	if s.nonce != "" && r.ResponseNonce != s.nonce { // about an older response (SDS-17)
		return nil
	}
	if r.Node != nil && !s.asked { // SDS-20
		s.flavour = flavourOf(r.Node)
	}
	logRefusal(s.log, r.ErrorDetail, r.Node)
	names := slices.Compact(slices.Sorted(slices.Values(r.ResourceNames)))
	if s.asked && slices.Equal(names, s.names) {
		return nil
	}
	s.asked, s.names, s.version = true, names, "" // other names: answered at once, whatever they hold (SDS-19)
	return s.respond(send)
}

func (s *subscriber) update(v agent.View, send func(*discoveryv3.DiscoveryResponse) error) error {
	s.view = v
	if !s.asked {
		return nil
	}
	return s.respond(send)
}

// respond sends what there is of the names, unless nothing is or nothing changed.
func (s *subscriber) respond(send func(*discoveryv3.DiscoveryResponse) error) error {
	found := secretsOf(s.view, s.flavour).named(s.names)
	if len(found) == 0 || found.version() == s.version {
		return nil
	}
	s.version, s.nonce = found.version(), newNonce()
	return send(&discoveryv3.DiscoveryResponse{TypeUrl: secretType, VersionInfo: s.version, Nonce: s.nonce, Resources: found.resources()})
}

func newNonce() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// logRefusal says that an Envoy would not take what it was sent. It is sent again only when it changes.
func logRefusal(log *slog.Logger, detail *status.Status, node *corev3.Node) {
	if detail != nil {
		log.Warn("envoy refused a secret", "err", node.GetId()+": "+detail.Message)
	}
}

// converse runs one stream: requests and views in the order they come, on one goroutine, until either side ends.
func converse[R any](h *Handler, stream interface {
	Context() context.Context
	Recv() (R, error)
}, request func(R) error, update func(agent.View) error) error {
	caller, err := peer.From(stream.Context())
	if err != nil {
		return h.answer(stream.Context(), err)
	}
	requests, views := make(chan R), make(chan agent.View)
	g, ctx := errgroup.WithContext(stream.Context())
	go func() { // ends with the stream, which ends when this handler returns
		defer close(requests)
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	g.Go(func() error { return h.watch(ctx, caller, views) })
	g.Go(func() error {
		for {
			var err error
			select {
			case r, ok := <-requests:
				if !ok {
					return errClosed
				}
				err = request(r)
			case v := <-views:
				if err = update(v); err == nil {
					peer.Answered(ctx)
				}
			case <-ctx.Done():
				return ctx.Err()
			}
			if err != nil {
				return err
			}
		}
	})
	if err := g.Wait(); err != errClosed {
		return err
	}
	return nil
}
