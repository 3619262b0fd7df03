package agent

import (
	"context"
	"time"

	"github.com/writ-dev/writ/agent/member"
)

// until waits for a moment of the agent's clock, a wake or the end. A timer stands still while the machine sleeps and knows nothing
// of a clock that was set, so it looks at the clock once a second: at the wall clock too, which the difference of two times from
// time.Now leaves out.
func (a *Agent) until(ctx context.Context, moment time.Time, wake <-chan struct{}) {
	for {
		now := a.now()
		left := min(moment.Sub(now), moment.Round(0).Sub(now.Round(0)))
		if left <= 0 {
			return
		}
		timer := time.NewTimer(min(left, time.Second))
		select {
		case <-timer.C:
		case <-wake:
			timer.Stop()
			return
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// keepProven attests at first, renews the agent SVID at half of its life, and attests anew when the server does not know this node
// any more or when the SVID ended. Who is turned away is not asked hot: that needs a person.
func (a *Agent) keepProven(ctx context.Context) {
	soon, late := member.NewBackoff(100*time.Millisecond, 10*time.Second), member.NewBackoff(30*time.Second, 10*time.Minute)
	for {
		a.until(ctx, a.node.RenewAt(), a.kick)
		if ctx.Err() != nil {
			return
		}
		err := a.node.Prove(ctx)
		a.tally.count(a.tally.proofs, err)
		a.setUnproven(err)
		switch {
		case err == nil:
			a.setTrouble(nil)
			soon.Reset()
			late.Reset()
			a.until(ctx, a.now().Add(time.Second), nil) // where the clocks differ by half a life it is due at once, again and again
		case ctx.Err() != nil:
			return
		case member.TurnedAway(err):
			a.setTrouble(err)
			a.log.ErrorContext(ctx, "the server turns this node away", "err", err)
			a.until(ctx, a.now().Add(late.Next()), nil)
		default:
			a.log.WarnContext(ctx, "the node could not prove itself", "err", err)
			a.until(ctx, a.now().Add(soon.Next()), nil)
		}
	}
}
