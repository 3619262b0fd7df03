package workloadapi

import (
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/agent"
	"github.com/writ-dev/writ/internal/fault"
)

// What clients take at most in one message (clients.md rule 15): the bounds of rust-spiffe, and what gRPC clients receive unless told
// otherwise.
const (
	mostSVIDs   = 100
	mostBundles = 200
	mostBytes   = 4 << 20
	framing     = 16 // bytes of tags and lengths around one element, at most
)

// errNoIdentity denies. Its first words are looked for by rust-spiffe (clients.md rule 3). What matches and what does not is for
// operators: the process learns only what they have to ask.
func errNoIdentity(pid int32) error {
	ask := fmt.Sprintf("writ explain workload --pid %d", pid)
	return fault.New(fault.Denied, nil, "no identity issued; on the node, `"+ask+"` says why").With(fault.NoIdentity, ask)
}

// composeSVIDs gives the X.509-SVIDs of a view that has some in its order, the bundle of our own trust domain beside each, and how much is left
// out because clients would not take it.
func composeSVIDs(v agent.View) (response *workload.X509SVIDResponse, left int, err error) {
	own, err := ownBundle(v)
	if err != nil {
		return nil, 0, err
	}
	response = &workload.X509SVIDResponse{}
	room := mostBytes
	for _, identity := range v.Identities[:min(len(v.Identities), mostSVIDs)] {
		one := &workload.X509SVID{
			SpiffeId:    identity.ID.String(),
			X509Svid:    slices.Concat(identity.Chain...),
			X509SvidKey: identity.Key,
			Bundle:      own,
			Hint:        identity.Hint,
		}
		if room -= proto.Size(one) + framing; room < 0 {
			break
		}
		response.Svids = append(response.Svids, one)
	}
	response.FederatedBundles, left = foreignBundles(v, rootsOf, room)
	return response, left + len(v.Identities) - len(response.Svids), nil
}

// composeBundles gives the bundles of our own trust domain and of those that the caller's entries federate with.
func composeBundles(v agent.View) (response *workload.X509BundlesResponse, left int, err error) {
	own, err := ownBundle(v)
	if err != nil {
		return nil, 0, err
	}
	bundles, left := allBundles(v, rootsOf, own)
	return &workload.X509BundlesResponse{Bundles: bundles}, left, nil
}

// composeJWTBundles is composeBundles with the keys for JWT-SVIDs. Our own are there even if there is none (clients.md rule 20).
func composeJWTBundles(v agent.View) (response *workload.JWTBundlesResponse, left int, err error) {
	if len(v.Bundles) == 0 {
		return nil, 0, errNoBundle()
	}
	bundles, left := allBundles(v, keysOf, v.Bundles[0].JWT.JWKS())
	return &workload.JWTBundlesResponse{Bundles: bundles}, left, nil
}

// rootsOf is a bundle as X.509-SVIDs need it.
func rootsOf(b agent.Bundle) []byte { return slices.Concat(b.Roots...) }

// keysOf is a bundle as JWT-SVIDs need it: a plain JWK set, nothing where there is no key.
func keysOf(b agent.Bundle) []byte {
	if len(b.JWT.Keys) == 0 {
		return nil
	}
	return b.JWT.JWKS()
}

// ownBundle is never empty: clients refuse an SVID without one (clients.md rule 6).
func ownBundle(v agent.View) ([]byte, error) {
	if len(v.Bundles) == 0 || len(v.Bundles[0].Roots) == 0 {
		return nil, errNoBundle()
	}
	return rootsOf(v.Bundles[0]), nil
}

func errNoBundle() error {
	return fault.New(fault.Unavailable, nil, "the agent has no bundle yet").With(fault.AgentStarting, "")
}

// allBundles are our own trust domain's, as given, and the foreign ones.
func allBundles(v agent.View, encode func(agent.Bundle) []byte, own []byte) (bundles map[string][]byte, left int) {
	id := v.Bundles[0].TrustDomain.IDString()
	bundles, left = foreignBundles(v, encode, mostBytes-len(id)-len(own)-framing)
	bundles[id] = own
	return bundles, left
}

// foreignBundles gives the bundles of the other trust domains by their IDs, as far as there is room. A domain whose bundle is empty
// is left out: one bad element spoils the whole message for some clients (clients.md rule 5).
func foreignBundles(v agent.View, encode func(agent.Bundle) []byte, room int) (bundles map[string][]byte, left int) {
	bundles = map[string][]byte{}
	for _, b := range v.Bundles[1:] {
		id, encoded := b.TrustDomain.IDString(), encode(b)
		size := len(id) + len(encoded) + framing
		switch {
		case len(encoded) == 0:
		case size > room, len(bundles) == mostBundles-1: // our own is the one more
			left++
		default:
			room -= size
			bundles[id] = encoded
		}
	}
	return bundles, left
}
