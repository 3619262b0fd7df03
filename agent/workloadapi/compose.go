package workloadapi

import (
	"slices"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"

	"github.com/writ-dev/writ/agent"
	"github.com/writ-dev/writ/internal/fault"
)

// What clients take at most in one message (clients.md rule 15).
const (
	mostSVIDs   = 100
	mostBundles = 200
)

// errNoIdentity denies. The words are looked for by rust-spiffe (clients.md rule 3).
func errNoIdentity() error {
	return fault.New(fault.Denied, nil, "no identity issued").With(fault.NoIdentity,
		"apply an entry that matches the process; the agent's log names its selectors")
}

// composeSVIDs gives every X.509-SVID of the view in its order, the bundle of our own trust domain beside each.
func composeSVIDs(v agent.View) (*workload.X509SVIDResponse, error) {
	if len(v.Identities) == 0 {
		return nil, errNoIdentity()
	}
	own, federated, err := bundles(v)
	if err != nil {
		return nil, err
	}
	response := &workload.X509SVIDResponse{FederatedBundles: federated}
	for _, identity := range v.Identities[:min(len(v.Identities), mostSVIDs)] {
		response.Svids = append(response.Svids, &workload.X509SVID{
			SpiffeId:    identity.ID.String(),
			X509Svid:    slices.Concat(identity.Chain...),
			X509SvidKey: identity.Key,
			Bundle:      own,
			Hint:        identity.Hint,
		})
	}
	return response, nil
}

// composeBundles gives the bundles of our own trust domain and of those that the caller's entries federate with.
func composeBundles(v agent.View) (*workload.X509BundlesResponse, error) {
	if len(v.Identities) == 0 {
		return nil, errNoIdentity()
	}
	own, all, err := bundles(v)
	if err != nil {
		return nil, err
	}
	if all == nil {
		all = map[string][]byte{}
	}
	all[v.Bundles[0].TrustDomain.IDString()] = own
	return &workload.X509BundlesResponse{Bundles: all}, nil
}

// bundles gives the own bundle, never empty, and the foreign ones that hold anything, by trust domain ID. A domain without a root
// is left out: one bad element spoils the whole message for some clients (clients.md rule 5).
func bundles(v agent.View) (own []byte, federated map[string][]byte, err error) {
	if len(v.Bundles) == 0 || len(v.Bundles[0].Roots) == 0 {
		return nil, nil, fault.New(fault.Unavailable, nil, "the agent has no bundle yet").With(fault.AgentStarting, "")
	}
	for _, b := range v.Bundles[1:min(len(v.Bundles), mostBundles)] {
		if len(b.Roots) == 0 {
			continue
		}
		if federated == nil {
			federated = map[string][]byte{}
		}
		federated[b.TrustDomain.IDString()] = slices.Concat(b.Roots...)
	}
	return slices.Concat(v.Bundles[0].Roots...), federated, nil
}
