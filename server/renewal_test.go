package server_test

import (
	"testing"

	"github.com/writ-dev/writ/internal/fault"
)

// A renewal changes nothing that other nodes or the registry hear of; signing must go on all the same.
func TestNodeSignsAfterItsRenewal(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	d.apply(entry("orders"))
	h := d.join("web-1")
	for generation := uint64(1); generation <= 3; generation++ {
		if results := must(h.sign("orders"))(t); results[0].Status != 0 {
			t.Fatalf("in generation %d the SVID is refused: %s", generation, results[0].Message)
		}
		if a := must(h.renew(generation+1, newKey(t)))(t); a.Generation != generation+1 || a.AgentId != h.id {
			t.Fatalf("renewal answered generation %d for %s", a.Generation, a.AgentId)
		}
	}
	d.checkIssuances()
}

func TestLostAnswerOfRenewalIsGivenAgain(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	h := d.join("web-1")
	next := newKey(t)
	must(h.renew(2, next))(t)
	if a := must(h.renew(2, next))(t); a.Generation != 2 {
		t.Errorf("the same generation with the same key is answered with generation %d", a.Generation)
	}
	_, err := h.renew(2, newKey(t))
	wantFault(t, err, fault.Denied, fault.NodeLocked)
}
