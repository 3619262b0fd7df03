package svid

import (
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4/json"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ParseBundleMap reads the bundles of several trust domains, SPIFFE_Trust_Domain_and_Bundle section 5. They are the whole state: a
// trust domain that is not there is trusted no more, and one bundle that cannot be read refuses the map. Whatever a bundle hints
// about refreshing is left out, since only the map as a whole is fetched.
func ParseBundleMap(document []byte) (map[spiffeid.TrustDomain]Bundle, error) {
	if err := checkBounds(document); err != nil {
		return nil, fmt.Errorf("bundle map: %w", err)
	}
	var whole any // for names that are there twice, at any depth and in any spelling
	var set struct {
		TrustDomains *map[string]json.RawMessage `json:"trust_domains"`
	}
	if json.Unmarshal(document, &whole) != nil || json.Unmarshal(document, &set) != nil || set.TrustDomains == nil {
		return nil, errors.New("no bundle map: it is no JSON object with trust_domains, or says a thing twice")
	}
	bundles := make(map[spiffeid.TrustDomain]Bundle, len(*set.TrustDomains))
	for name, text := range *set.TrustDomains {
		td, err := ParseTrustDomain(name) // a bare name, unlike the maps of the Workload API
		if err != nil {
			return nil, fmt.Errorf("bundle map: %w", err)
		}
		b, err := ParseBundle(td, text)
		if err != nil {
			return nil, fmt.Errorf("bundle map: %w", err)
		}
		b.RefreshHint = 0
		bundles[td] = b
	}
	return bundles, nil
}
