package agent

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
	"github.com/writ-dev/writ/svid"
)

const (
	batchSize   = 64
	signTimeout = 10 * time.Second
	never       = 24 * time.Hour // for a wait that only an event ends
)

// job is one SVID to be signed. It holds the entry as it was when the job began.
type job struct {
	record *record
	entry  registration.Entry
	key    *ecdsa.PrivateKey
	issued *Identity // nil while there is none
	err    error
}

// keepSigned is the one loop that asks for SVIDs: for entries that lack one or whose SVID is due, in batches, watched ones first.
func (a *Agent) keepSigned(ctx context.Context) {
	retry := newBackoff(100*time.Millisecond, 10*time.Second)
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
			a.until(ctx, a.now().Add(retry.next()), nil)
			continue
		}
		retry.reset()
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

// sign makes a new key for each job and asks for all of them in one call. Its error is the call's; a job's own stays with the job.
func (a *Agent) sign(ctx context.Context, server *remote, jobs []job) error {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	request := &nodev1.SignRequest{}
	for i := range jobs {
		csr, err := jobs[i].prepare()
		if err != nil {
			return err
		}
		request.Requests = append(request.Requests,
			&nodev1.SigningRequest{Entry: jobs[i].entry.Name, SpiffeId: jobs[i].entry.ID.String(), Csr: csr})
	}
	answer, err := server.Sign(ctx, request)
	if err != nil {
		return server.why(err)
	}
	if len(answer.GetResults()) != len(jobs) {
		return fmt.Errorf("the server gave %d results for %d requests", len(answer.GetResults()), len(jobs))
	}
	own := a.cache.own()
	if own == nil {
		return errors.New("the server has not sent the bundle of our trust domain")
	}
	now := a.now()
	for i := range jobs {
		jobs[i].accept(answer.GetResults()[i], own.anchors, now)
		a.report(ctx, jobs[i])
	}
	a.cache.install(jobs, now)
	return nil
}

// prepare gives the CSR. It names nothing: names come from the entry, and only the public key is taken.
func (j *job) prepare() ([]byte, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	j.key = key
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
}

// accept judges one result. clients.md rule 5: one bad SVID spoils a client's whole update, so what does not verify is not held.
func (j *job) accept(result *nodev1.SigningResult, anchors svid.Anchors, now time.Time) {
	if result.GetStatus() != uint32(codes.OK) {
		e, _ := errors.AsType[*fault.Error](fault.FromStatus(status.Error(codes.Code(result.GetStatus()), result.GetMessage())))
		e.Code = fault.Code(result.GetCode())
		j.err = e
		return
	}
	j.err = func() error {
		chain, err := parseChain(result.GetCertificates())
		if err != nil {
			return err
		}
		id, err := svid.Verify(chain[0], chain[1:], anchors, now)
		if err != nil {
			return skewed(err, chain[0], now)
		}
		if id != j.entry.ID || !j.key.PublicKey.Equal(chain[0].PublicKey) {
			return fmt.Errorf("the SVID is for %s or another key", id)
		}
		key, err := x509.MarshalPKCS8PrivateKey(j.key)
		if err != nil {
			return err
		}
		j.issued = &Identity{Entry: j.entry.Name, ID: id, Hint: j.entry.Hint, Chain: result.GetCertificates(), Key: key,
			NotAfter: chain[0].NotAfter}
		return nil
	}()
}

func (a *Agent) report(ctx context.Context, j job) {
	if j.err != nil {
		a.tally.signed.WithLabelValues("refused").Inc()
		a.log.WarnContext(ctx, "no SVID for entry", "entry", j.entry.Name, "spiffe_id", j.entry.ID.String(), "err", j.err)
		return
	}
	a.tally.signed.WithLabelValues("issued").Inc()
	a.log.DebugContext(ctx, "SVID held", "entry", j.entry.Name, "spiffe_id", j.entry.ID.String(), "not_after", j.issued.NotAfter)
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
		if j.issued == nil {
			r.refusals++
			r.retryAt = now.Add(refusalWait(r.refusals, j.err))
			continue
		}
		j.issued.Hint = r.entry.Hint
		c.setIdentity(r, j.issued)
		r.retryAt, r.refusals = time.Time{}, 0
		r.renewAt = now.Add(halfLife(j.issued.NotAfter.Sub(now), chance()))
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
	if kind := fault.KindOf(err); kind == fault.Stale || kind == fault.Unavailable || kind == fault.Throttled {
		first = 50 * time.Millisecond
	}
	wait := min(first<<min(refusals-1, 12), time.Minute)
	return time.Duration(float64(wait) * (0.75 + 0.5*chance()))
}

// chance is a random number from 0 to 1.
func chance() float64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return float64(binary.BigEndian.Uint64(b[:])>>11) / (1 << 53)
}
