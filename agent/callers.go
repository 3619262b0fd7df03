package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/writ-dev/writ/attest"
)

// callers remembers what the workload attestors found of a connection's process, for as long as the connection lives: whoever calls
// again over it is the same process, which Verify confirms before anything is handed out. A new connection is attested anew.
type callers struct {
	mu    sync.Mutex
	known map[attest.Peer]attested
}

type attested struct {
	selectors []attest.Selector
	asked     uint64 // the index's when the attestors began: they do not look for what no entry asks for
}

func newCallers() *callers { return &callers{known: map[attest.Peer]attested{}} }

func (c *callers) recall(p attest.Peer, asked uint64) ([]attest.Selector, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, there := c.known[p]
	return known.selectors, there && known.asked == asked
}

// remember says whether the caller was not known before; who is told so calls forget once its connection has ended.
func (c *callers) remember(p attest.Peer, a attested) (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, there := c.known[p]
	c.known[p] = a
	return !there
}

func (c *callers) forget(p attest.Peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.known, p)
}

// selectorsOf gives what the workload attestors find of a process, and what the entries asked for when they looked.
func (a *Agent) selectorsOf(ctx context.Context, p attest.Peer) (attested, error) {
	asked := a.cache.asked()
	if selectors, there := a.callers.recall(p, asked); there {
		return attested{selectors, asked}, nil
	}
	selectors, err := a.attest(ctx, p)
	return attested{selectors, asked}, err
}

// remember keeps what was found until the connection ends.
func (a *Agent) remember(p attest.Peer, found attested) {
	if !a.callers.remember(p, found) {
		return
	}
	forget := func() {
		select {
		case <-p.Done():
		case <-a.stopped:
		}
		a.callers.forget(p)
	}
	if !a.goWhileRunning(forget) {
		a.callers.forget(p)
	}
}

// attest asks all workload attestors, and asks last whether the caller is still the process that they looked at.
func (a *Agent) attest(ctx context.Context, p attest.Peer) ([]attest.Selector, error) {
	var all []attest.Selector
	for _, attestor := range a.config.Workload {
		found, err := attestor.Attest(ctx, p)
		if err != nil {
			return nil, fmt.Errorf("attest process %d: %w", p.Process().PID, err)
		}
		all = append(all, found...)
	}
	if err := p.Verify(); err != nil {
		return nil, gone(err)
	}
	slices.SortFunc(all, attest.Selector.Compare)
	return slices.Compact(all), nil
}

// Asks says whether an entry of this node wants a selector of that method and key: reading some of them is dear.
func (a *Agent) Asks(method, key string) bool {
	a.cache.mu.RLock()
	defer a.cache.mu.RUnlock()
	return a.cache.index.keys[[2]string{method, key}] > 0
}

func (c *cache) asked() uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.index.asked
}

// askedSince is closed once entries ask for more than they did at that count.
func (c *cache) askedSince(asked uint64) <-chan struct{} {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.index.asked != asked {
		now := make(chan struct{})
		close(now)
		return now
	}
	return c.index.grown
}
