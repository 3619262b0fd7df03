package server_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/api/registrationv1"
)

// operator changes a domain at random, and other nodes come and go.
type operator struct {
	d        *domain
	random   *rand.Rand
	machines []*host
}

func (o *operator) name() string { return fmt.Sprintf("entry-%d", o.random.IntN(6)) }

func (o *operator) entry() *registrationv1.Entry {
	where := [][]string{nil, {"join_token:name:web-1"}, {"x509pop:subject:web-2"}, {"join_token:name:web-1", "x509pop:subject:web-2"}}
	e := entry(o.name(), where[o.random.IntN(len(where))]...)
	e.SpiffeId = fmt.Sprintf("spiffe://example.org/id-%d", o.random.IntN(4))
	e.Match = append(e.Match, fmt.Sprintf("unix:gid:%d", o.random.IntN(3)))
	return e
}

func (o *operator) act() {
	o.d.t.Helper()
	ctx := o.d.t.Context()
	switch o.random.IntN(5) {
	case 0, 1:
		o.d.apply(o.entry())
	case 2:
		_, _ = o.d.admin.DeleteEntries(ctx, &adminv1.DeleteEntriesRequest{Names: []string{o.name()}}) // there may be none
	case 3:
		must(o.machines[o.random.IntN(len(o.machines))].attest(bent{}))(o.d.t)
	case 4:
		if h := o.machines[o.random.IntN(len(o.machines))]; h.id != "" {
			_, _ = o.d.admin.EvictNode(ctx, &adminv1.EvictNodeRequest{AgentId: h.id}) // it may be gone
		}
	}
}

// Whatever happened, and however often the stream broke, an agent holds what a fresh one would be given.
func TestAgentHoldsWhatAFreshOneIsGiven(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			d := newDomain(t)
			o := &operator{d: d, random: rand.New(rand.NewPCG(seed, 0)), machines: []*host{d.newHost(d.machine("web-2")), d.newHost(d.machine("web-3"))}}
			f := d.join("web-1").follow()
			f.next()
			for round := range 15 {
				away := o.random.IntN(2) == 0
				if away {
					f.close()
				}
				for range 1 + o.random.IntN(4) {
					o.act()
				}
				marker := fmt.Sprintf("round-%d", round)
				d.apply(entry(marker))
				d.caughtUp()
				if away {
					f.open()
				}
				for f.entries[marker] == nil {
					f.next()
				}
				f.wantHeld()
				if t.Failed() {
					t.Fatalf("in round %d, away: %t", round, away)
				}
			}
		})
	}
}
