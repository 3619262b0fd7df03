package store_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
	"github.com/writ-dev/writ/store"
)

func TestMain(m *testing.M) {
	if folder := os.Getenv(crashVariable); folder != "" {
		writeUntilKilled(folder)
	}
	goleak.VerifyTestMain(m)
}

// An engine gets its line here and passes the whole suite.
func TestSQLite(t *testing.T) {
	t.Parallel()
	suite(t, func(t *testing.T) store.Config { return store.Config{DataDir: t.TempDir()} })
}

// suite is what a store owes whatever its engine. Empty says where a store is that nobody has opened yet.
func suite(t *testing.T, empty func(t *testing.T) store.Config) {
	for _, c := range slices.Concat(entryRules(), revisionRules(), writerRules(), admissionRules(), renewalRules(), banRules(),
		issuanceRules(), authorityRules(), auditRules()) {
		t.Run(c.rule, func(t *testing.T) {
			t.Parallel()
			c.check(newHouse(t, empty(t)))
		})
	}
}

// A rule is one sentence that holds for every engine.
type rule struct {
	rule  string
	check func(*house)
}

// A house is one store of a test, its clock, and what the tests ask of it. What fails ends the test.
type house struct {
	*testing.T
	*store.DB
	config store.Config
	clock  *clock
}

func newHouse(t *testing.T, c store.Config) *house {
	t.Helper()
	h := &house{T: t, config: c, clock: &clock{now: time.Date(2027, 1, 2, 3, 4, 5, 678901000, time.UTC)}}
	h.config.Server, h.config.Now = "a", h.clock.Now
	h.open()
	t.Cleanup(func() { _ = h.DB.Close() })
	return h
}

func (h *house) open() {
	h.Helper()
	db, err := store.Open(context.Background(), h.config)
	if err != nil {
		h.Fatal(err)
	}
	h.DB = db
}

// reopen is a restart of the server.
func (h *house) reopen() {
	h.Helper()
	h.must(h.Close())
	h.open()
}

func (h *house) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

// want ends the test unless err is of that kind and code.
func (h *house) want(err error, kind fault.Kind, code fault.Code) {
	h.Helper()
	if !fault.Is(err, kind) || codeOf(err) != code {
		h.Fatalf("%v is %s %s, want %s %s", err, fault.KindOf(err), codeOf(err), kind, code)
	}
}

// same compares, and takes one way to write a time for another.
func (h *house) same(what string, got, want any) {
	h.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), asValues); diff != "" {
		h.Fatalf("%s: -want +got\n%s", what, diff)
	}
}

var asValues = cmpopts.EquateComparable(spiffeid.ID{}, spiffeid.TrustDomain{})

func codeOf(err error) fault.Code {
	var e *fault.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// A clock stands still until a test moves it.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

// Now is the time.
func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// A state is all that can be read of a store: what was refused must leave it as it was.
type state struct {
	Entries     []registration.Entry
	At          registration.Revision
	Changes     []registration.Change
	Nodes       []attest.Node
	Authorities any
	Audit       []audit.Row
}

const all = 1 << 20

func (h *house) state() (s state) {
	h.Helper()
	ctx := context.Background()
	var err error
	s.Entries, s.At, err = h.Entries(ctx)
	h.must(err)
	s.Changes, err = h.Changes(ctx, 0, all)
	h.must(err)
	s.Nodes, err = h.Nodes(ctx)
	h.must(err)
	s.Authorities, err = h.Authorities(ctx)
	h.must(err)
	s.Audit, err = h.AuditRows(ctx, 0, all)
	h.must(err)
	return s
}

// refuses ends the test unless do is refused so, and leaves everything as it was.
func (h *house) refuses(kind fault.Kind, code fault.Code, do func() error) {
	h.Helper()
	before := h.state()
	h.want(do(), kind, code)
	h.same("after a refusal", h.state(), before)
}

// whole ends the test unless history is what NextChain makes of it, and revisions leave no gap.
func (h *house) whole() {
	h.Helper()
	s := h.state()
	var chain []byte
	var number uint64
	for _, c := range s.Changes {
		if c.Revision.Number != number && c.Revision.Number != number+1 {
			h.Fatalf("revision %d follows %d", c.Revision.Number, number)
		}
		number = c.Revision.Number
		chain = registration.NextChain(chain, number, c.Kind, c.ID)
		h.same(fmt.Sprintf("chain at revision %d after %s %s", number, c.Kind, c.ID), c.Revision.Chain, chain)
	}
	h.same("newest revision", s.At, registration.Revision{Number: number, Chain: chain})
}

// closed ends the test unless the channel is closed before long.
func (h *house) closed(what string, c <-chan struct{}) {
	h.Helper()
	select {
	case <-c:
	case <-time.After(30 * time.Second):
		h.Fatalf("%s: not within half a minute", what)
	}
}

// together runs n at once and waits for all.
func together(n int, do func(i int)) {
	var begin, done sync.WaitGroup
	begin.Add(1)
	for i := range n {
		done.Go(func() {
			begin.Wait()
			do(i)
		})
	}
	begin.Done()
	done.Wait()
}

func count[T any](all []T, f func(T) bool) (n int) {
	for _, one := range all {
		if f(one) {
			n++
		}
	}
	return n
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
