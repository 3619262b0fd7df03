// Package registration says which workload may hold which SPIFFE ID. Start with Entry; Match is the whole rule.
package registration

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/attest"
)

// Entry lets workloads that match, on nodes that match, hold one SPIFFE ID. Entries are values: whoever changes one makes
// another. An Entry that came through Parse or FromWire is valid in itself; Check says whether an authority may serve it.
type Entry struct {
	Name          string // the key
	ID            spiffeid.ID
	Where         []attest.Selector // node selectors, all must hold; sorted
	Any           bool              // every node
	Match         []attest.Selector // workload selectors, all must hold; sorted, never empty
	TTL           time.Duration     // of X.509-SVIDs; 0: the server's default
	JWTTTL        time.Duration     // of JWT-SVIDs; 0: the server's default
	DNS           []string
	Hint          string
	FederatesWith []spiffeid.TrustDomain
	Expires       time.Time // zero: never
	Revision      uint64    // of the registry when it last changed; 0 before it was stored
	Created       uint64    // of the registry when it was created; 0 before it was stored
}

// Grant is a workload's right to one SPIFFE ID, and the entry it comes from: signing requests carry both.
type Grant struct {
	Entry string
	ID    spiffeid.ID
}

// Facts are what holds for every holder of a SPIFFE ID, whichever entry or node it has it from.
type Facts struct {
	ID        spiffeid.ID
	Selectors []string // shared by where and match of all its entries; sorted
	Assurance attest.Assurance
	Entry     string // where there is exactly one
	Hint      string
	Node      string // the agent ID, where exactly one node may hold it
}
