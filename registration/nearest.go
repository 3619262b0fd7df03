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
	type distance struct {
		entry         Entry
		missing, held int
	}
	var all []distance
	for _, e := range entries {
		d := distance{entry: e}
		for _, s := range e.Match {
			if _, there := has[s]; there {
				d.held++
			} else {
				d.missing++
			}
		}
		if d.missing > 0 {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b distance) int {
		return cmp.Or(cmp.Compare(a.missing, b.missing), cmp.Compare(b.held, a.held), cmp.Compare(a.entry.Name, b.entry.Name))
	})
	var near []Near
	for _, d := range all[:min(n, len(all))] {
		near = append(near, nearOf(d.entry, has, workload))
	}
	return near
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
