package agent_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-dev/writ/agent"
	"github.com/writ-dev/writ/agent/agenttest"
	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/api/registrationv1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// byUser takes a process's uid for its only selector.
type byUser struct{}

func (byUser) Attest(_ context.Context, p attest.Peer) ([]attest.Selector, error) {
	return []attest.Selector{{Method: "unix", Key: "user", Value: users[p.Process().UID]}}, nil
}

var users = map[uint32]string{1: "alice", 2: "bob"}

// process is a caller that a test can end or change.
type process struct {
	uid  uint32
	done chan struct{}
	lost atomic.Bool
}

func newProcess(uid uint32) *process { return &process{uid: uid, done: make(chan struct{})} }

func (p *process) Process() attest.Process { return attest.Process{PID: 1, UID: p.uid} }
func (p *process) Done() <-chan struct{}   { return p.done }
func (p *process) Verify() error {
	if p.lost.Load() {
		return errors.New("another executable")
	}
	return nil
}

func entry(name, user string) *registrationv1.Entry {
	return &registrationv1.Entry{Name: name, SpiffeId: "spiffe://example.org/" + name, Any: true, Match: []string{"unix:user:" + user}}
}

func subscribe(t *testing.T, a *agent.Agent, p attest.Peer) *agent.Subscription {
	t.Helper()
	agenttest.Await(t, "the first sync", func() bool {
		select {
		case <-a.Synced():
			return true
		default:
			return false
		}
	})
	s, err := a.Subscribe(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// next follows a subscription until its view is right.
func next(t *testing.T, s *agent.Subscription, what string, right func(agent.View) bool) agent.View {
	t.Helper()
	deadline := time.After(15 * time.Second)
	for {
		v := s.View()
		if right(v) {
			return v
		}
		select {
		case <-s.Changed():
		case <-s.Done():
			t.Fatalf("%s: the subscription ended: %v", what, s.Err())
		case <-deadline:
			t.Fatalf("%s did not come; the view is %+v", what, v)
		}
	}
}

// holds is a view of exactly these entries, all signed.
func holds(names ...string) func(agent.View) bool {
	return func(v agent.View) bool {
		var held []string
		for _, i := range v.Identities {
			held = append(held, i.Entry)
		}
		return v.Known && !v.Pending && cmp.Equal(held, names)
	}
}

var ids = cmpopts.EquateComparable(spiffeid.ID{}, spiffeid.TrustDomain{})

// silent fails if the subscriber is told of anything before marker holds.
func silent(t *testing.T, s *agent.Subscription, marker func() bool) {
	t.Helper()
	agenttest.Await(t, "the marker", marker)
	select {
	case <-s.Changed():
		t.Errorf("told of a change that is none: %+v", s.View())
	default:
	}
}

// config is an agent's for this server, taking a caller's uid for what it is.
func config(t *testing.T, a *agenttest.Authority) agent.Config {
	c := a.Config(t)
	c.Workload = []attest.WorkloadAttestor{byUser{}}
	return c
}

func started(t *testing.T) *agenttest.Authority {
	a := agenttest.New(t, "example.org")
	a.Start()
	return a
}

func TestEntryReachesItsWorkloadAndLeavesIt(t *testing.T) {
	server := started(t)
	a, _ := agenttest.Run(t, config(t, server))
	s := subscribe(t, a, newProcess(1))
	if v := s.View(); !v.Known || v.Pending || len(v.Identities) != 0 || len(v.Bundles) != 1 {
		t.Errorf("the view before any entry is %+v", v)
	}
	server.Apply(entry("web", "alice"))
	v := next(t, s, "the identity", holds("web"))
	id := v.Identities[0]
	if _, err := x509.ParsePKCS8PrivateKey(id.Key); err != nil {
		t.Errorf("key: %v", err)
	}
	if got, err := a.VerifyPeer(id.Chain[0]); err != nil || got != id.ID || got.String() != "spiffe://example.org/web" {
		t.Errorf("VerifyPeer: %v, %v", got, err)
	}
	if !cmp.Equal(v.Bundles[0].Roots, [][]byte{server.Root.Raw}) {
		t.Error("the bundle is not the server's root")
	}
	server.Remove("web")
	next(t, s, "the withdrawal", holds())
}

func TestUnchangedContentIsNotTold(t *testing.T) {
	server := started(t)
	server.Apply(entry("web", "alice"))
	a, _ := agenttest.Run(t, config(t, server))
	s := subscribe(t, a, newProcess(1))
	before := next(t, s, "the identity", holds("web"))
	at := func(revision uint64) func() bool {
		return func() bool { return a.Status().Revision == revision && a.Status().Pending == 0 }
	}
	server.Apply(entry("other", "bob"))
	silent(t, s, at(2))
	server.Apply(entry("web", "alice")) // the same again under a new revision
	silent(t, s, at(3))
	where := entry("web", "alice")
	where.Any, where.Where = false, []string{"test:a:b"}
	server.Apply(where) // who may serve it is nothing that the workload sees
	silent(t, s, at(4))
	server.Change(server.Bundle())
	silent(t, s, at(5))
	if diff := cmp.Diff(before, s.View(), ids); diff != "" {
		t.Error(diff)
	}
	if n := server.Count(func() int { return server.Signed["web"] }); n != 1 {
		t.Errorf("signed %d times", n)
	}
}

func TestOrderIsByNameAndHintsAreUnique(t *testing.T) {
	server := started(t)
	second, third := entry("b", "alice"), entry("c", "alice")
	second.Hint, third.Hint = "main", "main"
	server.Apply(third, second)
	a, _ := agenttest.Run(t, config(t, server))
	s := subscribe(t, a, newProcess(1))
	v := next(t, s, "both", holds("b", "c"))
	if v.Identities[0].Hint != "main" || v.Identities[1].Hint != "" {
		t.Errorf("hints %q and %q", v.Identities[0].Hint, v.Identities[1].Hint)
	}
	server.Apply(entry("d", "alice"))
	next(t, s, "the third", holds("b", "c", "d"))
	server.Remove("b")
	v = next(t, s, "the rest", holds("c", "d"))
	if v.Identities[0].Hint != "main" {
		t.Errorf("the hint is free again, the view has %q", v.Identities[0].Hint)
	}
}

func TestChangedEntryIsSignedAgainWhereItMust(t *testing.T) {
	server := started(t)
	server.Apply(entry("web", "alice"))
	a, _ := agenttest.Run(t, config(t, server))
	s := subscribe(t, a, newProcess(1))
	next(t, s, "the identity", holds("web"))
	count := func() int { return server.Count(func() int { return server.Signed["web"] }) }

	hinted := entry("web", "alice")
	hinted.Hint = "h"
	server.Apply(hinted)
	next(t, s, "the hint", func(v agent.View) bool { return holds("web")(v) && v.Identities[0].Hint == "h" })
	if count() != 1 {
		t.Error("a hint costs no signature")
	}
	named := entry("web", "alice")
	named.Dns = []string{"web.internal"}
	server.Apply(named)
	next(t, s, "the DNS name", func(v agent.View) bool {
		if !holds("web")(v) {
			return false
		}
		c, err := x509.ParseCertificate(v.Identities[0].Chain[0])
		return err == nil && cmp.Equal(c.DNSNames, named.Dns)
	})
	moved := entry("web", "alice")
	moved.SpiffeId = "spiffe://example.org/elsewhere"
	server.Apply(moved)
	next(t, s, "the other ID", func(v agent.View) bool {
		return holds("web")(v) && v.Identities[0].ID.Path() == "/elsewhere"
	})
	other := entry("web", "bob")
	other.SpiffeId = moved.SpiffeId
	server.Apply(other)
	next(t, s, "the withdrawal", holds())
}

// SPIFFE-ID section 3: the first bundle of a view is taken for our own.
func TestForeignBundleNeverStandsForOurs(t *testing.T) {
	server := started(t)
	server.Trust("foreign.org", agenttest.New(t, "foreign.org").Root)
	e := entry("web", "alice")
	e.FederatesWith = []string{"foreign.org"}
	server.Apply(e)
	a, _ := agenttest.Run(t, config(t, server))
	s := subscribe(t, a, newProcess(1))
	v := next(t, s, "both bundles", func(v agent.View) bool { return holds("web")(v) && len(v.Bundles) == 2 })
	if v.Bundles[0].TrustDomain.Name() != "example.org" {
		t.Errorf("the first is %s's", v.Bundles[0].TrustDomain)
	}
	server.Distrust("example.org")
	next(t, s, "no bundle at all", func(v agent.View) bool { return holds("web")(v) && len(v.Bundles) == 0 })
}

func TestExpiredEntryIsWithdrawn(t *testing.T) {
	server := started(t)
	e := entry("web", "alice")
	e.Expires = timestamppb.New(time.Now().Add(1500 * time.Millisecond))
	server.Apply(e)
	a, _ := agenttest.Run(t, config(t, server))
	s := subscribe(t, a, newProcess(1))
	next(t, s, "the identity", holds("web"))
	next(t, s, "its end", holds())
}

func TestSVIDsAreRenewedAtHalfLife(t *testing.T) {
	server := started(t)
	server.AgentTTL, server.TTL = 3*time.Second, 4*time.Second // certificates count whole seconds: 3 to 4 are left
	server.Apply(entry("web", "alice"))
	a, _ := agenttest.Run(t, config(t, server))
	s := subscribe(t, a, newProcess(1))
	began := time.Now()
	first := next(t, s, "the identity", holds("web"))
	second := next(t, s, "its renewal", func(v agent.View) bool {
		return holds("web")(v) && !cmp.Equal(v.Identities[0].Chain, first.Identities[0].Chain)
	})
	if passed := time.Since(began); passed < 1200*time.Millisecond || passed > 3*time.Second {
		t.Errorf("renewed after %s of 4s", passed)
	}
	if cmp.Equal(first.Identities[0].Key, second.Identities[0].Key) {
		t.Error("the key is the old one")
	}
	agenttest.Await(t, "the third generation", func() bool { return a.Status().Generation >= 3 })
	if err := a.Ready(); err != nil {
		t.Errorf("Ready: %v", err)
	}
}

func TestServesWhileTheServerIsAwayAndComesBack(t *testing.T) {
	server := started(t)
	server.Apply(entry("web", "alice"), entry("more", "bob"))
	a, _ := agenttest.Run(t, config(t, server))
	s := subscribe(t, a, newProcess(1))
	before := next(t, s, "the identity", holds("web"))
	agenttest.Await(t, "all SVIDs ahead", func() bool { return a.Status().SVIDs == 2 })
	server.Stop()
	agenttest.Await(t, "the break", func() bool { return !a.Status().Connected })
	if diff := cmp.Diff(before, s.View(), ids); diff != "" {
		t.Error(diff)
	}
	late := subscribe(t, a, newProcess(2))
	next(t, late, "what was signed ahead", holds("more"))
	if err := a.Ready(); err != nil {
		t.Errorf("Ready without a server: %v", err)
	}
	if left := time.Until(a.Status().SafeUntil); left < 50*time.Minute || left > time.Hour {
		t.Errorf("the outage budget is %s", left)
	}
	server.Start()
	server.Apply(entry("new", "alice"))
	next(t, s, "the new entry", holds("web", "new"))
	server.Lock()
	defer server.Unlock()
	if last := server.Opened[len(server.Opened)-1]; last == 0 {
		t.Error("it asked for a snapshot where it could resume")
	}
}

func TestRefusesWhoIsNoServer(t *testing.T) {
	real, other := agenttest.New(t, "example.org"), agenttest.New(t, "example.org")
	foreign := agenttest.New(t, "foreign.org")
	for _, row := range []struct {
		name  string
		bend  func(c *agent.Config)
		shown func() *agenttest.Authority
	}{
		{"a workload's SVID", nil, func() *agenttest.Authority { real.Identity = real.ServerSVID("/web"); return real }},
		{"an agent's SVID", nil, func() *agenttest.Authority { real.Identity = real.ServerSVID("/writ/agent/test/k"); return real }},
		{"an ID below a server's", nil, func() *agenttest.Authority { real.Identity = real.ServerSVID("/writ/server/one/two"); return real }},
		{"a server under another root", nil, func() *agenttest.Authority { return other }},
		{"a server of another trust domain, pinned", func(c *agent.Config) {
			c.TrustDomain, c.Pins = spiffeid.RequireTrustDomainFromString("example.org"), [][32]byte{foreign.Pin()}
		}, func() *agenttest.Authority { return foreign }},
		{"the issuing key pinned, which is no root", func(c *agent.Config) { c.Pins = [][32]byte{{1}} },
			func() *agenttest.Authority { real.Identity = real.ServerSVID("/writ/server/one"); return real }},
		{"another root in the configured bundle", func(c *agent.Config) {
			c.Pins, c.Roots = nil, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Root.Raw})
		}, func() *agenttest.Authority { real.Identity = real.ServerSVID("/writ/server/one"); return real }},
	} {
		t.Run(row.name, func(t *testing.T) {
			shown := row.shown()
			c := config(t, real)
			c.Server = shown.Start()
			defer shown.Stop()
			if row.bend != nil {
				row.bend(&c)
			}
			a, err := agent.New(c)
			if err != nil {
				t.Fatal(err)
			}
			err = a.Join(t.Context())
			var f *fault.Error
			if !errors.As(err, &f) || f.Code != fault.ServerUnproved {
				t.Errorf("Join: %v", err)
			}
			if n := shown.Count(func() int { return shown.Proofs }); n != 0 {
				t.Error("evidence was shown to it")
			}
		})
	}
}

func TestJoinLeavesAllThatRunNeeds(t *testing.T) {
	server := started(t)
	server.Apply(entry("web", "alice"))
	c := config(t, server)
	first, err := agent.New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Join(t.Context()); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(c.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		info, err := f.Info()
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", f.Name(), info.Mode(), err)
		}
		names = append(names, f.Name())
	}
	if diff := cmp.Diff([]string{"agent.json", "bundle.pem", "node.key"}, names); diff != "" {
		t.Error(diff)
	}
	a, stop := agenttest.Run(t, agent.Config{DataDir: c.DataDir, Workload: c.Workload}) // no token, no address, no pin
	s := subscribe(t, a, newProcess(1))
	next(t, s, "the identity", holds("web"))
	stop()
	if v := s.View(); v.Known || !fault.Is(s.Err(), fault.Unavailable) {
		t.Errorf("after the agent: %+v, %v", v, s.Err())
	}
	again, _ := agenttest.Run(t, agent.Config{DataDir: c.DataDir, Workload: c.Workload})
	next(t, subscribe(t, again, newProcess(1)), "the identity after a restart", holds("web"))
	if n := server.Count(func() int { return server.Proofs }); n != 1 {
		t.Errorf("proved itself %d times", n)
	}
}

func TestLostAnswerIsAskedForWithTheSameKey(t *testing.T) {
	for _, row := range []struct {
		name  string
		joins bool
	}{{"of an attestation", true}, {"of a renewal", false}} {
		t.Run(row.name, func(t *testing.T) {
			server := started(t)
			server.AgentTTL = 2 * time.Second
			c := config(t, server)
			server.LoseProof = row.joins
			a, stop := agenttest.Run(t, c)
			<-a.Synced()
			if !row.joins {
				server.Lock()
				server.LoseProof = true
				server.Unlock()
				agenttest.Await(t, "the loss", func() bool { return server.Count(func() int { return len(server.Nodes) + server.Proofs }) > 2 })
				stop() // also over a restart
				a, _ = agenttest.Run(t, c)
			}
			agenttest.Await(t, "the third generation", func() bool { return a.Status().Generation >= 3 })
			for id, row := range server.Nodes {
				if row.Locked {
					t.Errorf("%s is locked", id)
				}
			}
		})
	}
}

func TestCopiedDataDirectoryIsLocked(t *testing.T) {
	server := started(t)
	server.AgentTTL = 2 * time.Second
	c := config(t, server)
	first, err := agent.New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Join(t.Context()); err != nil {
		t.Fatal(err)
	}
	copied := c
	copied.DataDir = filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(copied.DataDir, os.DirFS(c.DataDir)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(copied.DataDir, 0o700), os.Chmod(filepath.Join(copied.DataDir, "node.key"), 0o600),
		os.Chmod(filepath.Join(copied.DataDir, "agent.json"), 0o600), os.Chmod(filepath.Join(copied.DataDir, "bundle.pem"), 0o600)); err != nil {
		t.Fatal(err)
	}
	a, _ := agenttest.Run(t, c)
	b, _ := agenttest.Run(t, copied)
	agenttest.Await(t, "the lock", func() bool {
		return strings.Contains(a.Status().Degraded, "locked") && strings.Contains(b.Status().Degraded, "locked")
	})
	if a.Ready() == nil || b.Ready() == nil {
		t.Error("a locked node says that it is ready")
	}
	before := server.Count(func() int { return server.Proofs })
	calm := time.NewTimer(2 * time.Second)
	<-calm.C
	if after := server.Count(func() int { return server.Proofs }); after > before+2 { // one of each may have been under way
		t.Errorf("locked nodes asked %d times in 2 s", after-before)
	}
}

func TestForgottenNodeAttestsAnew(t *testing.T) {
	server := started(t)
	server.Apply(entry("web", "alice"))
	a, _ := agenttest.Run(t, config(t, server))
	s := subscribe(t, a, newProcess(1))
	next(t, s, "the identity", holds("web"))
	server.Stop()
	server.Lock()
	clear(server.Nodes)
	server.Unlock()
	server.Start()
	server.Apply(entry("new", "alice"))
	next(t, s, "the new entry", holds("web", "new"))
}

func TestExpiredAgentAttestsAnew(t *testing.T) {
	server := started(t)
	server.Apply(entry("web", "alice"))
	c := config(t, server)
	c.Now = server.Now
	a, _ := agenttest.Run(t, c)
	s := subscribe(t, a, newProcess(1))
	before := next(t, s, "the identity", holds("web"))
	server.Stop()
	agenttest.Await(t, "the break", func() bool { return !a.Status().Connected })
	server.Ahead.Store(int64(2 * time.Hour)) // as after a suspend
	if a.Ready() == nil {
		t.Error("ready with an expired SVID")
	}
	if v := s.View(); !v.Pending || len(v.Identities) > 0 {
		t.Errorf("an SVID that ended is shown: %+v", v)
	}
	server.Identity = server.ServerSVID("/writ/server/one")
	server.Start()
	back := time.Now()
	next(t, s, "another SVID", func(v agent.View) bool {
		return holds("web")(v) && v.Identities[0].NotAfter.After(before.Identities[0].NotAfter)
	})
	if passed := time.Since(back); passed > 10*time.Second {
		t.Errorf("it took %s", passed)
	}
	agenttest.Await(t, "readiness", func() bool { return a.Ready() == nil })
}

func TestDigestThatDoesNotFitCostsOneSnapshot(t *testing.T) {
	server := started(t)
	server.Apply(entry("web", "alice"))
	a, _ := agenttest.Run(t, config(t, server))
	s := subscribe(t, a, newProcess(1))
	next(t, s, "the identity", holds("web"))
	server.Lock()
	server.Bend = func(m *nodev1.SyncResponse) { m.Changes = nil; server.Bend = nil } // a change gets lost
	server.Unlock()
	server.Apply(entry("lost", "alice"))
	next(t, s, "what was lost", holds("web", "lost"))
	if n := server.Count(func() int { return server.Signed["web"] }); n != 1 {
		t.Errorf("the snapshot had web signed %d times", n)
	}
}

func TestSubscriptionEndsWithItsProcess(t *testing.T) {
	server := started(t)
	server.Apply(entry("web", "alice"))
	a, _ := agenttest.Run(t, config(t, server))
	ended, changed := newProcess(1), newProcess(1)
	s := subscribe(t, a, ended)
	next(t, s, "the identity", holds("web"))
	close(ended.done)
	<-s.Done()
	s = subscribe(t, a, changed)
	next(t, s, "the identity", holds("web"))
	changed.lost.Store(true) // exec
	if v := s.View(); v.Known || len(v.Identities) > 0 || !fault.Is(s.Err(), fault.Denied) {
		t.Errorf("after exec: %+v, %v", v, s.Err())
	}
	s = subscribe(t, a, changed) // what it was is remembered; it is asked whether it still is before it gets anything
	if v := s.View(); v.Known || len(v.Identities) > 0 || !fault.Is(s.Err(), fault.Denied) {
		t.Errorf("a further call after exec: %+v, %v", v, s.Err())
	}
	agenttest.Await(t, "no subscription", func() bool { return a.Status().Subscriptions == 0 })
}

// What is looked at while the subscription ends may be empty already, and that must not read as "entitled to nothing".
func TestViewWhileTheSubscriptionEnds(t *testing.T) {
	var s *agent.Subscription
	s, _ = agent.NewSubscription(func() (agent.View, error) {
		s.Close()
		return agent.View{Known: true}, nil
	})
	if v := s.View(); v.Known {
		t.Errorf("the view is %+v", v)
	}
}

// looks is an attestor that counts how often it looks, and that leaves the tier out unless an entry asks for one.
type looks struct {
	asks func(method, key string) bool
	n    atomic.Int64
}

func (l *looks) Attest(context.Context, attest.Peer) ([]attest.Selector, error) {
	l.n.Add(1)
	found := []attest.KeyValue{{Key: "user", Value: "alice"}}
	if l.asks("unix", "tier") {
		found = append(found, attest.KeyValue{Key: "tier", Value: "gold"})
	}
	return attest.Of("unix", found), nil
}

func TestCallerIsAttestedOncePerConnection(t *testing.T) {
	server := started(t)
	server.Apply(entry("web", "alice"))
	attestor := &looks{}
	config := server.Config(t)
	config.Workload = []attest.WorkloadAttestor{attestor}
	var a *agent.Agent
	attestor.asks = func(method, key string) bool { return a.Asks(method, key) }
	a, _ = agenttest.Run(t, config)
	connection := newProcess(1)
	for range 3 {
		next(t, subscribe(t, a, connection), "the identity", holds("web"))
	}
	if n := attestor.n.Load(); n != 1 {
		t.Errorf("three calls over one connection took %d looks", n)
	}
	next(t, subscribe(t, a, newProcess(1)), "the identity", holds("web"))
	if n := attestor.n.Load(); n != 2 {
		t.Errorf("a second connection: %d looks", n)
	}
	s := subscribe(t, a, newProcess(1))
	next(t, s, "the identity", holds("web"))
	gold := entry("gold", "alice")
	gold.Match = []string{"unix:tier:gold"}
	server.Apply(gold)
	next(t, s, "the identity of an entry that asks for what no entry asked for", holds("web", "gold"))
	next(t, subscribe(t, a, connection), "the same for a caller that was known", holds("web", "gold"))
}

func TestUnavailableUntilTheEntriesAreKnown(t *testing.T) {
	server := agenttest.New(t, "example.org")
	server.Start()
	server.Stop()
	a, _ := agenttest.Run(t, config(t, server))
	if _, err := a.Subscribe(t.Context(), newProcess(1)); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Subscribe: %v", err)
	}
	if err := a.Ready(); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Ready: %v", err)
	}
}

func TestFactsFollowTheServer(t *testing.T) {
	server := started(t)
	a, _ := agenttest.Run(t, config(t, server))
	<-a.Synced()
	id := spiffeid.RequireFromString("spiffe://example.org/web")
	server.Change(&nodev1.Change{Kind: &nodev1.Change_Identity{Identity: &nodev1.Identity{SpiffeId: id.String(), Selectors: []string{"unix:uid:1"},
		Assurance: 2, Entry: "web"}}})
	agenttest.Await(t, "the facts", func() bool { _, ok := a.Facts(id); return ok })
	facts, _ := a.Facts(id)
	if facts.Entry != "web" || facts.Assurance != attest.KeyFile || !cmp.Equal(facts.Selectors, []string{"unix:uid:1"}) {
		t.Errorf("facts %+v", facts)
	}
	server.Change(&nodev1.Change{Kind: &nodev1.Change_IdentityRemoved{IdentityRemoved: id.String()}})
	agenttest.Await(t, "their end", func() bool { _, ok := a.Facts(id); return !ok })
}

// A server that resumes a stream knows a deleted entry by its name alone, and cannot say which ID's facts went with it.
func TestFactsGoWithTheLastEntryOfTheirID(t *testing.T) {
	server := started(t)
	a, _ := agenttest.Run(t, server.Config(t))
	<-a.Synced()
	id := spiffeid.RequireFromString("spiffe://example.org/web")
	known := func() bool { _, ok := a.Facts(id); return ok }
	named := func(name, id string) *nodev1.Change {
		return &nodev1.Change{Kind: &nodev1.Change_Entry{Entry: &registrationv1.Entry{Name: name, SpiffeId: id, Any: true, Match: []string{"unix:uid:1"}}}}
	}
	facts := &nodev1.Change{Kind: &nodev1.Change_Identity{Identity: &nodev1.Identity{SpiffeId: id.String(), Assurance: 4}}}
	server.Change(named("first", id.String()), named("second", id.String()), facts)
	agenttest.Await(t, "the facts", known)
	server.Remove("first")
	after := spiffeid.RequireFromString("spiffe://example.org/after")
	server.Change(&nodev1.Change{Kind: &nodev1.Change_Identity{Identity: &nodev1.Identity{SpiffeId: after.String()}}})
	agenttest.Await(t, "what came after the removal", func() bool { _, ok := a.Facts(after); return ok })
	if !known() {
		t.Error("the facts went while an entry still has the ID")
	}
	server.Change(named("second", "spiffe://example.org/other"))
	agenttest.Await(t, "their end, when the second entry took another ID", func() bool { return !known() })
	server.Change(named("second", id.String()), facts)
	agenttest.Await(t, "the facts again", known)
	server.Remove("second")
	agenttest.Await(t, "their end, when the entry was removed", func() bool { return !known() })
}

// SPIFFE-ID section 3: the bundle of a peer's own trust domain judges it, whatever other bundles are held.
func TestVerifyPeerRefusesStrangers(t *testing.T) {
	server, other, foreign := started(t), agenttest.New(t, "example.org"), agenttest.New(t, "foreign.org")
	server.Trust("foreign.org", foreign.Issuing) // an anchor that is not self-signed: a proxy hands over bare leaves
	server.Trust("emptied.org")
	a, _ := agenttest.Run(t, config(t, server))
	<-a.Synced()
	for _, good := range [][]byte{server.Stray("spiffe://example.org/web"), foreign.Stray("spiffe://foreign.org/web")} {
		if _, err := a.VerifyPeer(good); err != nil {
			t.Error(err)
		}
	}
	for name, der := range map[string][]byte{
		"another root's": other.Stray("spiffe://example.org/web"),
		"ID-32, WAPI-15, WAPI-33: our ID under a federated root":      foreign.Stray("spiffe://example.org/web"),
		"ID-32, WAPI-15, X509-35: a federated ID under our root":      server.Stray("spiffe://foreign.org/web"),
		"WAPI-15: an ID of a domain that is not held":                 server.Stray("spiffe://unknown.org/web"),
		"X509-44, TDB-13: an ID of a domain whose bundle has no keys": server.Stray("spiffe://emptied.org/web"),
		"X509-06: an ID without a path":                               server.Stray("spiffe://example.org"),
		"X509-10, X509-18: a CA's certificate":                        server.Issuing.Raw,
		"no certificate":                                              []byte("x"),
	} {
		t.Run(name, func(t *testing.T) {
			if id, err := a.VerifyPeer(der); err == nil {
				t.Errorf("taken for %s", id)
			}
		})
	}
}

func TestFilesOpenToOthersAreRefused(t *testing.T) {
	server := started(t)
	for _, name := range []string{"", "node.key", "agent.json", "bundle.pem"} {
		t.Run("open "+name, func(t *testing.T) {
			c := config(t, server)
			first, err := agent.New(c)
			if err != nil {
				t.Fatal(err)
			}
			if err := first.Join(t.Context()); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(c.DataDir, name)
			if err := os.Chmod(path, 0o755); err != nil {
				t.Fatal(err)
			}
			_, err = agent.New(c)
			var f *fault.Error
			if !errors.As(err, &f) || f.Code != fault.WideMode || !strings.Contains(f.Fix, path) {
				t.Errorf("New: %v", err)
			}
		})
	}
}
