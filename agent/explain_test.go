package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-dev/writ/agent"
	"github.com/writ-dev/writ/agent/agenttest"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
)

// numbered is a process with a number and an executable.
type numbered struct {
	*process
	pid  int32
	path string
}

func (p numbered) Process() attest.Process {
	return attest.Process{PID: p.pid, UID: p.uid, Path: p.path}
}

func seen(t *testing.T, a *agent.Agent, p attest.Peer) agent.Sighting {
	t.Helper()
	s, err := a.See(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestExplainSaysHowFarAProcessIs(t *testing.T) {
	server := started(t)
	refused, expired, ended := entry("refused", "alice"), entry("expired", "alice"), entry("far", "bob")
	refused.SpiffeId = "spiffe://example.org/other"
	expired.Expires = timestamppb.New(time.Now().Add(-time.Hour))
	ended.Match = []string{"unix:path:/x", "unix:user:bob"}
	server.Lock()
	server.Refuse = func(entry string) bool { return entry == "refused" }
	server.Unlock()
	server.Apply(entry("web", "alice"), refused, expired, entry("near", "bob"), ended)
	a, stop := agenttest.Run(t, config(t, server))
	s := subscribe(t, a, newProcess(1))
	next(t, s, "the identity", func(v agent.View) bool { return len(v.Identities) == 1 })
	var got agent.Explanation
	agenttest.Await(t, "the refusal", func() bool {
		got = a.Explain(seen(t, a, newProcess(1)))
		return len(got.Matches) == 3 && got.Matches[1].State == agent.Refused
	})
	want := agent.Explanation{PID: 1, UID: 1, Selectors: []string{"unix:user:alice"}, Node: []string{"test:name:node"}, AgentID: a.Status().AgentID,
		TrustDomain: "example.org", Synced: true, Connected: true, Revision: 1, Entries: 5,
		Matches: []agent.MatchedEntry{
			{Entry: "expired", SPIFFEID: "spiffe://example.org/expired", Revision: 1, State: agent.Expired},
			{Entry: "refused", SPIFFEID: "spiffe://example.org/other", Revision: 1, State: agent.Refused, Code: fault.NotEntitled},
			{Entry: "web", SPIFFEID: "spiffe://example.org/web", Revision: 1, State: agent.Held},
		},
		Nearest: []agent.NearEntry{
			{Entry: "near", SPIFFEID: "spiffe://example.org/near", Revision: 1, Has: []string{},
				Missing: []agent.MissingSelector{{Want: "unix:user:bob", Instead: []string{"unix:user:alice"}}}},
			{Entry: "far", SPIFFEID: "spiffe://example.org/far", Revision: 1, Has: []string{},
				Missing: []agent.MissingSelector{{Want: "unix:path:/x", Instead: []string{}}, {Want: "unix:user:bob", Instead: []string{"unix:user:alice"}}}},
		}}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(agent.Explanation{}, "SeenAt"), cmpopts.IgnoreFields(agent.MatchedEntry{}, "NotAfter", "Reason", "RetryAt")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if m := got.Matches[1]; m.Reason == "" || m.RetryAt.IsZero() || !got.Matches[2].NotAfter.After(time.Now()) {
		t.Errorf("matches %+v", got.Matches)
	}
	server.Remove("web")
	agenttest.Await(t, "the verdict", func() bool { return a.Explain(seen(t, a, newProcess(1))).Code == fault.NotEntitled })
	server.Remove("refused")
	agenttest.Await(t, "no match", func() bool { return a.Explain(seen(t, a, newProcess(1))).Code == fault.NoIdentity })
	stop()
}

func TestExplainKnowsTheNodeBeforeAnyServer(t *testing.T) {
	server := started(t)
	c := config(t, server)
	a, stop := agenttest.Run(t, c)
	subscribe(t, a, newProcess(1))
	stop()
	again, err := agent.New(c)
	if err != nil {
		t.Fatal(err)
	}
	got := again.Explain(seen(t, again, newProcess(1)))
	if got.Code != fault.AgentStarting || !cmp.Equal(got.Node, []string{"test:name:node"}) || got.AgentID == "" {
		t.Errorf("after a restart: %+v", got)
	}
}

func TestExplainRefusesWhatChanges(t *testing.T) {
	a, err := agent.New(config(t, started(t)))
	if err != nil {
		t.Fatal(err)
	}
	p := newProcess(1)
	p.lost.Store(true)
	if got, err := a.See(t.Context(), p); err == nil || !strings.Contains(err.Error(), "another executable") {
		t.Errorf("seen %+v, %v", got, err)
	}
}

func TestSuggestKnowsWhatTheNodeHolds(t *testing.T) {
	server := started(t)
	server.Apply(entry("carol", "bob"))
	c := config(t, server)
	c.Workload = []attest.WorkloadAttestor{fixed{{Method: "unix", Key: "uid", Value: "7"}, {Method: "unix", Key: "path", Value: "/bin/carol"}}}
	a, _ := agenttest.Run(t, c)
	subscribe(t, a, newProcess(1))
	s := seen(t, a, newProcess(1))
	if got, err := a.Suggest(s, spiffeid.ID{}, false); !fault.Is(err, fault.Conflict) {
		t.Errorf("a guess that is another's: %+v, %v", got, err)
	}
	got, err := a.Suggest(s, spiffeid.RequireFromString("spiffe://example.org/mine"), false)
	if err != nil || got.Entry.ID.Path() != "/mine" || !cmp.Equal(got.Entry.Where, []attest.Selector{{Method: "test", Key: "name", Value: "node"}}) {
		t.Errorf("suggested %+v, %v", got, err)
	}
}

// What a process without an identity is told to type is tried before: what it names is what is suggested and not refused.
func TestRemedyIsNotRefused(t *testing.T) {
	const uid, carol = "unix:uid:7", "unix:path:/bin/carol"
	for _, row := range []struct {
		name  string
		plain bool // the node has no selectors
		found []string
		want  agent.Remedy
	}{
		{"a binary of its own", false, []string{uid, "unix:path:/bin/dan"}, agent.Remedy{Fix: "writ entry suggest --pid 1 | writ entry apply -f -"}},
		{"its name is another's", false, []string{uid, carol}, agent.Remedy{Fix: "writ entry suggest --pid 1 --path /NAME | writ entry apply -f -",
			Why: []string{`the SPIFFE ID that the executable's name suggests, spiffe://example.org/carol, is given by entry "carol"`}}},
		{"a node that nothing tells from others", true, []string{uid, "unix:path:/bin/dan"}, agent.Remedy{
			Fix: "writ entry suggest --pid 1 --any | writ entry apply -f -", Or: "join the node anew with a token that names it: writ token create --node NAME",
			Why: []string{"nothing tells this node from others: it has no selectors, so the entry would hold on every node"}}},
		{"both", true, []string{uid, carol}, agent.Remedy{
			Fix: "writ entry suggest --pid 1 --any --path /NAME | writ entry apply -f -", Or: "join the node anew with a token that names it: writ token create --node NAME",
			Why: []string{"nothing tells this node from others: it has no selectors, so the entry would hold on every node",
				`the SPIFFE ID that the executable's name suggests, spiffe://example.org/carol, is given by entry "carol"`}}},
		{"nobody", true, []string{"unix:path:/bin/dan"}, agent.Remedy{Fix: "run it under a user of its own, one that this node knows",
			Why: []string{"the process has no user that this node knows, so nothing safe tells it from others",
				"uid 65534 (nobody) is what the kernel shows for every user that has no number here, so it is never a selector"}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			server := started(t)
			if row.plain {
				server.Selectors = nil
			}
			server.Apply(entry("carol", "bob"))
			c := config(t, server)
			var found fixed
			for _, text := range row.found {
				s, err := attest.ParseSelector(text)
				if err != nil {
					t.Fatal(err)
				}
				found = append(found, s)
			}
			c.Workload = []attest.WorkloadAttestor{found}
			a, _ := agenttest.Run(t, c)
			subscribe(t, a, newProcess(1))
			got := a.Explain(seen(t, a, numbered{newProcess(1), 1, "/x"}))
			if diff := cmp.Diff(&row.want, got.Remedy); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
		})
	}
}

// journal is a log that a test reads.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

// lines are those about missing identities, each with its facts.
func (j *journal) lines(t *testing.T) (out []map[string]any) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	for line := range strings.Lines(j.text.String()) {
		facts := map[string]any{}
		if err := json.Unmarshal([]byte(line), &facts); err != nil {
			t.Fatal(err)
		}
		if facts["msg"] == "no identity issued" {
			out = append(out, facts)
		}
	}
	return out
}

// asks lets a process ask once.
func asks(t *testing.T, a *agent.Agent, p attest.Peer) {
	t.Helper()
	s, err := a.Subscribe(t.Context(), p)
	if err != nil {
		t.Error(err)
		return
	}
	s.Close()
}

func TestNoIdentityIsExplainedInTheLog(t *testing.T) {
	server := started(t)
	wants := entry("web", "bob")
	wants.Match = append(wants.Match, "unix:sha256:00")
	server.Apply(wants)
	c, log := config(t, server), &journal{}
	c.Now, c.Log = server.Now, slog.New(slog.NewJSONHandler(log, nil))
	a, _ := agenttest.Run(t, c)
	subscribe(t, a, newProcess(2))
	p := numbered{newProcess(1), 4711, "/opt/\x1b[2Jweb"}
	asks(t, a, p)
	lines := log.lines(t)
	want := map[string]any{"code": "P2004", "peer_pid": 4711.0, "peer_uid": 1.0, "peer_path": "/opt/\x1b[2Jweb", "selectors": "unix:user:alice", "entry": "web",
		"spiffe_id": "spiffe://example.org/web", "missing": "unix:sha256:00 (it has none of that kind), unix:user:bob (it has unix:user:alice)",
		"why": "the process has no user that this node knows, so nothing safe tells it from others; " +
			"uid 65534 (nobody) is what the kernel shows for every user that has no number here, so it is never a selector",
		"fix": "run it under a user of its own, one that this node knows", "msg": "no identity issued", "level": "WARN"}
	ofTime := cmpopts.IgnoreMapEntries(func(key string, _ any) bool { return key == "time" })
	if diff := cmp.Diff(want, lines[len(lines)-1], ofTime); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// The same program again is remembered and not said, a minute later it is said.
	again := numbered{newProcess(1), 4712, p.path}
	asks(t, a, again)
	if got := log.lines(t); len(got) != len(lines) {
		t.Errorf("said again: %v", got[len(lines):])
	}
	for _, pid := range []int32{4711, 4712} {
		if s, there := a.Seen(pid); !there || s.Process.PID != pid || !cmp.Equal(s.Selectors, []attest.Selector{{Method: "unix", Key: "user", Value: "alice"}}) {
			t.Errorf("of process %d is known %+v", pid, s)
		}
	}
	server.Ahead.Add(int64(time.Minute))
	asks(t, a, again)
	if got := log.lines(t); len(got) != len(lines)+1 {
		t.Errorf("%d lines after a minute, want %d", len(got), len(lines)+1)
	}
}

// One user who starts ever new programs fills neither the log nor the memory, and drives out nobody else.
func TestMissesAreBoundedByUser(t *testing.T) {
	server := started(t)
	c, log := config(t, server), &journal{}
	now := time.Now()
	c.Now, c.Log = func() time.Time { return now }, slog.New(slog.NewJSONHandler(log, nil))
	a, _ := agenttest.Run(t, c)
	subscribe(t, a, numbered{newProcess(2), 1, "/quiet"})
	for pid := range int32(400) {
		asks(t, a, numbered{newProcess(1), 1000 + pid, fmt.Sprintf("/flood/%d", pid)})
	}
	if n := len(log.lines(t)); n != 11 {
		t.Errorf("%d lines, want 10 of the flooder and one", n)
	}
	kept := 0
	for pid := range int32(400) {
		if _, there := a.Seen(1000 + pid); there {
			kept++
		}
	}
	if _, there := a.Seen(1); !there || kept != 32 {
		t.Errorf("%d are remembered of the flooder, of the other one: %v", kept, there)
	}
	for uid := range uint32(100) { // many users together
		for n := range int32(20) {
			asks(t, a, numbered{newProcess(10 + uid), 2000 + int32(uid)*20 + n, fmt.Sprintf("/many/%d", n)})
		}
	}
	if n := len(log.lines(t)); n != 60 {
		t.Errorf("%d lines in a minute, want 60", n)
	}
	kept = 0
	for pid := range int32(5000) {
		if _, there := a.Seen(pid); there {
			kept++
		}
	}
	if kept != 256 {
		t.Errorf("%d are remembered, want 256", kept)
	}
}

// That it matches an entry whose time is over is said too, and a process with no end of groups is said and not kept.
func TestExpiredAndCrowdedAreSaid(t *testing.T) {
	server := started(t)
	over := entry("over", "alice")
	over.Expires = timestamppb.New(time.Now().Add(-time.Hour))
	server.Apply(over)
	c, log := config(t, server), &journal{}
	c.Log = slog.New(slog.NewJSONHandler(log, nil))
	var crowd fixed
	for gid := range 300 {
		crowd = append(crowd, attest.Selector{Method: "unix", Key: "supplementary_gid", Value: fmt.Sprint(1000 + gid)})
	}
	c.Workload = append(c.Workload, only{7, crowd})
	a, _ := agenttest.Run(t, c)
	subscribe(t, a, numbered{newProcess(1), 4711, "/a"})
	asks(t, a, numbered{newProcess(7), 4712, "/b"})
	lines := log.lines(t)
	if len(lines) != 2 || lines[0]["entry"] != "over" || lines[0]["missing"] != "the entry ended at "+over.Expires.AsTime().Format(time.RFC3339) {
		t.Fatalf("said %v", lines)
	}
	if text, _ := lines[1]["selectors"].(string); !strings.HasSuffix(text, " and 269 more") {
		t.Errorf("its selectors are %q", text)
	}
	if _, there := a.Seen(4711); !there {
		t.Error("the first is forgotten")
	}
	if _, there := a.Seen(4712); there {
		t.Error("300 selectors are kept")
	}
}

// only finds something of one user's processes.
type only struct {
	uid   uint32
	found fixed
}

func (o only) Attest(_ context.Context, p attest.Peer) ([]attest.Selector, error) {
	if p.Process().UID == o.uid {
		return o.found, nil
	}
	return nil, nil
}

// A workload that ends for want of an identity can be asked about afterwards.
func TestWhoAskedInVainIsExplainedAfterItsEnd(t *testing.T) {
	server := started(t)
	a, _ := agenttest.Run(t, config(t, server))
	subscribe(t, a, newProcess(2))
	p := numbered{newProcess(1), 4711, "/opt/web"}
	asks(t, a, p)
	close(p.done)
	server.Apply(entry("web", "alice"))
	s, there := a.Seen(4711)
	if !there {
		t.Fatal("it is forgotten")
	}
	agenttest.Await(t, "what it would get now", func() bool {
		e := a.Explain(s)
		return e.Code == "" && e.Path == "/opt/web" && len(e.Matches) == 1 && e.Matches[0].State == agent.Held
	})
	if _, there := a.Seen(4712); there {
		t.Error("one who never asked is known")
	}
	if _, err := a.See(t.Context(), gone{p}); !errors.Is(err, errGone) {
		t.Errorf("seen after its end: %v", err)
	}
}

var errGone = errors.New("it is gone")

type gone struct{ attest.Peer }

func (gone) Verify() error { return errGone }

// fixed takes every process for the same.
type fixed []attest.Selector

func (f fixed) Attest(context.Context, attest.Peer) ([]attest.Selector, error) { return f, nil }
