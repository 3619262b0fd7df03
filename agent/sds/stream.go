package sds

import (
	"crypto/rand"
	"encoding/hex"
	"slices"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"

	"github.com/writ-dev/writ/agent"
)

// StreamSecrets is the state-of-the-world protocol: each response holds all secrets of the names asked for that there are.
func (h *Handler) StreamSecrets(stream secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	return converse(h, stream, &subscriber{handler: h, send: stream.Send})
}

// subscriber is what one Envoy asked for on a state-of-the-world stream, and what it was sent. One goroutine owns it.
type subscriber struct {
	handler *Handler
	send    func(*discoveryv3.DiscoveryResponse) error
	asked   bool // a request came
	names   []string
	flavour flavour
	version string // of the last response to these names; empty: none
	nonce   string
}

// take takes a request: the first, an acknowledgement, a refusal, or other names.
func (s *subscriber) take(r *discoveryv3.DiscoveryRequest) error {
	if err := checkType(r.TypeUrl); err != nil {
		return err
	}
	if s.nonce != "" && r.ResponseNonce != s.nonce { // about an older response (SDS-17)
		return nil
	}
	if !s.asked { // the node comes with the first request (SDS-20)
		s.flavour = flavourOf(r.Node)
	}
	s.handler.refused(r.Node, r.ErrorDetail)
	names, err := namesOf(r.ResourceNames)
	if err != nil {
		return err
	}
	// No names are all of them (SDS-09), but after some names they are none: Envoy lets go of the last.
	if len(names) == 0 && (!s.asked || slices.Contains(s.names, wildcard)) {
		names = []string{wildcard}
	}
	if s.asked && slices.Equal(names, s.names) {
		return nil
	}
	s.asked, s.names, s.version = true, names, "" // other names: answered at once, whatever they hold (SDS-19)
	return nil
}

// show sends what there is of the names, unless nothing is or nothing changed.
func (s *subscriber) show(v agent.View) (sent bool, err error) {
	found := secretsOf(v, s.flavour).named(s.names)
	if len(found) == 0 || found.version() == s.version {
		return false, nil
	}
	s.version, s.nonce = found.version(), newNonce()
	return true, s.send(&discoveryv3.DiscoveryResponse{TypeUrl: secretType, VersionInfo: s.version, Nonce: s.nonce, Resources: found.resources()})
}

func newNonce() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
