package registration

import (
	"cmp"
	"slices"

	"github.com/writ-dev/writ/attest"
)

// Near is an entry that a workload does not match, and what it lacks.
type Near struct {
	Entry   Entry
	Has     []attest.Selector // those of Entry.Match that the workload has
	Missing []Missing         // the others, never none
}

// Missing is a selector that an entry wants and a workload has not.
type Missing struct {
	Want    attest.Selector
	Instead []attest.Selector // what the workload has of that method and key, or else of that method and value
}

// Nearest gives up to n of the entries that the workload does not match, in the order of how little is missing: fewest selectors
// missing, then most selectors there, then by name. It answers "why not", as Match answers "which".
func Nearest(entries []Entry, workload []attest.Selector, n int) []Near {
	has := setOf(workload)
	var best []distance
	for i := range entries {
		d := distance{entry: &entries[i]}
		for _, s := range d.entry.Match {
			if _, there := has[s]; there {
				d.held++
			} else {
				d.missing++
			}
		}
		if d.missing == 0 {
			continue
		}
		if at, _ := slices.BinarySearchFunc(best, d, distance.compare); at < n {
			best = slices.Insert(best, at, d)
			best = best[:min(n, len(best))]
		}
	}
	var near []Near
	for _, d := range best {
		near = append(near, nearOf(*d.entry, has, workload))
	}
	return near
}

// distance is how far a workload is from an entry.
type distance struct {
	entry         *Entry
	missing, held int
}

func (d distance) compare(e distance) int {
	return cmp.Or(cmp.Compare(d.missing, e.missing), cmp.Compare(e.held, d.held), cmp.Compare(d.entry.Name, e.entry.Name))
}

func nearOf(e Entry, has set, workload []attest.Selector) Near {
	near := Near{Entry: e}
	for _, want := range e.Match {
		if _, there := has[want]; there {
			near.Has = append(near.Has, want)
			continue
		}
		near.Missing = append(near.Missing, Missing{Want: want, Instead: instead(want, workload)})
	}
	return near
}

// instead also finds the same value under another key: a path that the agent sees otherwise than the workload does is a
// container_path.
func instead(want attest.Selector, workload []attest.Selector) []attest.Selector {
	var sameKey, sameValue []attest.Selector
	for _, s := range workload {
		switch {
		case s.Method != want.Method:
		case s.Key == want.Key:
			sameKey = append(sameKey, s)
		case s.Value == want.Value:
			sameValue = append(sameValue, s)
		}
	}
	if len(sameKey) > 0 {
		return sameKey
	}
	return sameValue
}
