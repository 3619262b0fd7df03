package agent

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
)

// knownPatience is how long a call waits for the first sync: a workload that connects while the agent starts gets its answer as
// soon as there is one, and is not sent into its own back-off.
const knownPatience = 2 * time.Second

// Subscription is one caller's share of the agent. It is made by Agent.Subscribe.
type Subscription struct {
	view    func() (View, error)
	release func() // runs once, when the subscription has ended
	changed chan struct{}
	done    chan struct{}

	once sync.Once
	err  error // written before done is closed, read after
}

// NewSubscription gives a subscription that shows what view gives, and a function that says that view would now give something
// else. It is for tests of the surfaces and for a source of identities other than an Agent. An error of view ends the subscription.
func NewSubscription(view func() (View, error)) (s *Subscription, notify func()) {
	s = &Subscription{view: view, release: func() {}, changed: make(chan struct{}, 1), done: make(chan struct{})}
	return s, s.notify
}

// Changed receives after each change of what View gives, once for several changes that nobody looked at in between. The first
// View needs no waiting.
func (s *Subscription) Changed() <-chan struct{} { return s.changed }

// View is what the workload may hold now. It asks first whether the caller is still the process that was attested; if not, the
// subscription ends and the view is empty and not Known.
func (s *Subscription) View() View {
	if s.ended() {
		return View{}
	}
	v, err := s.view()
	if err != nil {
		s.end(err)
	}
	if s.ended() { // maybe before it was looked at, and then it holds nothing
		return View{}
	}
	return v
}

func (s *Subscription) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// Done is closed when the subscription has ended: by Close, by its context, with the process or with the agent.
func (s *Subscription) Done() <-chan struct{} { return s.done }

// Err says why the subscription ended: nil before that and after Close, the context's error, fault.Unavailable when the agent stops,
// fault.Denied when the process ended or is no longer what was attested.
func (s *Subscription) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() { s.end(nil) }

func (s *Subscription) end(err error) {
	s.once.Do(func() {
		s.err = err
		close(s.done)
		s.release()
	})
}

func (s *Subscription) notify() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// calm takes a notification back that nobody received yet.
func (s *Subscription) calm() {
	select {
	case <-s.changed:
	default:
	}
}

// share is a subscription as the cache knows it; cache.mu guards it, but for seen.
type share struct {
	subscription *Subscription
	selectors    []attest.Selector
	matched      []*record // as registration.Match orders them

	mu   sync.Mutex
	seen *holding // what the subscriber looked at last, nil before it did; guarded by mu
}

// holding is a view before it is copied out. Equal pointers are equal content.
type holding struct {
	pending    bool
	identities []*Identity
	bundles    []*trusted
}

func (h *holding) equal(g *holding) bool {
	return h.pending == g.pending && slices.Equal(h.identities, g.identities) && slices.Equal(h.bundles, g.bundles)
}

// subscribe makes a share and says how many entries it matches that have not expired. They are signed before others from now on.
func (c *cache) subscribe(selectors []attest.Selector, s *Subscription, now time.Time) (sh *share, matches int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	sh = &share{subscription: s, selectors: selectors}
	for _, r := range c.index.match(selectors) {
		c.watch(sh, r)
		if !r.entry.Expired(now) {
			matches++
		}
	}
	c.shares[sh] = struct{}{}
	return sh, matches
}

// resubscribe takes other selectors for a share that is still there.
func (c *cache) resubscribe(s *share, selectors []attest.Selector, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, there := c.shares[s]; !there {
		return
	}
	s.selectors = selectors
	matched := c.index.match(selectors)
	for _, r := range slices.Clone(s.matched) {
		if !slices.Contains(matched, r) {
			c.unwatch(s, r)
		}
	}
	for _, r := range matched {
		c.watch(s, r)
	}
	c.tell(s, now)
}

func (c *cache) unsubscribe(s *share) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.shares, s)
	for len(s.matched) > 0 {
		c.unwatch(s, s.matched[0])
	}
}

func (c *cache) watch(s *share, r *record) {
	if _, there := r.watchers[s]; there {
		return
	}
	at, _ := slices.BinarySearchFunc(s.matched, r, func(a, b *record) int { return a.entry.Compare(b.entry) })
	s.matched = slices.Insert(s.matched, at, r)
	if r.watchers == nil {
		r.watchers = map[*share]struct{}{}
	}
	r.watchers[s] = struct{}{}
	c.wanted[r] = struct{}{}
}

// unwatch lets go of what was signed for nobody else once there is more than the bound.
func (c *cache) unwatch(s *share, r *record) {
	s.drop(r)
	delete(r.watchers, s)
	if len(r.watchers) == 0 && len(c.wanted) > aheadBound {
		delete(c.wanted, r)
		c.setIdentity(r, nil)
	}
}

func (s *share) drop(r *record) {
	s.matched = slices.DeleteFunc(s.matched, func(m *record) bool { return m == r })
}

// holding puts together what whoever matches these entries holds now.
func (c *cache) holding(matched []*record, now time.Time) *holding {
	h := &holding{}
	federated := map[spiffeid.TrustDomain]bool{}
	for _, r := range matched {
		switch {
		case r.entry.Expired(now):
			continue
		case r.identity == nil || !now.Before(r.identity.NotAfter): // an SVID that ended helps nobody
			h.pending = true
		default:
			h.identities = append(h.identities, r.identity)
		}
		for _, domain := range r.entry.FederatesWith {
			federated[domain] = true
		}
	}
	own := c.bundles[c.domain]
	if own == nil { // another's bundle must never stand where readers look for ours
		return h
	}
	h.bundles = append(h.bundles, own)
	delete(federated, c.domain)
	domains := make([]spiffeid.TrustDomain, 0, len(federated))
	for domain := range federated {
		if c.bundles[domain] != nil {
			domains = append(domains, domain)
		}
	}
	slices.SortFunc(domains, spiffeid.TrustDomain.Compare)
	for _, domain := range domains {
		h.bundles = append(h.bundles, c.bundles[domain])
	}
	return h
}

// tell notifies a subscriber if what it holds is not what it looked at last.
func (c *cache) tell(s *share, now time.Time) {
	h := c.holding(s.matched, now)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen != nil && s.seen.equal(h) {
		s.subscription.calm()
		return
	}
	s.subscription.notify()
}

// view is what a share holds, copied out and remembered as seen.
func (c *cache) view(s *share, now time.Time) View {
	c.mu.RLock()
	defer c.mu.RUnlock()
	h := c.holding(s.matched, now)
	s.mu.Lock()
	s.seen = h
	s.mu.Unlock()
	return c.copyOut(h)
}

// glance is what whoever has these selectors holds now.
func (c *cache) glance(selectors []attest.Selector, now time.Time) View {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.copyOut(c.holding(c.index.match(selectors), now))
}

func (c *cache) copyOut(h *holding) View {
	v := View{Known: c.known, Pending: h.pending}
	hints := map[string]bool{"": true}
	for _, identity := range h.identities {
		shown := *identity
		if hints[shown.Hint] { // clients.md rule 14: clients drop the second with the same hint
			shown.Hint = ""
		}
		hints[shown.Hint] = true
		v.Identities = append(v.Identities, shown)
	}
	for _, b := range h.bundles {
		v.Bundles = append(v.Bundles, b.bundle)
	}
	return v
}

// Subscribe attests the process and gives what it may hold, from now on. It fails with fault.Unavailable while entries are
// unknown, and with what the workload attestors found wrong. The subscription ends with ctx, with the process, with the agent,
// or by Close, whichever is first.
func (a *Agent) Subscribe(ctx context.Context, p attest.Peer) (*Subscription, error) {
	if err := a.awaitSync(ctx, knownPatience); err != nil {
		return nil, err
	}
	found, err := a.selectorsOf(ctx, p)
	if err != nil {
		return nil, err
	}
	s, _ := NewSubscription(nil)
	sh, matches := a.cache.subscribe(found.selectors, s, a.now())
	s.release = func() { a.cache.unsubscribe(sh) }
	s.view = func() (View, error) {
		if err := p.Verify(); err != nil {
			return View{}, gone(err)
		}
		return a.cache.view(sh, a.now()), nil
	}
	if matches == 0 {
		a.sayUnmatched(ctx, Sighting{Process: p.Process(), Selectors: found.selectors, At: a.now()})
	} else {
		a.remember(p, found)
	}
	if !a.goWhileRunning(func() { a.attend(ctx, p, sh, found.asked) }) {
		s.Close()
		return nil, stopping()
	}
	a.poke()
	return s, nil
}

// attend ends the subscription when what it depends on ends. When entries ask for what no entry asked for before, the attestors
// look at the process again: they had left that out.
func (a *Agent) attend(ctx context.Context, p attest.Peer, sh *share, asked uint64) {
	s := sh.subscription
	for {
		grown := a.cache.askedSince(asked)
		select {
		case <-s.done:
			return
		case <-p.Done():
			s.end(gone(nil))
		case <-ctx.Done():
			s.end(ctx.Err())
		case <-a.stopped:
			s.end(stopping())
		case <-grown:
			found, err := a.selectorsOf(ctx, p)
			if err != nil {
				s.end(err)
				continue
			}
			asked = found.asked
			a.cache.resubscribe(sh, found.selectors, a.now())
			a.poke()
		}
	}
}

func stopping() error { return fault.New(fault.Unavailable, nil, "the agent is stopping") }

func gone(err error) error {
	return fault.New(fault.Denied, err, "the calling process ended or is no longer what it was")
}

// awaitSync waits a little while for entries.
func (a *Agent) awaitSync(ctx context.Context, most time.Duration) error {
	patience := time.NewTimer(most)
	defer patience.Stop()
	select {
	case <-a.Synced():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-a.stopped:
		return stopping()
	case <-patience.C:
	}
	return fault.New(fault.Unavailable, nil, "the agent does not know its entries yet").
		With(fault.AgentStarting, "try again; /healthz of the agent says what it waits for")
}
