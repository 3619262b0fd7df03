package server

import (
	"maps"
	"slices"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/registration"
)

// follower is one agent's open Sync stream. What changed since it was sent to is a set, not a queue: an agent that reads slowly
// gets the newest state of each thing once, however often it changed.
type follower struct {
	agent spiffeid.ID
	wake  chan struct{} // capacity 1: something is pending
	over  chan struct{} // closed with ended

	mu      sync.Mutex // guards the rest
	node    attest.Node
	entries names
	ids     map[spiffeid.ID]struct{}
	bundle  bool
	whole   bool // the node's selectors changed: a snapshot
	opening bool // nothing went out yet
	ended   error
	sent    uint64                 // newest revision that went out
	acked   uint64                 // newest that the agent holds
	holds   map[string]spiffeid.ID // entries that went out, by name
	held    map[spiffeid.ID]int    // how many of them have an ID
}

// mark notes what of a delta this stream may have to tell. The registry's lock is held.
func (f *follower) mark(d delta, touched map[spiffeid.ID]struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n, there := d.nodes[f.agent.String()]; there {
		f.judge(n)
	}
	for name, e := range d.entries {
		if _, held := f.holds[name]; held || e != nil && e.OnNode(f.node.ID, f.node.Selectors) {
			f.entries[name] = struct{}{}
		}
	}
	for id := range touched {
		if f.concerns(id) {
			f.ids[id] = struct{}{}
		}
	}
	f.bundle = f.bundle || d.bundle != nil
	if f.whole || f.bundle || len(f.entries)+len(f.ids) > 0 {
		f.rouse()
	}
}

// judge takes the node as it is now; nil is an evicted one.
func (f *follower) judge(n *attest.Node) {
	if n == nil {
		f.end(errEvicted())
		return
	}
	f.end(stateError(*n))
	f.whole = f.whole || !slices.Equal(n.Selectors, f.node.Selectors)
	f.node = *n
}

// end is for good: a node that may have a stream again opens another. The caller holds f.mu.
func (f *follower) end(err error) {
	if err != nil && f.ended == nil {
		f.ended = err
		close(f.over)
	}
}

// why is the reason of the stream's end.
func (f *follower) why() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ended
}

// concerns says whether the agent holds an entry of that ID, or is about to.
func (f *follower) concerns(id spiffeid.ID) bool { return f.held[id] > 0 }

func (f *follower) rouse() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// has says whether the agent holds everything that concerns it up to a revision: it said so, or it holds all that there is.
func (f *follower) has(revision uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.acked >= revision || f.acked >= f.sent && !f.opening && !f.whole && !f.bundle && len(f.entries)+len(f.ids) == 0
}

func newFollower(n attest.Node) *follower {
	f := &follower{agent: n.ID, node: n, wake: make(chan struct{}, 1), over: make(chan struct{})}
	f.clear()
	f.forget()
	return f
}

// hold notes that an entry went out, release that it is no more; the caller holds f.mu or is alone with f.
func (f *follower) hold(name string, id spiffeid.ID) {
	f.release(name)
	f.holds[name] = id
	f.held[id]++
}

func (f *follower) release(name string) {
	if id, there := f.holds[name]; there {
		delete(f.holds, name)
		if f.held[id]--; f.held[id] == 0 {
			delete(f.held, id)
		}
	}
}

func (f *follower) forget() { f.holds, f.held = map[string]spiffeid.ID{}, map[spiffeid.ID]int{} }

// enter adds a stream for a node that may have one. From here on all that happens is marked, so whoever reads the past after this
// misses nothing; open comes next.
func (r *registry) enter(id spiffeid.ID) (*follower, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, there := r.nodes[id.String()]
	if !there {
		return nil, errEvicted()
	}
	if err := stateError(n); err != nil {
		return nil, err
	}
	f := newFollower(n)
	f.opening = true
	for _, e := range r.forNode(n) {
		f.hold(e.Name, e.ID)
	}
	r.followers[f] = struct{}{}
	return f, nil
}

// open gives a stream's first messages: everything, or what changed after the revision that the agent holds.
func (r *registry) open(f *follower, since []registration.Change, resumed bool) []*nodev1.SyncResponse {
	r.mu.RLock()
	defer r.mu.RUnlock()
	f.mu.Lock()
	f.opening = false
	resumed = resumed && !f.whole
	if resumed {
		r.markPast(f, since)
	}
	f.mu.Unlock()
	if !resumed {
		return r.snapshot(f)
	}
	return r.pendingOf(f)
}

// markPast marks what happened while the agent was away. What it held then is not known any more: names that came up are told
// either way, and of the IDs that it holds all facts, for they depend on nodes and entries as these were. Both locks are held.
func (r *registry) markPast(f *follower, since []registration.Change) {
	moved := false
	for _, c := range since {
		switch c.Kind {
		case registration.KindEntry:
			f.mayHold(c.ID, r.entries[c.ID].ID)
			moved = true
		case kindNode:
			moved = true
		case registration.KindBundle:
			f.bundle = true
		}
	}
	for name := range r.ending { // ending makes no revision
		if e := r.entries[name]; e.Expired(r.config.Now()) && e.OnNode(f.node.ID, f.node.Selectors) {
			f.mayHold(name, e.ID)
			moved = true
		}
	}
	for id := range f.held {
		if moved && !id.IsZero() {
			f.ids[id] = struct{}{}
		}
	}
}

// mayHold marks an entry that the agent may hold; the caller holds f.mu.
func (f *follower) mayHold(name string, id spiffeid.ID) {
	f.entries[name] = struct{}{}
	f.hold(name, id)
}

func (r *registry) leave(f *follower) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.followers, f)
	close(r.moved) // whoever waits for all agents has one less to wait for
	r.moved = make(chan struct{})
}

// next gives the messages for what is pending, none where nothing is.
func (r *registry) next(f *follower) []*nodev1.SyncResponse {
	r.mu.RLock()
	defer r.mu.RUnlock()
	f.mu.Lock()
	whole := f.whole
	f.mu.Unlock()
	if whole {
		return r.snapshot(f)
	}
	return r.pendingOf(f)
}

// clear forgets what is pending; the caller holds f.mu or is alone with f.
func (f *follower) clear() {
	f.entries, f.ids, f.bundle, f.whole = names{}, map[spiffeid.ID]struct{}{}, false, false
}

// snapshot gives all that concerns the node. The registry's lock is held.
func (r *registry) snapshot(f *follower) []*nodev1.SyncResponse {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clear()
	f.forget()
	held := r.forNode(f.node)
	changes := []*nodev1.Change{{Kind: &nodev1.Change_Bundle{Bundle: r.bundle}}}
	seen := map[spiffeid.ID]bool{}
	for _, e := range held {
		f.hold(e.Name, e.ID)
		changes = append(changes, &nodev1.Change{Kind: &nodev1.Change_Entry{Entry: registration.ToWire(e)}})
		if !seen[e.ID] {
			seen[e.ID] = true
			changes = append(changes, r.identityChange(e.ID, true))
		}
	}
	messages := r.chunks(f, changes)
	messages[0].Snapshot = true
	messages[len(messages)-1].Digest = registration.Digest(held)
	return messages
}

// pendingOf gives what was marked, in its present state. The registry's lock is held.
func (r *registry) pendingOf(f *follower) []*nodev1.SyncResponse {
	f.mu.Lock()
	defer f.mu.Unlock()
	var changes []*nodev1.Change
	if f.bundle {
		changes = append(changes, &nodev1.Change{Kind: &nodev1.Change_Bundle{Bundle: r.bundle}})
	}
	for _, name := range slices.Sorted(maps.Keys(f.entries)) {
		e, there := r.entries[name]
		before := f.holds[name]
		if there && e.OnNode(f.node.ID, f.node.Selectors) && !e.Expired(r.config.Now()) {
			f.hold(name, e.ID)
			changes = append(changes, &nodev1.Change{Kind: &nodev1.Change_Entry{Entry: registration.ToWire(e)}})
			f.ids[e.ID] = struct{}{}
		} else {
			f.release(name)
			changes = append(changes, &nodev1.Change{Kind: &nodev1.Change_EntryRemoved{EntryRemoved: name}})
		}
		if !before.IsZero() {
			f.ids[before] = struct{}{}
		}
	}
	delete(f.ids, spiffeid.ID{})
	for id := range f.ids {
		changes = append(changes, r.identityChange(id, f.concerns(id)))
	}
	f.clear()
	if len(changes) == 0 {
		return nil
	}
	return r.chunks(f, changes)
}

// identityChange tells the facts about an ID that the node holds, or that it holds it no more.
func (r *registry) identityChange(id spiffeid.ID, held bool) *nodev1.Change {
	if !held {
		return &nodev1.Change{Kind: &nodev1.Change_IdentityRemoved{IdentityRemoved: id.String()}}
	}
	facts := r.facts(id)
	return &nodev1.Change{Kind: &nodev1.Change_Identity{Identity: &nodev1.Identity{SpiffeId: id.String(), Selectors: facts.Selectors,
		Assurance: uint32(facts.Assurance), Entry: facts.Entry, Hint: facts.Hint, Node: facts.Node}}}
}

// perMessage bounds a message well under the 4 MiB that gRPC clients take: an entry has at most some kilobytes.
const perMessage = 256

// chunks cuts changes into messages of one revision. The follower's lock is held.
func (r *registry) chunks(f *follower, changes []*nodev1.Change) []*nodev1.SyncResponse {
	var out []*nodev1.SyncResponse
	for chunk := range slices.Chunk(changes, perMessage) {
		out = append(out, &nodev1.SyncResponse{Version: 1, Revision: r.revision.Number, Chain: r.revision.Chain, More: true, Changes: chunk})
	}
	out[len(out)-1].More = false
	f.sent = r.revision.Number
	return out
}
