// Package attesttest is the suite that every method of node attestation passes. A method's test hands a Pair to Run and gets every
// case; each says which rule of attest.Verifier it guards.
package attesttest

import (
	"net/netip"
	"testing"
	"time"

	"github.com/writ-dev/writ/attest"
)

// Pair is both halves of one method, set up so that what the Attestor makes the Verifier takes.
type Pair struct {
	Attestor attest.Attestor
	Verifier attest.Verifier
	From     netip.Addr // where claims come from; the zero value: 192.0.2.1
	Now      time.Time  // when they are judged; the zero value: time.Now
	State    func() any // a copy of what Verify must not change, compared by go-cmp; nil: nothing to compare
}

// Run runs the suite.
func Run(t *testing.T, pair Pair) {
	t.Helper()
	s := newSuite(pair)
	for _, c := range cases() {
		t.Run(c.rule, func(t *testing.T) {
			if err := c.check(s); err != nil {
				t.Error(err)
			}
		})
	}
}

// Broken gives the rules that a pair breaks, for tests of the suite itself.
func Broken(pair Pair) []string {
	s := newSuite(pair)
	var out []string
	for _, c := range cases() {
		if c.check(s) != nil {
			out = append(out, c.rule)
		}
	}
	return out
}

// A rule is what every verifier owes, in one sentence; check says how it is broken.
type rule struct {
	rule  string
	check func(suite) error
}

func cases() []rule {
	return []rule{
		{"both halves name the same method", sameMethod},
		{"what the attestor makes the verifier takes", takesItsOwn},
		{"the result says who it is, how surely, and what it used up", resultIsWhole},
		{"the same node has the same key over every connection", keyIsStable},
		{"judging changes nothing", changesNothing},
		{"evidence serves for its own binding only", boundToItsBinding},
		{"evidence cut off anywhere is refused", refusesPrefixes},
		{"evidence with more behind it is refused", refusesSuffixes},
		{"a flipped bit is refused or changes nothing that was found", refusesFlips},
		{"noise, nothing and floods are refused", refusesNoise},
		{"many may be judged at once", judgesConcurrently},
		{"a cancelled call is no verdict", cancelled},
	}
}
