package registration

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/attest"
)

// Match is the whole rule: a workload may hold the SPIFFE ID of each entry whose every match selector it has. The caller hands in
// the entries that its node may serve (OnNode) and that have not expired.
//
// Grants come in the order of Compare: the first is the workload's default identity, which no entry that is added or changed later may
// flip (ruling R8).
func Match(entries []Entry, workload []attest.Selector) []Grant {
	has := setOf(workload)
	var granting []Entry
	for _, e := range entries {
		// An entry without match selectors never came through Parse; it must not match everything here.
		if len(e.Match) > 0 && has.all(e.Match) {
			granting = append(granting, e)
		}
	}
	slices.SortFunc(granting, Entry.Compare)
	grants := make([]Grant, len(granting))
	for i, e := range granting {
		grants[i] = Grant{Entry: e.Name, ID: e.ID}
	}
	return grants
}

// Compare orders entries by age, the oldest first, and by name where a batch created several.
func (e Entry) Compare(f Entry) int {
	return cmp.Or(cmp.Compare(e.Created, f.Created), cmp.Compare(e.Name, f.Name))
}

// OnNode says whether a node of that agent ID with these selectors may serve the entry.
func (e Entry) OnNode(id spiffeid.ID, selectors []attest.Selector) bool {
	if !id.MemberOf(e.ID.TrustDomain()) {
		return false
	}
	return e.Any || len(e.Where) > 0 && setOf(selectors).all(e.Where)
}

// Expired says whether the entry's time is over.
func (e Entry) Expired(now time.Time) bool { return !e.Expires.IsZero() && !now.Before(e.Expires) }

// Equal says whether applying f over e would change nothing: the revisions do not count.
func (e Entry) Equal(f Entry) bool {
	return e.Name == f.Name && e.ID == f.ID && e.Any == f.Any && e.TTL == f.TTL && e.JWTTTL == f.JWTTTL && e.Hint == f.Hint &&
		e.Expires.Equal(f.Expires) && slices.Equal(e.Where, f.Where) && slices.Equal(e.Match, f.Match) &&
		slices.Equal(e.DNS, f.DNS) && slices.Equal(e.FederatesWith, f.FederatesWith)
}

// Digest is a SHA-256 of which entries at which revisions these are, in whatever order. Server and agent compare it to find out
// that a delta was lost.
func Digest(entries []Entry) []byte {
	order := slices.Clone(entries)
	slices.SortFunc(order, func(a, b Entry) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Revision, b.Revision)) })
	var text []byte
	for _, e := range order {
		text = binary.BigEndian.AppendUint32(text, uint32(len(e.Name)))
		text = append(text, e.Name...)
		text = binary.BigEndian.AppendUint64(text, e.Revision)
	}
	sum := sha256.Sum256(text)
	return sum[:]
}

// set is a set of selectors.
type set map[attest.Selector]struct{}

func setOf(list []attest.Selector) set {
	s := make(set, len(list))
	for _, selector := range list {
		s[selector] = struct{}{}
	}
	return s
}

func (s set) all(list []attest.Selector) bool {
	for _, selector := range list {
		if _, there := s[selector]; !there {
			return false
		}
	}
	return true
}

// sortedOnce gives a sorted copy with each value once, nil for none.
func sortedOnce[T comparable](list []T, compare func(a, b T) int) []T {
	if len(list) == 0 {
		return nil
	}
	list = slices.Clone(list)
	slices.SortFunc(list, compare)
	return slices.Compact(list)
}
