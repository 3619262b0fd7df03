package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/writ-dev/writ/agent/member"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
)

// jwtJob is one JWT-SVID to be asked for, for an entry as it was when the job began.
type jwtJob struct {
	token  *token
	entry  registration.Entry
	issued member.IssuedJWT
}

// keepJWTs is the one loop that asks for JWT-SVIDs: for those that workloads wait for, and for those that are due and were asked
// for lately, in batches. It is apart from keepSigned, so that neither waits for the other's call.
func (a *Agent) keepJWTs(ctx context.Context) {
	retry := member.NewBackoff(100*time.Millisecond, time.Second)
	for ctx.Err() == nil {
		now := a.now()
		jobs, next := a.cache.dueJWTs(now, batchSize)
		server := a.link.server()
		if len(jobs) == 0 || server == nil {
			a.until(ctx, now.Add(next), a.askJWTs)
			continue
		}
		if err := a.signJWTs(ctx, server, jobs); err != nil {
			a.doubt(ctx, "ask for JWT-SVIDs", err)
			a.until(ctx, a.now().Add(retry.Next()), nil)
			continue
		}
		retry.Reset()
	}
}

// dueJWTs gives up to n jobs, and how long until there may be others.
func (c *cache) dueJWTs(now time.Time, n int) ([]jwtJob, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !now.Before(c.jwts.due) {
		c.sweepJWTs(now)
	}
	next := c.jwts.due
	var ready []*token
	for t := range c.jwts.asks {
		if now.Before(t.retryAt) {
			next = earlier(next, t.retryAt)
			continue
		}
		ready = append(ready, t)
	}
	inTurn(ready)
	jobs := make([]jwtJob, 0, n)
	for _, t := range ready[:min(n, len(ready))] {
		jobs = append(jobs, jwtJob{token: t, entry: t.shelf.record.entry})
	}
	return jobs, max(next.Sub(now), 0)
}

// inTurn puts what somebody waits for before what is only due, and lets users take turns, each in the order of asking: whoever asks
// for a thousand holds up the others by no more than one that asks for one.
func inTurn(ready []*token) {
	slices.SortFunc(ready, func(a, b *token) int {
		return cmp.Or(cmp.Compare(min(len(a.text), 1), min(len(b.text), 1)), cmp.Compare(a.asked.Load(), b.asked.Load()))
	})
	turn, before := map[*token]int{}, map[uint32]int{}
	for _, t := range ready {
		turn[t] = before[t.shelf.uid]
		before[t.shelf.uid]++
	}
	slices.SortStableFunc(ready, func(a, b *token) int { return cmp.Compare(turn[a], turn[b]) })
}

// sweepJWTs drops what is of no more use, asks for what is to be renewed, and says when to sweep again.
func (c *cache) sweepJWTs(now time.Time) {
	c.jwts.due = now.Add(never)
	for t := range c.jwts.all {
		switch {
		case t.text == "" && t.settled != nil: // somebody waits, or did
			c.keepUntil(t, now, time.Unix(0, t.asked.Load()).Add(abandonAfter))
		case t.text == "":
			c.keepUntil(t, now, t.retryAt.Add(refusalLasts))
		case !now.Before(t.lasts) || t.settled != nil:
			c.keepUntil(t, now, t.lasts)
		case !t.due(now):
			c.keepUntil(t, now, t.lasts)
			c.lookAt(later(t.renewAt, t.retryAt))
		default:
			c.keepUntil(t, now, t.lasts)
			if t.since(now) < t.life*latelyPercent/100 {
				c.askJWT(t)
			}
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// keepUntil drops a token when its time has come, and with the last one its shelf, unless that still knows that its user asked fast.
func (c *cache) keepUntil(t *token, now, end time.Time) {
	if now.Before(end) {
		c.lookAt(end)
		return
	}
	c.dropJWT(t)
	if s := t.shelf; len(s.tokens) == 0 && s.pace.TokensAt(now) >= shelfSize && s.record.jwts[s.uid] == s {
		delete(s.record.jwts, s.uid)
	}
}

// signJWTs asks for a batch in one call. Its error is the call's; a job's own stays with the job.
func (a *Agent) signJWTs(ctx context.Context, server *member.Server, jobs []jwtJob) error {
	err := errors.New("the server has not sent the bundle of our trust domain")
	var issued []member.IssuedJWT
	if own := a.cache.bundleOf(a.node.Domain()); own != nil {
		wants := make([]member.WantJWT, 0, len(jobs))
		for _, j := range jobs {
			wants = append(wants, member.WantJWT{Entry: j.entry.Name, ID: j.entry.ID, Audience: j.token.audience})
		}
		issued, err = server.IssueJWT(ctx, wants, own.bundle.JWT, a.now)
	}
	for i := range jobs {
		if jobs[i].issued.Err = err; err == nil {
			jobs[i].issued = issued[i]
		}
		a.tally.count(a.tally.jwtSigned, jobs[i].issued.Err)
		if refused := jobs[i].issued.Err; refused != nil && err == nil {
			a.log.WarnContext(ctx, "no JWT-SVID for entry", "entry", jobs[i].entry.Name, "spiffe_id", jobs[i].entry.ID.String(), "err", refused)
		}
	}
	a.cache.installJWTs(jobs, a.now())
	return err
}

// installJWTs takes what was signed for what is still wanted, and tells who waits. A refusal that may pass is no answer yet.
func (c *cache) installJWTs(jobs []jwtJob, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, j := range jobs {
		t := j.token
		if _, wanted := c.jwts.all[t]; !wanted {
			continue
		}
		err := j.issued.Err
		if err == nil && !c.verifies(j.issued.JWT.KeyID) {
			err = fault.New(fault.Stale, nil, fmt.Sprintf("key %q has left the bundle meanwhile", j.issued.JWT.KeyID))
		}
		if err != nil {
			t.why = err
			t.refusals++
			t.retryAt = now.Add(refusalWait(t.refusals, err))
			if !passing(err) {
				c.settleJWT(t)
				c.lookAt(t.retryAt)
			}
			continue
		}
		c.settleJWT(t)
		c.weigh(t, -1)
		t.take(j, now)
		c.weigh(t, 1)
		c.lookAt(t.renewAt)
		c.lookAt(t.lasts)
		c.makeRoom(t)
	}
}

// passing says that the next try, a moment later, may go better.
func passing(err error) bool {
	switch fault.KindOf(err) {
	case fault.Stale, fault.Throttled, fault.Unavailable, fault.Unreachable:
		return true
	}
	return false
}

// take makes what was signed what is held. It ends by this node's clock, as for whoever verifies it here, and no later than by the
// server's, as for others: of clocks that differ the one that is behind would hand out what has ended.
func (t *token) take(j jwtJob, now time.Time) {
	now = now.Round(0) // the wall clock alone: a monotonic one stands still while the machine sleeps, and the token ends all the same
	signed := j.issued.JWT
	t.why, t.refusals, t.retryAt = nil, 0, time.Time{}
	t.text, t.keyID, t.expires = Token(signed.Token()), signed.KeyID, signed.Expires
	t.life = t.expires.Sub(now)
	if !signed.IssuedAt.IsZero() {
		t.life = min(t.life, t.expires.Sub(signed.IssuedAt))
	}
	t.lasts = now.Add(t.life - min(t.life/restPart, leastRest))
	t.renewAt = now.Add(member.HalfLife(t.life, member.Chance()))
	if t.shelf.record.entry.JWTTTL != j.entry.JWTTTL {
		t.renewAt = now // it changed while this was being signed
	}
}
