package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
)

// What is kept and said of processes that asked in vain is bounded, since any local user can have any number of them.
const (
	mostMisses     = 256 // processes remembered
	mostMissesUser = 32  // of one uid
	mostSelectors  = 256 // of one that is remembered; a user may be able to be in thousands of groups
	mostLines      = 60  // a minute in the log
	mostLinesUser  = 10  // a minute of one uid
)

// Sighting is a process as the workload attestors found it.
type Sighting struct {
	Process   attest.Process
	Selectors []attest.Selector
	At        time.Time
}

// misses remembers who asked in vain: a workload often ends for want of an identity, and whoever looks then finds nobody.
type misses struct {
	mu    sync.Mutex
	last  []Sighting // oldest first, each process once
	began time.Time  // of the minute that the rest is about
	lines int
	users map[uint32]int
	said  map[program]bool
}

// program is what a line in the log is about; a process that starts again and again has one.
type program struct {
	uid  uint32
	path string
}

// add says whether the log shall have a line about it.
func (m *misses) add(s Sighting) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(s.Selectors) <= mostSelectors {
		m.remember(s)
	}
	return m.say(program{s.Process.UID, s.Process.Path}, s.At)
}

func (m *misses) remember(s Sighting) {
	m.last = slices.DeleteFunc(m.last, func(o Sighting) bool { return o.Process == s.Process })
	mine := func(o Sighting) bool { return o.Process.UID == s.Process.UID }
	count := 0
	for _, o := range m.last {
		if mine(o) {
			count++
		}
	}
	switch {
	case count >= mostMissesUser:
		i := slices.IndexFunc(m.last, mine)
		m.last = slices.Delete(m.last, i, i+1)
	case len(m.last) >= mostMisses:
		m.last = slices.Delete(m.last, 0, 1)
	}
	m.last = append(m.last, s)
}

// say is for one minute after the other: one line for a program, some for a user, more for all.
func (m *misses) say(p program, now time.Time) bool {
	if now.Sub(m.began) >= time.Minute || now.Before(m.began) {
		m.began, m.lines, m.users, m.said = now, 0, map[uint32]int{}, map[program]bool{}
	}
	if m.said[p] || m.users[p.uid] >= mostLinesUser || m.lines >= mostLines {
		return false
	}
	m.said[p] = true
	m.users[p.uid]++
	m.lines++
	return true
}

func (m *misses) find(pid int32) (Sighting, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range slices.Backward(m.last) {
		if s.Process.PID == pid {
			return s, true
		}
	}
	return Sighting{}, false
}

// sayUnmatched is for whoever looks for the reason of "no identity issued": what Explain tells, in one line.
func (a *Agent) sayUnmatched(ctx context.Context, s Sighting) {
	if !a.misses.add(s) {
		return
	}
	p := s.Process
	facts := []any{"code", string(fault.NoIdentity), "peer_pid", p.PID, "peer_uid", p.UID, "peer_path", p.Path, "selectors", brief(texts(s.Selectors))}
	if over := a.cache.explain(s.Selectors, Status{}, s.At); len(over) > 0 {
		facts = append(facts, "entry", over[0].Entry, "spiffe_id", over[0].SPIFFEID, "missing", over[0].Reason)
	} else if near := a.cache.nearest(s.Selectors, 1); len(near) > 0 {
		var missing []string
		for _, m := range near[0].Missing {
			missing = append(missing, m.Want.String()+has(texts(m.Instead)))
		}
		facts = append(facts, "entry", near[0].Entry.Name, "spiffe_id", near[0].Entry.ID.String(), "missing", strings.Join(missing, ", "))
	}
	remedy := a.remedy(s)
	if len(remedy.Why) > 0 {
		facts = append(facts, "why", strings.Join(remedy.Why, "; "))
	}
	a.log.WarnContext(ctx, "no identity issued", append(facts, "fix", remedy.Fix)...)
}

// has is what a process has in the place of what is missing.
func has(instead []string) string {
	if len(instead) == 0 {
		return " (it has none of that kind)"
	}
	return " (it has " + brief(instead) + ")"
}

// brief joins some and counts the rest: a process may be in thousands of groups.
func brief(list []string) string {
	const some = 32
	if len(list) > some {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:some], " "), len(list)-some)
	}
	return strings.Join(list, " ")
}

func texts(selectors []attest.Selector) []string {
	out := make([]string, 0, len(selectors))
	for _, s := range selectors {
		out = append(out, s.String())
	}
	return out
}
