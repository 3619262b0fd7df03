package agent

import (
	"context"
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
)

// nearShown is how many of the nearest entries an Explanation has.
const nearShown = 3

// Explanation says what a process may hold on this node, and what keeps it from holding more.
type Explanation struct {
	PID         int32          `json:"pid"`
	UID         uint32         `json:"uid"`
	GID         uint32         `json:"gid"`
	Path        string         `json:"path,omitempty"` // as the process itself sees it
	SeenAt      time.Time      `json:"seen_at"`
	Selectors   []string       `json:"selectors"`
	AgentID     string         `json:"agent_id,omitempty"`
	TrustDomain string         `json:"trust_domain,omitempty"`
	Node        []string       `json:"node_selectors"`
	Synced      bool           `json:"synced"`    // the entries are known
	Connected   bool           `json:"connected"` // a server is followed
	Degraded    string         `json:"degraded,omitempty"`
	Revision    uint64         `json:"revision"`
	Entries     int            `json:"entries"`        // of this node; those for other nodes are not known here
	Code        fault.Code     `json:"code,omitempty"` // why it holds nothing, empty where it holds an SVID or is about to
	Matches     []MatchedEntry `json:"matches"`
	Nearest     []NearEntry    `json:"nearest"`
	Remedy      *Remedy        `json:"remedy,omitempty"` // where no entry gives it an identity
}

// MatchedEntry is an entry that the process matches, and the state of its SVID.
type MatchedEntry struct {
	Entry    string     `json:"entry"`
	SPIFFEID string     `json:"spiffe_id"`
	Revision uint64     `json:"revision"`
	State    SVIDState  `json:"state"`
	NotAfter time.Time  `json:"not_after,omitzero"` // of the SVID that is held, or was
	Reason   string     `json:"reason,omitempty"`   // of the last refusal, or why it is pending
	Code     fault.Code `json:"code,omitempty"`
	RetryAt  time.Time  `json:"retry_at,omitzero"`
}

// SVIDState is how far an entry's X.509-SVID is.
type SVIDState string

// The states.
const (
	Held    SVIDState = "held"
	Pending SVIDState = "pending" // asked for, or waiting to be
	Refused SVIDState = "refused" // none is held, and the server would not give one; it is asked again
	Ended   SVIDState = "ended"   // the one that is held ended before it could be renewed
	Expired SVIDState = "expired" // the entry's time is over
)

// NearEntry is an entry that the process does not match.
type NearEntry struct {
	Entry    string            `json:"entry"`
	SPIFFEID string            `json:"spiffe_id"`
	Revision uint64            `json:"revision"`
	Has      []string          `json:"has"`
	Missing  []MissingSelector `json:"missing"`
}

// MissingSelector is what an entry wants, and what the process has in its place.
type MissingSelector struct {
	Want    string   `json:"want"`
	Instead []string `json:"instead"`
}

// See lets the workload attestors look at a process, exactly as when it calls.
func (a *Agent) See(ctx context.Context, p attest.Peer) (Sighting, error) {
	selectors, err := a.attest(ctx, p)
	if err != nil {
		return Sighting{}, errors.Join(p.Verify(), err)
	}
	return Sighting{Process: p.Process(), Selectors: selectors, At: a.now()}, nil
}

// Seen gives the process that had this number and last asked in vain, also after its end; some hundred are remembered.
func (a *Agent) Seen(pid int32) (Sighting, bool) { return a.misses.find(pid) }

// Explain says what the process that was seen may hold now. It asks nobody.
func (a *Agent) Explain(s Sighting) Explanation {
	p, status := s.Process, a.Status()
	e := Explanation{PID: p.PID, UID: p.UID, GID: p.GID, Path: p.Path, SeenAt: s.At, Selectors: texts(s.Selectors), AgentID: status.AgentID,
		TrustDomain: status.TrustDomain, Node: texts(a.selectors()), Synced: status.Synced, Connected: status.Connected,
		Degraded: status.Degraded, Revision: status.Revision, Entries: status.Entries, Nearest: []NearEntry{}}
	e.Matches = a.cache.explain(s.Selectors, status, a.now())
	for _, near := range a.cache.nearest(s.Selectors, nearShown) {
		n := NearEntry{Entry: near.Entry.Name, SPIFFEID: near.Entry.ID.String(), Revision: near.Entry.Revision, Has: texts(near.Has)}
		for _, m := range near.Missing {
			n.Missing = append(n.Missing, MissingSelector{Want: m.Want.String(), Instead: texts(m.Instead)})
		}
		e.Nearest = append(e.Nearest, n)
	}
	if e.Code = e.verdict(); e.Code == fault.NoIdentity {
		remedy := a.remedy(s)
		e.Remedy = &remedy
	}
	return e
}

// verdict is the code of what the process is answered.
func (e Explanation) verdict() fault.Code {
	if !e.Synced {
		return fault.AgentStarting
	}
	code := fault.NoIdentity
	for _, m := range e.Matches {
		switch m.State {
		case Held:
			return ""
		case Expired:
		default:
			code = m.Code
		}
	}
	return code
}

// Suggest writes an entry for the process that was seen; see registration.Suggest. A zero ID is guessed.
func (a *Agent) Suggest(s Sighting, id spiffeid.ID, everyNode bool) (registration.Suggestion, error) {
	return registration.Suggest(registration.Wish{TrustDomain: a.node.Domain(), ID: id, Any: everyNode, Node: a.selectors(), Workload: s.Selectors,
		Entries: a.cache.copied()})
}

// selectors are this node's.
func (a *Agent) selectors() []attest.Selector {
	if held, _ := a.node.Current(); held != nil {
		return held.Selectors
	}
	return nil
}

func (c *cache) copied() []registration.Entry {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.entries()
}

func (c *cache) nearest(workload []attest.Selector, n int) []registration.Near {
	return registration.Nearest(c.copied(), workload, n)
}

// explain says how far the SVIDs of the matching entries are, in the order of registration.Match.
func (c *cache) explain(workload []attest.Selector, status Status, now time.Time) []MatchedEntry {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := []MatchedEntry{}
	for _, r := range c.index.match(workload) {
		m := MatchedEntry{Entry: r.entry.Name, SPIFFEID: r.entry.ID.String(), Revision: r.entry.Revision, State: Pending}
		if r.identity != nil {
			m.NotAfter, m.State = r.identity.NotAfter, Held
			if !now.Before(m.NotAfter) {
				m.State = Ended
			}
		}
		if r.refusal != nil {
			m.refused(r.refusal, r.retryAt)
		}
		switch {
		case r.entry.Expired(now):
			m.State = Expired
			m.Reason = "the entry ended at " + r.entry.Expires.Format(time.RFC3339)
		case m.Reason != "" || m.State == Held:
		case status.Degraded != "":
			m.Reason = status.Degraded
		case !status.Connected:
			m.Reason = "no server is followed"
		default:
			m.Reason = "it is being signed"
		}
		out = append(out, m)
	}
	return out
}

// refused takes what the server said, which it says to agents, and not what we know beside.
func (m *MatchedEntry) refused(err error, retryAt time.Time) {
	m.Reason, m.RetryAt = err.Error(), retryAt
	var f *fault.Error
	if errors.As(err, &f) {
		m.Code = f.Code
	}
	if m.State == Pending {
		m.State = Refused
	}
}
