package server

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
)

// kindNode is the kind of a change that touched a node: it came, was banned, locked or evicted, or its selectors changed.
const kindNode = "node"

// registry is what this server knows in memory: entries, nodes and the bundle as of one revision, indexed so that a change costs
// what it concerns and not what there is. It follows the store by revisions; nothing else writes to it.
type registry struct {
	config Config

	mu        sync.RWMutex // guards all below; never held across I/O
	revision  registration.Revision
	moved     chan struct{} // closed when revision moves
	entries   map[string]registration.Entry
	byID      map[spiffeid.ID]names     // entries of one SPIFFE ID
	byWhere   map[attest.Selector]names // entries by the first of their node selectors
	anywhere  names                     // entries for every node
	ending    names                     // entries that expire
	nodes     map[string]attest.Node    // by agent ID
	bySel     map[attest.Selector]names // agent IDs by node selector
	followers map[*follower]struct{}    // open Sync streams
	bundle    *nodev1.Bundle            // our own trust domain's
	jwtKeys   map[string]uint64         // the JWT keys in it, by id: the revision that brought each
	expiry    *time.Timer               // fires at the next end of an entry
	err       error                     // why the store could not be followed last; nil: it could
}

// names is a set of entry names or agent IDs.
type names map[string]struct{}

func newRegistry(c Config) *registry {
	return &registry{config: c, moved: make(chan struct{}), entries: map[string]registration.Entry{}, byID: map[spiffeid.ID]names{},
		byWhere: map[attest.Selector]names{}, anywhere: names{}, ending: names{}, nodes: map[string]attest.Node{}, bySel: map[attest.Selector]names{},
		followers: map[*follower]struct{}{}, expiry: time.NewTimer(time.Hour)}
}

// load reads everything once.
func (r *registry) load(ctx context.Context) error {
	entries, revision, err := r.config.Store.Entries.Entries(ctx)
	if err != nil {
		return fmt.Errorf("read the registry: %w", err)
	}
	nodes, err := r.config.Store.Nodes.Nodes(ctx)
	if err != nil {
		return fmt.Errorf("read the nodes: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range entries {
		r.put(e)
	}
	for _, n := range nodes {
		r.putNode(n)
	}
	bundle, keys := r.wireBundle(revision.Number)
	r.setBundle(revision.Number, bundle, keys)
	r.revision = revision
	r.setExpiry()
	return nil
}

// follow applies what changes in the store until ctx ends. The store wakes it; once a second it looks by itself, should a wake-up
// from another server have been lost.
func (r *registry) follow(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		moved := r.config.Store.Feed.Moved()
		err := r.catchUp(ctx)
		r.mu.Lock()
		r.err = err
		r.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			r.config.Log.ErrorContext(ctx, "the store could not be followed", "err", err)
			moved = nil // not at once again
		}
		select {
		case <-ctx.Done():
			return nil
		case <-moved:
		case <-tick.C:
		case <-r.expiry.C:
			r.expire()
		}
	}
}

// catchUp applies all changes that are in the store and not here.
func (r *registry) catchUp(ctx context.Context) error {
	for {
		r.mu.RLock()
		at := r.revision.Number
		r.mu.RUnlock()
		changes, err := r.config.Store.Feed.Changes(ctx, at, 1000)
		if err != nil || len(changes) == 0 {
			return err
		}
		if err := r.apply(ctx, changes); err != nil {
			return err
		}
	}
}

// delta is a run of changes with what they changed read anew.
type delta struct {
	revision registration.Revision
	entries  map[string]*registration.Entry // nil: gone
	nodes    map[string]*attest.Node        // nil: gone
	bundle   *nodev1.Bundle                 // nil: unchanged
	jwtKeys  []string                       // the ids in it
}

// apply reads what changed, puts it into the index, and marks it for every stream that it may concern.
func (r *registry) apply(ctx context.Context, changes []registration.Change) error {
	d, err := r.read(ctx, changes)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	touched := map[spiffeid.ID]struct{}{}
	for name, e := range d.entries {
		if old, there := r.entries[name]; there {
			touched[old.ID] = struct{}{}
			r.drop(old)
		}
		if e != nil {
			touched[e.ID] = struct{}{}
			r.put(*e)
		}
	}
	for id, n := range d.nodes {
		if old, there := r.nodes[id]; there {
			r.touchedBy(old, touched)
			r.dropNode(old)
		}
		if n != nil {
			r.putNode(*n)
			r.touchedBy(*n, touched)
		}
	}
	if d.bundle != nil {
		r.setBundle(d.revision.Number, d.bundle, d.jwtKeys)
	}
	r.revision = d.revision
	for f := range r.followers {
		f.mark(d, touched)
	}
	r.setExpiry()
	close(r.moved)
	r.moved = make(chan struct{})
	return nil
}

// read gets the present state of everything that a run of changes names.
func (r *registry) read(ctx context.Context, changes []registration.Change) (delta, error) {
	d := delta{revision: changes[len(changes)-1].Revision, entries: map[string]*registration.Entry{}, nodes: map[string]*attest.Node{}}
	var wanted []string
	authorities := false
	for _, c := range changes {
		switch c.Kind {
		case registration.KindEntry:
			if _, there := d.entries[c.ID]; !there {
				d.entries[c.ID] = nil
				wanted = append(wanted, c.ID)
			}
		case registration.KindBundle:
			authorities = true
		case kindNode:
			d.nodes[c.ID] = nil
		}
	}
	found, err := r.config.Store.Entries.EntriesNamed(ctx, wanted)
	if err != nil {
		return d, err
	}
	for i := range found {
		d.entries[found[i].Name] = &found[i]
	}
	for id := range d.nodes {
		n, err := r.config.Store.Nodes.Node(ctx, id)
		if err == nil {
			d.nodes[id] = &n
		} else if !fault.Is(err, fault.NotFound) {
			return d, err
		}
	}
	if authorities {
		if err := r.config.Authority.Reload(ctx); err != nil {
			return d, err
		}
		if r.config.JWT != nil {
			if err := r.config.JWT.Reload(ctx); err != nil {
				return d, err
			}
		}
		d.bundle, d.jwtKeys = r.wireBundle(d.revision.Number)
	}
	return d, nil
}

// touchedBy adds the SPIFFE IDs that a node may hold: the facts about them depend on it.
func (r *registry) touchedBy(n attest.Node, touched map[spiffeid.ID]struct{}) {
	for _, e := range r.forNode(n) {
		touched[e.ID] = struct{}{}
	}
}

// put, drop, putNode and dropNode keep the index; the caller holds mu.
func (r *registry) put(e registration.Entry) {
	r.entries[e.Name] = e
	add(r.byID, e.ID, e.Name)
	if !e.Expires.IsZero() {
		r.ending[e.Name] = struct{}{}
	}
	if e.Any {
		r.anywhere[e.Name] = struct{}{}
	} else if len(e.Where) > 0 {
		add(r.byWhere, e.Where[0], e.Name)
	}
}

func (r *registry) drop(e registration.Entry) {
	delete(r.entries, e.Name)
	remove(r.byID, e.ID, e.Name)
	delete(r.anywhere, e.Name)
	delete(r.ending, e.Name)
	if len(e.Where) > 0 {
		remove(r.byWhere, e.Where[0], e.Name)
	}
}

func (r *registry) putNode(n attest.Node) {
	r.nodes[n.ID.String()] = n
	for _, s := range n.Selectors {
		add(r.bySel, s, n.ID.String())
	}
}

func (r *registry) dropNode(n attest.Node) {
	delete(r.nodes, n.ID.String())
	for _, s := range n.Selectors {
		remove(r.bySel, s, n.ID.String())
	}
}

func add[K comparable](index map[K]names, key K, name string) {
	if index[key] == nil {
		index[key] = names{}
	}
	index[key][name] = struct{}{}
}

func remove[K comparable](index map[K]names, key K, name string) {
	delete(index[key], name)
	if len(index[key]) == 0 {
		delete(index, key)
	}
}

// forNode gives the entries that a node may serve now. The caller holds mu.
func (r *registry) forNode(n attest.Node) []registration.Entry {
	var out []registration.Entry
	now := r.config.Now()
	consider := func(candidates names) {
		for name := range candidates {
			if e := r.entries[name]; e.OnNode(n.ID, n.Selectors) && !e.Expired(now) {
				out = append(out, e)
			}
		}
	}
	consider(r.anywhere)
	for _, s := range n.Selectors {
		consider(r.byWhere[s])
	}
	slices.SortFunc(out, func(a, b registration.Entry) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// facts gives what holds for every holder of a SPIFFE ID. The caller holds mu.
func (r *registry) facts(id spiffeid.ID) registration.Facts {
	var entries []registration.Entry
	holders := map[string]attest.Node{}
	for name := range r.byID[id] {
		e := r.entries[name]
		if e.Expired(r.config.Now()) { // and with it every SVID
			continue
		}
		entries = append(entries, e)
		candidates := r.nodes
		if !e.Any {
			candidates = map[string]attest.Node{}
			for agent := range r.bySel[e.Where[0]] {
				candidates[agent] = r.nodes[agent]
			}
		}
		for agent, n := range candidates {
			if e.OnNode(n.ID, n.Selectors) {
				holders[agent] = n
			}
		}
	}
	nodes := make([]attest.Node, 0, len(holders))
	for _, n := range holders {
		nodes = append(nodes, n)
	}
	return registration.FactsOf(id, entries, nodes)
}

// node gives a node that may ask for something, or why not.
func (r *registry) node(id spiffeid.ID) (attest.Node, error) {
	r.mu.RLock()
	n, there := r.nodes[id.String()]
	r.mu.RUnlock()
	if !there {
		return n, fault.New(fault.Unauthenticated, nil, "this server does not know the node").With(fault.NodeUnknown, "let the node attest anew")
	}
	return n, stateError(n)
}

// stateError says why a node in that state may not ask for anything.
func stateError(n attest.Node) error {
	switch n.State {
	case attest.Banned:
		return fault.New(fault.Denied, nil, "the node is banned").With(fault.NodeBanned, "")
	case attest.Locked:
		return fault.New(fault.Denied, nil, "the node is locked: its data directory was used twice").
			With(fault.NodeLocked, "find the copy, then writ node evict "+n.ID.String()+" and join again")
	}
	return nil
}

// entry gives an entry that this node may serve now, under that SPIFFE ID.
func (r *registry) entry(name string, id spiffeid.ID, n attest.Node) (registration.Entry, error) {
	r.mu.RLock()
	e, there := r.entries[name]
	r.mu.RUnlock()
	if !there || e.ID != id || !e.OnNode(n.ID, n.Selectors) || e.Expired(r.config.Now()) {
		return e, fault.New(fault.Denied, nil, "this node may not serve that entry").With(fault.NotEntitled, "writ entry get "+name)
	}
	return e, nil
}

// trouble is why the store could not be followed last.
func (r *registry) trouble() error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.err != nil {
		return fault.New(fault.Unavailable, r.err, "the store cannot be read").With(fault.StoreBusy, "look into the log")
	}
	return nil
}

// setExpiry sets the timer to the next end of an entry. The caller holds mu.
func (r *registry) setExpiry() {
	next := time.Hour
	now := r.config.Now()
	for name := range r.ending {
		if e := r.entries[name]; e.Expires.After(now) {
			next = min(next, e.Expires.Sub(now))
		}
	}
	r.expiry.Reset(next)
}

// expire marks entries that have ended for every stream: for agents they are gone.
func (r *registry) expire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := delta{revision: r.revision, entries: map[string]*registration.Entry{}}
	touched := map[spiffeid.ID]struct{}{}
	for name := range r.ending {
		if e := r.entries[name]; e.Expired(r.config.Now()) {
			d.entries[name] = nil
			touched[e.ID] = struct{}{}
		}
	}
	for f := range r.followers {
		f.mark(d, touched)
	}
	r.setExpiry()
}

// RefreshHint is how often whoever holds a bundle should read it again.
const RefreshHint = 5 * time.Minute

// wireBundle is the authorities' bundle as agents get it, and the ids of the JWT keys in it.
func (r *registry) wireBundle(revision uint64) (w *nodev1.Bundle, jwtKeys []string) {
	b := r.config.Authority.Bundle()
	w = &nodev1.Bundle{TrustDomain: b.TrustDomain.Name(), RefreshHintSeconds: int64(RefreshHint / time.Second)}
	for _, c := range b.Roots {
		w.X509Authorities = append(w.X509Authorities, c.Raw)
	}
	for _, c := range b.Issuing {
		w.IssuingCertificates = append(w.IssuingCertificates, c.Raw)
	}
	if r.config.JWT != nil {
		keys := r.config.JWT.Bundle()
		for _, k := range keys.Keys {
			jwtKeys = append(jwtKeys, k.ID)
		}
		w.JwtAuthorities = keys.JWKS()
	}
	w.Sequence = r.sequence(w, revision)
	return w, jwtKeys
}

// sequence is the bundle's spiffe_sequence: it grows whenever what others see of the bundle changes, also twice within a second, and
// only then. Time carries it over a restart (SPIFFE_Trust_Domain_and_Bundle section 4.1.1). Only whoever follows the store writes
// the bundle, and calls this.
func (r *registry) sequence(w *nodev1.Bundle, revision uint64) uint64 {
	last := r.bundle
	if last != nil && slices.EqualFunc(last.X509Authorities, w.X509Authorities, bytes.Equal) && bytes.Equal(last.JwtAuthorities, w.JwtAuthorities) {
		return last.Sequence
	}
	return max(last.GetSequence()+1, revision, uint64(r.config.Now().Unix()))
}

// setBundle takes a bundle and notes which keys are new in it. The caller holds mu.
func (r *registry) setBundle(revision uint64, w *nodev1.Bundle, jwtKeys []string) {
	since := make(map[string]uint64, len(jwtKeys))
	for _, id := range jwtKeys {
		since[id] = revision
		if earlier, there := r.jwtKeys[id]; there {
			since[id] = earlier
		}
	}
	r.bundle, r.jwtKeys = w, since
}
