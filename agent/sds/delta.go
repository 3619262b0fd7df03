package sds

import (
	"errors"
	"log/slog"
	"slices"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"

	"github.com/writ-dev/writ/agent"
)

// errClosed says that the client ended the stream in good order.
var errClosed = errors.New("the client ended the stream")

// DeltaSecrets is the incremental protocol: a response holds what changed, and names what was withdrawn.
func (h *Handler) DeltaSecrets(stream secretv3.SecretDiscoveryService_DeltaSecretsServer) error {
	s := &follower{log: h.config.Log, names: map[string]bool{}, held: map[string]string{}}
	return converse(h, stream, func(r *discoveryv3.DeltaDiscoveryRequest) error {
		if err := checkType(r.TypeUrl); err != nil {
			return err
		}
		return s.request(r, stream.Send)
	}, func(v agent.View) error { return s.update(v, stream.Send) })
}

// follower is what one Envoy subscribed to on a delta stream, and what it holds. One goroutine owns it.
type follower struct {
	log     *slog.Logger
	asked   bool
	all     bool // the wildcard: every secret by its own name
	names   map[string]bool
	flavour flavour
	view    agent.View
	held    map[string]string // version by name, as the Envoy said at first and as was sent since
}

func (s *follower) request(r *discoveryv3.DeltaDiscoveryRequest, send func(*discoveryv3.DeltaDiscoveryResponse) error) error {
	if !s.asked {
		s.flavour = flavourOf(r.Node)
		for name, version := range r.InitialResourceVersions {
			s.held[name] = version
		}
		s.all = len(r.ResourceNamesSubscribe) == 0
	}
	logRefusal(s.log, r.ErrorDetail, r.Node)
	for _, name := range r.ResourceNamesSubscribe {
		switch {
		case name == "*":
			s.all = true
		case s.asked: // asked for again: wanted again
			delete(s.held, name)
			fallthrough
		default:
			s.names[name] = true
		}
	}
	for _, name := range r.ResourceNamesUnsubscribe {
		if name == "*" {
			s.all = false
			continue
		}
		delete(s.names, name)
		delete(s.held, name)
	}
	s.asked = true
	return s.respond(send)
}

func (s *follower) update(v agent.View, send func(*discoveryv3.DeltaDiscoveryResponse) error) error {
	s.view = v
	if !s.asked {
		return nil
	}
	return s.respond(send)
}

// respond sends what the Envoy does not hold yet, and what it holds and may not any more.
func (s *follower) respond(send func(*discoveryv3.DeltaDiscoveryResponse) error) error {
	if !s.view.Known { // nothing is known to be withdrawn
		return nil
	}
	found := s.wanted()
	response := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: secretType}
	for _, name := range found.names() {
		version := versionOf(found[name])
		if s.held[name] == version {
			continue
		}
		s.held[name] = version
		response.Resources = append(response.Resources, &discoveryv3.Resource{Name: name, Version: version, Resource: found[name]})
	}
	for name := range s.held {
		if found[name] == nil && !s.view.Pending {
			delete(s.held, name)
			response.RemovedResources = append(response.RemovedResources, name)
		}
	}
	if len(response.Resources)+len(response.RemovedResources) == 0 {
		return nil
	}
	slices.Sort(response.RemovedResources)
	response.Nonce, response.SystemVersionInfo = newNonce(), found.version()
	return send(response)
}

func (s *follower) wanted() secrets {
	b := secretsOf(s.view, s.flavour)
	found := secrets{}
	if s.all {
		found = b.named(nil)
	}
	for name := range s.names {
		for key, resource := range b.named([]string{name}) {
			found[key] = resource
		}
	}
	return found
}
