package server

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/ca"
	"github.com/writ-dev/writ/ca/keystore"
	"github.com/writ-dev/writ/registration"
	"github.com/writ-dev/writ/store"
)

// view is all that a registry answers from, without locks, timers and streams.
type view struct {
	Revision registration.Revision
	Entries  map[string]registration.Entry
	ByID     map[spiffeid.ID]names
	ByWhere  map[attest.Selector]names
	Anywhere names
	Ending   names
	Nodes    map[string]attest.Node
	BySel    map[attest.Selector]names
}

func (r *registry) view() view {
	return view{r.revision, r.entries, r.byID, r.byWhere, r.anywhere, r.ending, r.nodes, r.bySel}
}

// changer changes a store at random, as operators and nodes do.
type changer struct {
	db *store.DB
	t  *rapid.T
}

var (
	names4   = rapid.SampledFrom([]string{"a", "b", "c", "d"})
	wheres   = rapid.SampledFrom([]string{"m:k:1", "m:k:2", "m:l:1"})
	someTime = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
)

func (c *changer) entry() registration.Entry {
	e := registration.Entry{Name: names4.Draw(c.t, "name"), ID: spiffeid.RequireFromString("spiffe://example.org/" + names4.Draw(c.t, "id")),
		Match: []attest.Selector{{Method: "unix", Key: "uid", Value: fmt.Sprint(rapid.IntRange(0, 2).Draw(c.t, "uid"))}}}
	if e.Where = c.selectors(); len(e.Where) == 0 {
		e.Any = true
	}
	if rapid.Bool().Draw(c.t, "expires") {
		e.Expires = someTime
	}
	return e
}

func (c *changer) selectors() []attest.Selector {
	var out []attest.Selector
	for _, text := range rapid.SliceOfNDistinct(wheres, 0, 2, rapid.ID[string]).Draw(c.t, "selectors") {
		s, err := attest.ParseSelector(text)
		if err != nil {
			c.t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

func agentNamed(name string) spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://example.org/writ/agent/test/" + name)
}

// step makes one change; one that the store refuses, such as the deletion of what is not there, is none.
func (c *changer) step() {
	ctx, by := context.Background(), audit.Admin{Principal: "test"}
	name := names4.Draw(c.t, "subject")
	switch rapid.IntRange(0, 6).Draw(c.t, "act") {
	case 0, 1:
		_, _ = c.db.Apply(ctx, registration.Batch{Entries: []registration.Entry{c.entry()}}, by)
	case 2:
		_, _ = c.db.Apply(ctx, registration.Batch{Delete: []string{name}}, by)
	case 3:
		_, _ = c.db.Apply(ctx, registration.Batch{Entries: []registration.Entry{c.entry()}, Prune: true}, by)
	case 4:
		_, _ = c.db.Admit(ctx, attest.Admission{Node: attest.Node{ID: agentNamed(name), Key: []byte(name), SVIDKey: []byte("s"), Method: "test",
			Selectors: c.selectors(), Assurance: attest.Assurance(rapid.IntRange(1, 4).Draw(c.t, "assurance"))}}, audit.Attestation{})
	case 5:
		_ = c.db.Evict(ctx, agentNamed(name).String(), by)
	case 6:
		_, _ = c.db.Ban(ctx, attest.Ban{Subject: agentNamed(name).String()}, by)
	}
}

func newTestRegistry(t *testing.T) (*store.DB, func() *registry) {
	t.Helper()
	ctx := t.Context()
	domain := spiffeid.RequireTrustDomainFromString("example.org")
	db, err := store.Open(ctx, store.Config{DataDir: t.TempDir(), Server: "one"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	authority, err := ca.New(ctx, ca.Config{TrustDomain: domain, Server: "one", Keys: keystore.Memory(), Ledger: db})
	if err != nil {
		t.Fatal(err)
	}
	return db, func() *registry {
		r := newRegistry(Config{TrustDomain: domain, Authority: authority, Now: time.Now, Store: Store{Feed: db, Entries: db, Nodes: db}})
		if err := r.load(ctx); err != nil {
			t.Fatal(err)
		}
		return r
	}
}

// What is kept up by deltas must be what a restart would read.
func TestDeltasGiveTheIndexThatLoadingGives(t *testing.T) {
	db, load := newTestRegistry(t)
	kept := load()
	rapid.Check(t, func(rt *rapid.T) {
		c := changer{db: db, t: rt}
		for range rapid.IntRange(1, 8).Draw(rt, "steps") {
			c.step()
			if rapid.Bool().Draw(rt, "read now") { // else several changes come as one delta
				catchUp(rt, kept)
			}
		}
		catchUp(rt, kept)
		fresh := load()
		// A renewal and a repeated proof touch nobody but the node itself, and make no revision.
		own := cmp.FilterPath(func(p cmp.Path) bool {
			switch p.Last().String() {
			case ".Generation", ".AttestedAt", ".AttestedUntil", ".SVIDKey", ".Serial":
				return true
			}
			return false
		}, cmp.Ignore())
		if diff := cmp.Diff(fresh.view(), kept.view(), own, cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b })); diff != "" {
			rt.Fatalf("index (-loaded +kept):\n%s", diff)
		}
		for name := range kept.nodes {
			wantSameSnapshot(rt, fresh, kept, name)
		}
	})
}

func catchUp(t *rapid.T, r *registry) {
	if err := r.catchUp(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// wantSameSnapshot compares what a node would be told.
func wantSameSnapshot(t *rapid.T, fresh, kept *registry, agent string) {
	a, b := fresh.snapshot(newFollower(fresh.nodes[agent])), kept.snapshot(newFollower(kept.nodes[agent]))
	if len(a) != len(b) {
		t.Fatalf("%d messages, want %d", len(b), len(a))
	}
	for i := range a {
		a[i].Changes[0], b[i].Changes[0] = nil, nil // the bundle, whose sequence is a time
		if !proto.Equal(a[i], b[i]) {
			t.Fatalf("%s is told %v, want %v", agent, b[i], a[i])
		}
	}
}
