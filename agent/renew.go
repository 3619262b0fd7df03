package agent

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
)

// backoff is a wait that doubles, with jitter of a half.
type backoff struct {
	first, most time.Duration
	tries       int
}

func newBackoff(first, most time.Duration) *backoff { return &backoff{first: first, most: most} }

func (b *backoff) next() time.Duration {
	wait := min(b.first<<min(b.tries, 16), b.most)
	b.tries++
	return time.Duration(float64(wait) * (0.5 + 0.5*chance()))
}

func (b *backoff) reset() { b.tries = 0 }

// until waits for a moment of the agent's clock, a wake or the end. A timer stands still while the machine sleeps and knows nothing
// of a clock that was set, so it looks at the clock once a second.
func (a *Agent) until(ctx context.Context, moment time.Time, wake <-chan struct{}) {
	for {
		left := moment.Sub(a.now())
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
	soon, late := newBackoff(100*time.Millisecond, 10*time.Second), newBackoff(30*time.Second, 10*time.Minute)
	for {
		if held, _ := a.self.get(); held != nil {
			a.until(ctx, held.renewAt(a.nodeKeyDER), a.kick)
		}
		if ctx.Err() != nil {
			return
		}
		err := a.prove(ctx)
		switch {
		case err == nil:
			soon.reset()
			late.reset()
		case ctx.Err() != nil:
			return
		case turnedAway(err):
			a.setTrouble(err)
			a.log.ErrorContext(ctx, "the server turns this node away", "err", err)
			a.until(ctx, a.now().Add(late.next()), nil)
		default:
			a.log.WarnContext(ctx, "the node could not prove itself", "err", err)
			a.until(ctx, a.now().Add(soon.next()), nil)
		}
	}
}

// prove renews or attests, whichever is called for, and attests where renewing finds that the node is not known.
func (a *Agent) prove(ctx context.Context) error {
	held, _ := a.self.get()
	fresh := held == nil || held.reattestable && !held.valid(a.now()) && len(a.config.Attestors) > 0
	if fresh {
		return a.proveBy(ctx, a.config.Attestors, a.trust())
	}
	err := a.proveBy(ctx, nil, a.trust())
	if hasCode(err, fault.NodeUnknown) && len(a.config.Attestors) > 0 {
		a.log.WarnContext(ctx, "the server does not know this node, it attests anew", "agent_id", held.id.String())
		return a.proveBy(ctx, a.config.Attestors, a.trust())
	}
	return err
}

// proveBy tries each server in turn; no attestors means renewal. It goes on to the next only where one did not answer.
func (a *Agent) proveBy(ctx context.Context, attestors []attest.Attestor, t trust) error {
	held, _ := a.self.get()
	if held == nil && len(attestors) == 0 {
		return fault.New(fault.Denied, nil, "this node has not joined and has nothing to prove itself with").
			With(fault.NodeUnknown, "writ agent join -, or an attest section in the agent's configuration")
	}
	var err error
	for _, address := range a.servers() {
		if err = a.proveAt(ctx, address, attestors, t); err == nil {
			a.tally.proofs.WithLabelValues("admitted").Inc()
			a.setTrouble(nil)
			return nil
		}
		a.tally.proofs.WithLabelValues("failed").Inc()
		if turnedAway(err) || ctx.Err() != nil {
			return err
		}
	}
	if err == nil {
		err = fault.New(fault.Invalid, nil, "no server address is known").With(fault.BadConfig, "set server in the agent's configuration")
	}
	return err
}

func (a *Agent) proveAt(ctx context.Context, address string, attestors []attest.Attestor, t trust) error {
	held, _ := a.self.get()
	q := asking{attestors: attestors, held: held, nodeKey: a.nodeKey}
	var generation uint64
	if len(attestors) == 0 {
		generation = held.generation + 1
	}
	var err error
	if q.svidKey, err = a.folder.pending(generation, held); err != nil {
		return fmt.Errorf("keep the key of generation %d: %w", generation, err)
	}
	server, err := dial(address, t, nil)
	if err != nil {
		return err
	}
	defer server.close()
	got, err := q.prove(ctx, server, t)
	if err != nil {
		return err
	}
	return a.admit(ctx, got)
}

// admit puts on the disk what was given, the roots first: a member without roots could believe no server.
func (a *Agent) admit(ctx context.Context, got admitted) error {
	if err := a.keepRoots(got.roots); err != nil {
		return err
	}
	m := got.member
	m.servers = a.servers()
	if err := a.folder.keep(m); err != nil {
		return fmt.Errorf("keep the agent SVID: %w", err)
	}
	a.cache.setDomain(m.id.TrustDomain())
	a.self.set(m, got.sync)
	a.log.InfoContext(ctx, "node proved itself", "agent_id", m.id.String(), "serial", m.leaf.SerialNumber.Text(16),
		"not_after", m.leaf.NotAfter)
	return nil
}

// keepRoots writes the roots when they are others than before. Without any it keeps those it has: no roots would be no way back.
func (a *Agent) keepRoots(roots []*x509.Certificate) error {
	if len(roots) == 0 {
		return nil
	}
	a.disk.Lock()
	defer a.disk.Unlock()
	if sameCertificates(a.self.roots(), roots) {
		return nil
	}
	if err := a.folder.keepRoots(roots); err != nil {
		return fmt.Errorf("keep the bundle: %w", err)
	}
	a.self.setRoots(roots)
	return nil
}

// trust is the held bundle; the configured roots and pins count only until there is one, since they do not follow a rotation.
func (a *Agent) trust() trust {
	t := trust{domain: a.domain(), roots: a.self.roots(), now: a.now}
	if len(t.roots) == 0 {
		t.roots, t.pins = a.configured, a.config.Pins
	}
	return t
}

// servers are the configured addresses, or else those that a join left.
func (a *Agent) servers() []string {
	if a.config.Server == "" {
		if held, _ := a.self.get(); held != nil {
			return held.servers
		}
		return nil
	}
	list := strings.Split(a.config.Server, ",")
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	return list
}
