package sds

import (
	"maps"
	"slices"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"

	"github.com/writ-dev/writ/agent"
)

// DeltaSecrets is the incremental protocol: a response holds what changed, and names what was withdrawn.
func (h *Handler) DeltaSecrets(stream secretv3.SecretDiscoveryService_DeltaSecretsServer) error {
	return converse(h, stream, &follower{handler: h, send: stream.Send, names: map[string]bool{}, held: map[string]string{}})
}

// follower is what one Envoy subscribed to on a delta stream, and what it holds. One goroutine owns it.
type follower struct {
	handler *Handler
	send    func(*discoveryv3.DeltaDiscoveryResponse) error
	asked   bool
	names   map[string]bool // may hold the wildcard
	flavour flavour
	held    map[string]string // version by name, as the Envoy said at first and as was sent since
}

// take takes a request. An acknowledgement or a refusal says nothing new: what was sent counts as held either way, so that what an
// Envoy refuses is sent again only when it changes.
func (s *follower) take(r *discoveryv3.DeltaDiscoveryRequest) error {
	if err := checkType(r.TypeUrl); err != nil {
		return err
	}
	s.handler.refused(r.Node, r.ErrorDetail)
	subscribe, err := namesOf(r.ResourceNamesSubscribe)
	if err != nil {
		return err
	}
	if !s.asked {
		s.asked, s.flavour = true, flavourOf(r.Node)
		if len(subscribe) == 0 {
			subscribe = []string{wildcard}
		}
		maps.Copy(s.held, r.InitialResourceVersions)
	} else {
		for _, name := range subscribe { // asked for again: wanted again
			delete(s.held, name)
		}
	}
	for _, name := range subscribe {
		s.names[name] = true
	}
	for _, name := range r.ResourceNamesUnsubscribe {
		delete(s.names, name)
		delete(s.held, name)
		if name == wildcard {
			maps.DeleteFunc(s.held, func(name, _ string) bool { return !s.names[name] })
		}
	}
	if len(s.names) > mostNames {
		return errTooMany()
	}
	return nil
}

// show sends what the Envoy does not hold yet, and names what it holds and may not any more.
func (s *follower) show(v agent.View) (sent bool, err error) {
	found := secretsOf(v, s.flavour).named(slices.Collect(maps.Keys(s.names)))
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
		if found[name] == nil && !v.Pending { // else it may be what is being signed
			delete(s.held, name)
			response.RemovedResources = append(response.RemovedResources, name)
		}
	}
	if len(response.Resources)+len(response.RemovedResources) == 0 {
		return false, nil
	}
	slices.Sort(response.RemovedResources)
	response.Nonce, response.SystemVersionInfo = newNonce(), found.version()
	return true, s.send(response)
}
