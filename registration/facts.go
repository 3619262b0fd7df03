package registration

import (
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/attest"
)

// FactsOf says what holds for every holder of id, whichever of its entries and nodes it came by: selectors that all its entries
// ask for, and the least assurance of the nodes that may serve one. A node that was locked or banned counts, since what it got
// before is still in use. Without entries nothing is known but the ID.
func FactsOf(id spiffeid.ID, entries []Entry, nodes []attest.Node) Facts {
	facts := Facts{ID: id, Selectors: []string{}}
	var mine []Entry
	for _, e := range entries {
		if e.ID == id {
			mine = append(mine, e)
		}
	}
	if len(mine) == 0 {
		return facts
	}
	facts.Selectors, facts.Hint = sharedSelectors(mine), mine[0].Hint
	if len(mine) == 1 {
		facts.Entry = mine[0].Name
	}
	if slices.ContainsFunc(mine, func(e Entry) bool { return e.Hint != facts.Hint }) {
		facts.Hint = ""
	}
	holders := 0
	for _, n := range nodes {
		if !slices.ContainsFunc(mine, func(e Entry) bool { return e.OnNode(n.ID, n.Selectors) }) {
			continue
		}
		if holders++; holders == 1 {
			facts.Assurance, facts.Node = n.Assurance, n.ID.String()
			continue
		}
		facts.Assurance, facts.Node = min(facts.Assurance, n.Assurance), ""
	}
	return facts
}

func sharedSelectors(entries []Entry) []string {
	count := map[attest.Selector]int{}
	for _, e := range entries {
		for selector := range setOf(slices.Concat(e.Where, e.Match)) {
			count[selector]++
		}
	}
	shared := []string{}
	for selector, n := range count {
		if n == len(entries) {
			shared = append(shared, selector.String())
		}
	}
	slices.Sort(shared)
	return shared
}
