package agent

import (
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
)

// A workload may ask for any number of audiences. What that costs the node, the server and others is bounded: each user has a shelf
// per entry, on which what was asked for longest ago gives way, and what all shelves hold together gives way where one user holds most.
const (
	shelfSize     = 256     // JWT-SVIDs of one entry for the processes of one user
	mostJWTBytes  = 8 << 20 // of all, with the audiences by which they are found
	newAudiences  = 20      // per second and shelf, beyond a first shelfful
	abandonAfter  = 10 * time.Second
	refusalLasts  = time.Minute // after the next try would be due: then it counts as forgotten
	leastRest     = 5 * time.Second
	restPart      = 10 // a JWT-SVID is handed out until a tenth of its life is left
	latelyPercent = 75 // it is renewed if somebody asked for it within so much of its life
)

// shelves are all JWT-SVIDs of the cache, guarded by its lock.
type shelves struct {
	all   map[*token]struct{}
	asks  map[*token]struct{} // the server is to be asked
	due   time.Time           // when all are to be looked through
	bytes int
	users map[uint32]int // bytes by uid
}

func newShelves() shelves {
	return shelves{all: map[*token]struct{}{}, asks: map[*token]struct{}{}, users: map[uint32]int{}}
}

// shelf is what the processes of one user asked for of one entry.
type shelf struct {
	record *record
	uid    uint32
	tokens map[string]*token // by audienceKey
	pace   *rate.Limiter     // of audiences that are new here
}

// token is a JWT-SVID that is held, asked for, or was refused.
type token struct {
	shelf    *shelf
	key      string
	audience []string     // in the order of who asked first, each once
	asked    atomic.Int64 // when it was asked for last, Unix nanoseconds; written under the read lock too

	text    Token // empty: none is held
	keyID   string
	expires time.Time
	life    time.Duration
	renewAt time.Time
	lasts   time.Time // until when it is handed out

	settled  chan struct{} // closed when what is asked of the server has come or will not; nil: nothing is asked
	why      error         // of the last refusal
	refusals int
	retryAt  time.Time
}

func (t *token) held(now time.Time) bool { return t != nil && t.text != "" && now.Before(t.lasts) }

// idle says that nobody waits for it.
func (t *token) idle(now time.Time) bool { return t.settled == nil || t.since(now) > abandonAfter }

func (t *token) since(now time.Time) time.Duration {
	return time.Duration(now.UnixNano() - t.asked.Load())
}

// due says whether another is wanted in its place.
func (t *token) due(now time.Time) bool {
	return t.settled == nil && !now.Before(t.renewAt) && !now.Before(t.retryAt)
}

// jwtQuestion is a request with what was found of who makes it.
type jwtQuestion struct {
	JWTRequest
	selectors []attest.Selector
	uid       uint32
	key       string
}

// jwtAnswer is what is held.
type jwtAnswer struct {
	entries int             // that the process matches, whichever it asks for
	svids   []JWTSVID       // of those that it asks for, without Token where none is held
	others  []spiffeid.ID   // that it may hold, where none is what it asks for; each once
	lacking []*record       // whose JWT-SVID is not held, or is due
	asked   bool            // the server is to be asked
	wait    <-chan struct{} // closed when to look again; nil: nothing more will come
	why     error           // the first of svids without Token has none
}

// answerJWT gives what is held, and lets the server be asked for the rest and for what is due.
func (c *cache) answerJWT(q jwtQuestion, now time.Time) jwtAnswer {
	c.mu.RLock()
	answer := c.lookJWT(q, now)
	c.mu.RUnlock()
	if len(answer.lacking) == 0 {
		return answer
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	answer = c.lookJWT(q, now)
	for _, r := range answer.lacking {
		wait, asked, why := c.wantJWT(r, q, now)
		answer.asked = answer.asked || asked
		if r.token(q).held(now) {
			continue // that it is due concerns nobody
		}
		if answer.wait == nil {
			answer.wait = wait
		}
		if answer.why == nil {
			answer.why = why
		}
	}
	return answer
}

func (r *record) token(q jwtQuestion) *token {
	if s := r.jwts[q.uid]; s != nil {
		return s.tokens[q.key]
	}
	return nil
}

// lookJWT needs the read lock only. Hints are those of all entries, so that they do not depend on what is asked for.
func (c *cache) lookJWT(q jwtQuestion, now time.Time) (answer jwtAnswer) {
	hints := map[string]bool{"": true}
	for _, r := range c.index.match(q.selectors) {
		if r.entry.Expired(now) {
			continue
		}
		answer.entries++
		one := JWTSVID{Entry: r.entry.Name, ID: r.entry.ID, Hint: r.entry.Hint}
		if hints[one.Hint] { // clients.md rule 14, as in View
			one.Hint = ""
		}
		hints[one.Hint] = true
		if !q.ID.IsZero() && q.ID != r.entry.ID {
			continue
		}
		t := r.token(q)
		if t.held(now) {
			t.asked.Store(now.UnixNano())
			one.Token, one.Expires = t.text, t.expires
		}
		if !t.held(now) || t.due(now) {
			answer.lacking = append(answer.lacking, r)
		}
		answer.svids = append(answer.svids, one)
	}
	if len(answer.svids) == 0 && answer.entries > 0 {
		answer.others = c.idsOf(q.selectors, now)
	}
	return answer
}

// idsOf are those that a workload may hold, in the order of View.Identities.
func (c *cache) idsOf(workload []attest.Selector, now time.Time) (ids []spiffeid.ID) {
	for _, r := range c.index.match(workload) {
		if !r.entry.Expired(now) && !slices.Contains(ids, r.entry.ID) {
			ids = append(ids, r.entry.ID)
		}
	}
	return ids
}

// wantJWT lets the server be asked, unless it is or refused a moment ago. All who want the same wait for one answer.
func (c *cache) wantJWT(r *record, q jwtQuestion, now time.Time) (wait <-chan struct{}, asked bool, why error) {
	if r.jwts[q.uid] == nil {
		if r.jwts == nil {
			r.jwts = map[uint32]*shelf{}
		}
		r.jwts[q.uid] = &shelf{record: r, uid: q.uid, tokens: map[string]*token{}, pace: rate.NewLimiter(newAudiences, shelfSize)}
	}
	s := r.jwts[q.uid]
	t := s.tokens[q.key]
	if t == nil {
		if !s.pace.AllowN(now, 1) || !c.shelve(s, now) {
			return nil, false, fault.New(fault.Unavailable, nil, "too many audiences are asked for at once")
		}
		t = &token{shelf: s, key: strings.Clone(q.key)}
		for _, one := range q.Audience {
			if !slices.Contains(t.audience, one) {
				t.audience = append(t.audience, one)
			}
		}
		s.tokens[t.key] = t
		c.jwts.all[t] = struct{}{}
		c.weigh(t, 1)
		c.makeRoom(t)
	}
	t.asked.Store(now.UnixNano())
	if t.settled == nil {
		if now.Before(t.retryAt) {
			return nil, false, t.why
		}
		c.askJWT(t)
	}
	c.lookAt(now.Add(abandonAfter))
	return t.settled, true, t.why
}

func (c *cache) askJWT(t *token) {
	t.settled = make(chan struct{})
	c.jwts.asks[t] = struct{}{}
}

func (c *cache) settleJWT(t *token) {
	if t.settled != nil {
		close(t.settled)
		t.settled = nil
		delete(c.jwts.asks, t)
	}
}

func (c *cache) lookAt(moment time.Time) {
	if moment.Before(c.jwts.due) {
		c.jwts.due = moment
	}
}

// weigh adds or takes away what a token costs.
func (c *cache) weigh(t *token, sign int) {
	const rest = 256 // of the structure itself
	size := sign * (rest + 2*len(t.key) + len(t.text))
	c.jwts.bytes += size
	if c.jwts.users[t.shelf.uid] += size; c.jwts.users[t.shelf.uid] == 0 {
		delete(c.jwts.users, t.shelf.uid)
	}
}

// shelve makes room for one more on a shelf; false where somebody waits for each that is on it.
func (c *cache) shelve(s *shelf, now time.Time) bool {
	if len(s.tokens) < shelfSize {
		return true
	}
	var oldest *token
	for _, t := range s.tokens {
		if t.idle(now) && (oldest == nil || t.asked.Load() < oldest.asked.Load()) {
			oldest = t
		}
	}
	if oldest == nil {
		return false
	}
	c.dropJWT(oldest)
	return true
}

// makeRoom lets the user that holds most give way, but for the one that came last.
func (c *cache) makeRoom(newest *token) {
	for c.jwts.bytes > mostJWTBytes {
		var uid uint32
		for user, size := range c.jwts.users {
			if size > c.jwts.users[uid] {
				uid = user
			}
		}
		var oldest *token
		for t := range c.jwts.all {
			if t != newest && t.shelf.uid == uid && (oldest == nil || t.asked.Load() < oldest.asked.Load()) {
				oldest = t
			}
		}
		if oldest == nil {
			return
		}
		c.dropJWT(oldest)
	}
}

func (c *cache) dropJWT(t *token) {
	c.settleJWT(t)
	c.weigh(t, -1)
	delete(t.shelf.tokens, t.key)
	delete(c.jwts.all, t)
}

func (c *cache) dropJWTsOf(r *record) {
	for _, s := range r.jwts {
		for _, t := range s.tokens {
			c.dropJWT(t)
		}
	}
	r.jwts = nil
}

// renewJWTsOf is for an entry that wants another life.
func (c *cache) renewJWTsOf(r *record) {
	for _, s := range r.jwts {
		for _, t := range s.tokens {
			t.renewAt, t.retryAt = time.Time{}, time.Time{}
		}
	}
	c.jwts.due = time.Time{}
}

// dropUnverifiableJWTs drops what a key signed that our own bundle does not have any more.
func (c *cache) dropUnverifiableJWTs() {
	for t := range c.jwts.all {
		if t.text != "" && !c.verifies(t.keyID) {
			c.dropJWT(t)
		}
	}
}

func (c *cache) verifies(keyID string) bool {
	own := c.bundles[c.domain]
	if own == nil {
		return false
	}
	for _, key := range own.bundle.JWT.Keys {
		if key.ID == keyID {
			return true
		}
	}
	return false
}

func (c *cache) dropAllJWTs() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for t := range c.jwts.all {
		c.dropJWT(t)
	}
}
