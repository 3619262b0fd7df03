package agent

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/writ-dev/writ/agent/member"
	"github.com/writ-dev/writ/registration"
)

const (
	batchSize = 64
	never     = 24 * time.Hour // for a wait that only an event ends
)

// job is one SVID to be signed, for an entry as it was when the job began.
type job struct {
	record *record
	entry  registration.Entry
	issued member.Issued
}

// keepSigned is the one loop that asks for SVIDs: for entries that lack one or whose SVID is due, in batches, watched ones first.
func (a *Agent) keepSigned(ctx context.Context) {
	retry := member.NewBackoff(100*time.Millisecond, 10*time.Second)
	for ctx.Err() == nil {
		now := a.now()
		a.cache.tick(now)
		jobs, next := a.cache.due(now, batchSize)
		server := a.link.server()
		if len(jobs) == 0 || server == nil { // what is due waits for a server; a new link pokes
			a.until(ctx, now.Add(next), a.work)
			continue
		}
		if err := a.sign(ctx, server, jobs); err != nil {
			a.doubt(ctx, "ask for SVIDs", err)
			a.until(ctx, a.now().Add(retry.Next()), nil)
			continue
		}
		retry.Reset()
	}
}

// due gives up to n jobs, and how long until the next one when there is none.
func (c *cache) due(now time.Time, n int) ([]job, time.Duration) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var ready []*record
	next := never
	for r := range c.wanted {
		at := r.retryAt
		if r.identity != nil && r.renewAt.After(at) {
			at = r.renewAt
		}
		switch {
		case r.entry.Expired(now):
		case at.After(now):
			next = min(next, at.Sub(now))
		default:
			ready = append(ready, r)
		}
	}
	for r := range c.expiring {
		next = min(next, r.entry.Expires.Sub(now))
	}
	slices.SortFunc(ready, byNeed)
	jobs := make([]job, 0, n)
	for _, r := range ready[:min(n, len(ready))] {
		jobs = append(jobs, job{record: r, entry: r.entry})
	}
	return jobs, max(next, 0)
}

// byNeed puts a watched entry before others, one without SVID before one with, then the SVID that ends first.
func byNeed(a, b *record) int {
	yes := func(b bool) int {
		if b {
			return 0
		}
		return 1
	}
	if c := cmp.Compare(yes(len(a.watchers) > 0), yes(len(b.watchers) > 0)); c != 0 {
		return c
	}
	if c := cmp.Compare(yes(a.identity == nil), yes(b.identity == nil)); c != 0 || a.identity == nil {
		return c
	}
	return a.identity.NotAfter.Compare(b.identity.NotAfter)
}

// sign asks for a batch in one call. Its error is the call's; a job's own stays with the job.
func (a *Agent) sign(ctx context.Context, server *member.Server, jobs []job) error {
	own := a.cache.bundleOf(a.node.Domain())
	if own == nil {
		return errors.New("the server has not sent the bundle of our trust domain")
	}
	wants := make([]member.Want, 0, len(jobs))
	for _, j := range jobs {
		wants = append(wants, member.Want{Entry: j.entry.Name, ID: j.entry.ID})
	}
	issued, err := server.Issue(ctx, wants, own.anchors, a.now)
	if err != nil {
		return err
	}
	for i := range jobs {
		jobs[i].issued = issued[i]
		a.tally.count(a.tally.signed, issued[i].Err)
		if err := issued[i].Err; err != nil {
			a.log.WarnContext(ctx, "no SVID for entry", "entry", jobs[i].entry.Name, "spiffe_id", jobs[i].entry.ID.String(), "err", err)
		}
	}
	a.cache.install(jobs, a.now())
	return nil
}

// install takes what was signed for entries that are still there and still say the same, and tells who watches them.
func (c *cache) install(jobs []job, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	touched := map[*share]struct{}{}
	for _, j := range jobs {
		r := j.record
		if _, wanted := c.wanted[r]; !wanted || c.records[j.entry.Name] != r || r.entry.ID != j.entry.ID {
			continue
		}
		if j.issued.Err != nil {
			r.refusals++
			r.refusal = j.issued.Err
			r.retryAt = now.Add(refusalWait(r.refusals, j.issued.Err))
			continue
		}
		c.setIdentity(r, &Identity{Entry: j.entry.Name, ID: j.entry.ID, Hint: r.entry.Hint, Chain: j.issued.Chain, Key: j.issued.Key,
			NotAfter: j.issued.NotAfter})
		r.retryAt, r.refusals, r.refusal = time.Time{}, 0, nil
		r.renewAt = now.Round(0).Add(member.HalfLife(j.issued.NotAfter.Sub(now), member.Chance())) // by the wall clock, as NotAfter
		if r.entry.TTL != j.entry.TTL || !slices.Equal(r.entry.DNS, j.entry.DNS) {
			r.renewAt = time.Time{} // it changed while it was being signed
		}
		for s := range r.watchers {
			touched[s] = struct{}{}
		}
	}
	for s := range touched {
		c.tell(s, now)
	}
}

// refusalWait is short where the next try may find the server caught up, and grows to a minute.
func refusalWait(refusals int, err error) time.Duration {
	first := time.Second
	if passing(err) {
		first = 50 * time.Millisecond
	}
	wait := min(first<<min(refusals-1, 12), time.Minute)
	return time.Duration(float64(wait) * (0.75 + 0.5*member.Chance()))
}
