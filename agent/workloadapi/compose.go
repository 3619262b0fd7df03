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
	response.FederatedBundles, left = foreignBundles(v, room)
	return response, left + len(v.Identities) - len(response.Svids), nil
}

// composeBundles gives the bundles of our own trust domain and of those that the caller's entries federate with.
func composeBundles(v agent.View) (response *workload.X509BundlesResponse, left int, err error) {
	own, err := ownBundle(v)
	if err != nil {
		return nil, 0, err
	}
	id := v.Bundles[0].TrustDomain.IDString()
	bundles, left := foreignBundles(v, mostBytes-len(id)-len(own)-framing)
	bundles[id] = own
	return &workload.X509BundlesResponse{Bundles: bundles}, left, nil
}

// ownBundle is never empty: clients refuse an SVID without one (clients.md rule 6).
func ownBundle(v agent.View) ([]byte, error) {
	if len(v.Bundles) == 0 || len(v.Bundles[0].Roots) == 0 {
		return nil, fault.New(fault.Unavailable, nil, "the agent has no bundle yet").With(fault.AgentStarting, "")
	}
	return slices.Concat(v.Bundles[0].Roots...), nil
}

// foreignBundles gives the bundles of the other trust domains by their IDs, as far as there is room. A domain without a root is left
// out: one bad element spoils the whole message for some clients (clients.md rule 5).
func foreignBundles(v agent.View, room int) (bundles map[string][]byte, left int) {
	bundles = map[string][]byte{}
	for _, b := range v.Bundles[1:] {
		id, roots := b.TrustDomain.IDString(), slices.Concat(b.Roots...)
		size := len(id) + len(roots) + framing
		switch {
		case len(roots) == 0:
		case size > room, len(bundles) == mostBundles-1: // our own is the one more
			left++
		default:
			room -= size
			bundles[id] = roots
		}
	}
	return bundles, left
}
