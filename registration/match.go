package registration

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/attest"
)

// Match gives what a workload with these selectors may hold.
func Match(entries []Entry, workload []attest.Selector) []Grant { return nil }

// OnNode says whether the entry may be served on a node of that ID with these selectors.
func (e Entry) OnNode(id spiffeid.ID, selectors []attest.Selector) bool { return false }

// Expired says whether the entry's time is over.
func (e Entry) Expired(now time.Time) bool { return false }

// Equal compares everything but the revision.
func (e Entry) Equal(f Entry) bool { return false }

// Digest is a SHA-256 of which entries at which revisions these are, in any order.
func Digest(entries []Entry) []byte { return nil }

// FactsOf says what holds for every holder of id.
func FactsOf(id spiffeid.ID, entries []Entry, nodes []attest.Node) Facts { return Facts{} }
