package agent

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/agent/member"
	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/registration"
	"github.com/writ-dev/writ/svid"
)

// aheadBound is for how many entries SVIDs are held although no workload asks for them.
const aheadBound = 1000

// errDigest says that what is held is not what the server thinks is held.
var errDigest = errors.New("the entries held are not those that the server sent")

// cache is what the server told this node and what was signed for it. Everything in it is guarded by mu, records and shares
// included; mu is never held across a call to the server, a signature or an attestation. Identities and bundles are values: they
// are replaced and never changed, so equal pointers mean equal content.
type cache struct {
	mu       sync.RWMutex
	domain   spiffeid.TrustDomain
	known    bool // the first full sync was applied
	revision registration.Revision
	records  map[string]*record // by entry name
	index    index
	bundles  map[spiffeid.TrustDomain]*trusted
	facts    map[spiffeid.ID]registration.Facts
	shares   map[*share]struct{}  // what each live subscription holds
	wanted   map[*record]struct{} // gets signed: watched or ahead
	expiring map[*record]struct{} // whose entry will expire
	held     int                  // records with an identity
	jwts     shelves
}

// record is an entry and what was signed for it.
type record struct {
	entry    registration.Entry
	anchor   attest.Selector // the selector of entry.Match under which the index has it
	watchers map[*share]struct{}

	identity *Identity // nil until signed
	renewAt  time.Time // when identity is due; passed already when the entry changed under it
	retryAt  time.Time // after a refusal
	refusals int
	refusal  error // of the last try, nil after one that gave an SVID

	jwts map[uint32]*shelf // by the uid of who asked
}

// trusted is a bundle with its certificates read.
type trusted struct {
	bundle  Bundle
	anchors svid.Anchors
}

func newCache(domain spiffeid.TrustDomain) *cache {
	return &cache{domain: domain, records: map[string]*record{}, index: newIndex(), bundles: map[spiffeid.TrustDomain]*trusted{},
		facts: map[spiffeid.ID]registration.Facts{}, shares: map[*share]struct{}{}, wanted: map[*record]struct{}{},
		expiring: map[*record]struct{}{}, jwts: newShelves()}
}

// index finds the entries that a workload may match without looking at the others: each stands under that one of its selectors
// that fewest entries stood under when it came.
type index struct {
	under map[attest.Selector]map[*record]struct{}
	keys  map[[2]string]int // how many selectors of all entries have that method and key
	asked uint64            // grows when an entry asks for a method and key that none asked for before
	grown chan struct{}     // closed when asked next grows
}

func newIndex() index {
	return index{under: map[attest.Selector]map[*record]struct{}{}, keys: map[[2]string]int{}, grown: make(chan struct{})}
}

func (x *index) add(r *record) {
	r.anchor = slices.MinFunc(r.entry.Match, func(a, b attest.Selector) int { return len(x.under[a]) - len(x.under[b]) })
	if x.under[r.anchor] == nil {
		x.under[r.anchor] = map[*record]struct{}{}
	}
	x.under[r.anchor][r] = struct{}{}
	for _, s := range r.entry.Match {
		key := [2]string{s.Method, s.Key}
		if x.keys[key]++; x.keys[key] == 1 {
			x.asked++
			close(x.grown)
			x.grown = make(chan struct{})
		}
	}
}

func (x *index) remove(r *record) {
	delete(x.under[r.anchor], r)
	if len(x.under[r.anchor]) == 0 {
		delete(x.under, r.anchor)
	}
	for _, s := range r.entry.Match {
		x.keys[[2]string{s.Method, s.Key}]--
	}
}

// match gives the records that these selectors satisfy, in order. registration.Match is the rule.
func (x *index) match(workload []attest.Selector) []*record {
	under := map[string]*record{}
	var candidates []registration.Entry
	for _, s := range workload {
		for r := range x.under[s] {
			under[r.entry.Name] = r
			candidates = append(candidates, r.entry)
		}
	}
	var found []*record
	for _, grant := range registration.Match(candidates, workload) {
		found = append(found, under[grant.Entry])
	}
	return found
}

func satisfies(workload []attest.Selector, e registration.Entry) bool {
	return len(registration.Match([]registration.Entry{e}, workload)) > 0
}

// update is the messages of one revision, read.
type update struct {
	revision registration.Revision
	snapshot bool
	digest   []byte
	entries  map[string]registration.Entry // the newest of each name
	removed  []string
	bundles  map[spiffeid.TrustDomain]*trusted
	unbound  []spiffeid.TrustDomain
	facts    map[spiffeid.ID]registration.Facts
	unsaid   []spiffeid.ID
}

// readUpdate parses messages up to and with one whose more is false. An element that cannot be read is reported and left out, so
// that one bad element costs no other; the digest tells if it mattered.
func readUpdate(messages []*nodev1.SyncResponse) (update, error) {
	u := update{entries: map[string]registration.Entry{}, bundles: map[spiffeid.TrustDomain]*trusted{},
		facts: map[spiffeid.ID]registration.Facts{}}
	var bad []error
	for _, m := range messages {
		u.snapshot = u.snapshot || m.GetSnapshot()
		u.revision = registration.Revision{Number: m.GetRevision(), Chain: m.GetChain()}
		u.digest = m.GetDigest()
		for _, change := range m.GetChanges() {
			if err := u.read(change); err != nil {
				bad = append(bad, err)
			}
		}
	}
	return u, errors.Join(bad...)
}

func (u *update) read(change *nodev1.Change) error {
	switch kind := change.GetKind().(type) {
	case *nodev1.Change_Entry:
		e, err := registration.FromWire(kind.Entry)
		if err == nil && len(e.Match) == 0 {
			err = errors.New("it matches on nothing")
		}
		if err != nil {
			return fmt.Errorf("entry %q: %w", kind.Entry.GetName(), err)
		}
		u.entries[e.Name] = e
	case *nodev1.Change_EntryRemoved:
		delete(u.entries, kind.EntryRemoved)
		u.removed = append(u.removed, kind.EntryRemoved)
	case *nodev1.Change_Bundle:
		b, err := readBundle(kind.Bundle)
		if b != nil {
			u.bundles[b.bundle.TrustDomain] = b
		}
		if err != nil {
			return fmt.Errorf("bundle of %q: %w", kind.Bundle.GetTrustDomain(), err)
		}
	case *nodev1.Change_BundleRemoved:
		domain, err := svid.ParseTrustDomain(kind.BundleRemoved)
		if err != nil {
			return err
		}
		delete(u.bundles, domain)
		u.unbound = append(u.unbound, domain)
	case *nodev1.Change_Identity:
		facts, err := readFacts(kind.Identity)
		if err != nil {
			return err
		}
		u.facts[facts.ID] = facts
	case *nodev1.Change_IdentityRemoved:
		id, err := svid.ParseID(kind.IdentityRemoved)
		if err != nil {
			return err
		}
		delete(u.facts, id)
		u.unsaid = append(u.unsaid, id)
	}
	return nil // what a later server may add is not for us; policies and revocations have no reader yet
}

// readBundle gives a bundle also where its JWT keys cannot be read, then without any: X.509-SVIDs do not suffer for them.
func readBundle(w *nodev1.Bundle) (*trusted, error) {
	anchors, err := member.ParseBundle(w)
	if err != nil {
		return nil, err
	}
	jwt := svid.JWTBundle{TrustDomain: anchors.TrustDomain}
	if len(w.GetJwtAuthorities()) > 0 {
		jwt, err = svid.ParseJWKS(anchors.TrustDomain, w.GetJwtAuthorities())
	}
	return &trusted{anchors: anchors, bundle: Bundle{TrustDomain: anchors.TrustDomain, Roots: w.GetX509Authorities(),
		Issuing: w.GetIssuingCertificates(), JWT: jwt, Sequence: w.GetSequence(),
		RefreshHint: time.Duration(w.GetRefreshHintSeconds()) * time.Second}}, err
}

func readFacts(w *nodev1.Identity) (registration.Facts, error) {
	id, err := svid.ParseID(w.GetSpiffeId())
	return registration.Facts{ID: id, Selectors: w.GetSelectors(), Assurance: attest.Assurance(w.GetAssurance()), Entry: w.GetEntry(),
		Hint: w.GetHint(), Node: w.GetNode()}, err
}

// apply makes the update what is held, as one act, and tells the subscriptions whose view it changed. With errDigest the update
// is in force and is not what the server thinks.
func (c *cache) apply(u update, now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if u.snapshot {
		c.forget(&u)
	}
	touched, named := map[*share]struct{}{}, c.idsNamed(u)
	for _, name := range u.removed {
		if _, again := u.entries[name]; !again {
			c.removeEntry(name, touched)
		}
	}
	for _, e := range u.entries {
		c.setEntry(e, touched)
	}
	c.fill()
	if c.setBundles(u) {
		touched = c.shares
		c.dropUnverifiableJWTs()
	}
	c.forgetFacts(named)
	for _, id := range u.unsaid {
		delete(c.facts, id)
	}
	for id, facts := range u.facts {
		c.facts[id] = facts
	}
	c.revision = u.revision
	c.known = c.known || u.snapshot
	for s := range touched {
		c.tell(s, now)
	}
	if len(u.digest) > 0 && !bytes.Equal(u.digest, registration.Digest(c.entries())) {
		return errDigest
	}
	return nil
}

// idsNamed are the IDs that the entries which an update names had until now.
func (c *cache) idsNamed(u update) map[spiffeid.ID]struct{} {
	ids := map[spiffeid.ID]struct{}{}
	for _, name := range u.removed {
		if r := c.records[name]; r != nil {
			ids[r.entry.ID] = struct{}{}
		}
	}
	for name, e := range u.entries {
		if r := c.records[name]; r != nil && r.entry.ID != e.ID {
			ids[r.entry.ID] = struct{}{}
		}
	}
	return ids
}

// forgetFacts drops what is known about those of the IDs that no entry has any more. After a resume the server cannot say which
// they are: of an entry that went it knows the name alone.
func (c *cache) forgetFacts(ids map[spiffeid.ID]struct{}) {
	if len(ids) == 0 {
		return
	}
	for _, r := range c.records {
		delete(ids, r.entry.ID)
	}
	for id := range ids {
		delete(c.facts, id)
	}
}

// forget turns what a snapshot does not name into removals.
func (c *cache) forget(u *update) {
	u.removed, u.unbound, u.unsaid = nil, nil, nil
	for name := range c.records {
		u.removed = append(u.removed, name)
	}
	for domain := range c.bundles {
		if u.bundles[domain] == nil && domain != c.domain { // a workload's own bundle is never empty
			u.unbound = append(u.unbound, domain)
		}
	}
	clear(c.facts)
}

func (c *cache) entries() []registration.Entry {
	list := make([]registration.Entry, 0, len(c.records))
	for _, r := range c.records {
		list = append(list, r.entry)
	}
	return list
}

func (c *cache) removeEntry(name string, touched map[*share]struct{}) {
	r := c.records[name]
	if r == nil {
		return
	}
	for s := range r.watchers {
		s.drop(r)
		touched[s] = struct{}{}
	}
	c.index.remove(r)
	c.dropJWTsOf(r)
	delete(c.records, name)
	delete(c.wanted, r)
	delete(c.expiring, r)
	c.setIdentity(r, nil)
}

// setEntry keeps what was signed as far as it still says what the entry says: another ID withdraws it at once, other names or
// another life make it due, another hint needs no signature.
func (c *cache) setEntry(e registration.Entry, touched map[*share]struct{}) {
	r := c.records[e.Name]
	switch {
	case r == nil:
		r = &record{}
		c.records[e.Name] = r
	case r.entry.Revision == e.Revision && r.entry.Equal(e): // a snapshot names what did not change too
		return
	default:
		c.index.remove(r)
		c.adjust(r, e)
		if r.entry.Created != e.Created { // it went and came back in one delta, and has another place now
			for s := range r.watchers {
				c.unwatch(s, r)
				touched[s] = struct{}{}
			}
		}
	}
	r.entry = e
	c.index.add(r)
	delete(c.expiring, r)
	if !e.Expires.IsZero() {
		c.expiring[r] = struct{}{}
	}
	c.rematch(r, touched)
}

func (c *cache) adjust(r *record, e registration.Entry) {
	r.retryAt, r.refusals, r.refusal = time.Time{}, 0, nil
	switch {
	case r.entry.ID != e.ID:
		c.dropJWTsOf(r)
	case r.entry.JWTTTL != e.JWTTTL:
		c.renewJWTsOf(r)
	}
	switch {
	case r.identity == nil:
		return
	case r.entry.ID != e.ID:
		c.setIdentity(r, nil)
		return
	case r.entry.TTL != e.TTL || !slices.Equal(r.entry.DNS, e.DNS):
		r.renewAt = time.Time{}
	}
	if r.identity.Hint != e.Hint {
		renamed := *r.identity
		renamed.Hint = e.Hint
		c.setIdentity(r, &renamed)
	}
}

// rematch finds who watches a record that is new or changed.
func (c *cache) rematch(r *record, touched map[*share]struct{}) {
	for s := range c.shares {
		_, watched := r.watchers[s]
		matches := satisfies(s.selectors, r.entry)
		switch {
		case matches && !watched:
			c.watch(s, r)
		case !matches && watched:
			c.unwatch(s, r)
		}
		if matches || watched {
			touched[s] = struct{}{}
		}
	}
}

// setBundles says whether any bundle changed.
func (c *cache) setBundles(u update) (changed bool) {
	for _, domain := range u.unbound {
		if c.bundles[domain] != nil && u.bundles[domain] == nil {
			delete(c.bundles, domain)
			changed = true
		}
	}
	for domain, b := range u.bundles {
		if held := c.bundles[domain]; held == nil || !sameBundle(held.bundle, b.bundle) {
			c.bundles[domain] = b
			changed = true
		}
	}
	return changed
}

func sameBundle(a, b Bundle) bool {
	return slices.EqualFunc(a.Roots, b.Roots, bytes.Equal) && slices.EqualFunc(a.Issuing, b.Issuing, bytes.Equal) &&
		bytes.Equal(a.JWT.JWKS(), b.JWT.JWKS()) && a.RefreshHint == b.RefreshHint
}

// fill wants further entries up to the bound, so that a workload that comes later finds its SVID signed.
func (c *cache) fill() {
	for _, r := range c.records {
		if len(c.wanted) >= aheadBound || len(c.wanted) >= len(c.records) {
			return
		}
		c.wanted[r] = struct{}{}
	}
}

func (c *cache) setIdentity(r *record, identity *Identity) {
	if r.identity != nil {
		c.held--
	}
	if identity != nil {
		c.held++
	}
	r.identity = identity
}

func (c *cache) bundleOf(domain spiffeid.TrustDomain) *trusted {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.bundles[domain]
}

func (c *cache) at() registration.Revision {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.revision
}

func (c *cache) setDomain(domain spiffeid.TrustDomain) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.domain = domain
}

// tick tells the subscriptions of entries that expired since the last one.
func (c *cache) tick(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for r := range c.expiring {
		if r.entry.Expired(now) {
			delete(c.expiring, r)
			for s := range r.watchers {
				c.tell(s, now)
			}
		}
	}
}
