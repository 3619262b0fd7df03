package store_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
)

var operator = audit.Admin{Principal: "uid:1000", RequestID: "r1"}

func entryRules() []rule {
	return []rule{
		{"a batch is one revision and reads back as it was", applyIsOneRevision},
		{"one refused entry refuses the batch and changes nothing", applyIsAllOrNothing},
		{"applying again changes nothing", applyIsIdempotent},
		{"an update says what was there before", updateSaysBefore},
		{"an entry keeps its age until it is deleted", entriesKeepTheirAge},
		{"prune takes only what the same owner applied last", pruneTakesOwn},
		{"a dry run says what would change and changes nothing", dryRunChangesNothing},
		{"an entry is deleted by its name, all of a SPIFFE ID by that", deleteByNameAndID},
		{"deleting what is not there is refused", deleteUnknown},
		{"entries are found by name, each once", entriesNamed},
		{"entries and their revision are of one moment", entriesAreOneMoment},
	}
}

func id(path string) spiffeid.ID {
	return spiffeid.RequireFromPath(spiffeid.RequireTrustDomainFromString("example.org"), path)
}

// entry is one for every node and every process of uid 1000.
func entry(name string) registration.Entry {
	return registration.Entry{Name: name, ID: id("/" + name), Any: true, Match: []attest.Selector{{Method: "unix", Key: "uid", Value: "1000"}}}
}

func entries(names ...string) (out []registration.Entry) {
	for _, name := range names {
		out = append(out, entry(name))
	}
	return out
}

// wholeEntry has every field.
func wholeEntry(name string) registration.Entry {
	return registration.Entry{
		Name: name, ID: id("/" + name),
		Where: []attest.Selector{{Method: "x509pop", Key: "san", Value: "spiffe://a:1"}, {Method: "x509pop", Key: "subject", Value: "web-1"}},
		Match: []attest.Selector{{Method: "unix", Key: "path", Value: "/usr/bin/größe"}, {Method: "unix", Key: "uid", Value: "1000"}},
		TTL:   time.Hour, JWTTTL: 5 * time.Minute, DNS: []string{"orders.internal", "b.internal"}, Hint: "primary",
		FederatesWith: []spiffeid.TrustDomain{spiffeid.RequireTrustDomainFromString("partner.org")},
		Expires:       time.Date(2029, 1, 1, 0, 0, 0, 1000, time.UTC),
	}
}

// apply applies for the owner "cli".
func (h *house) apply(b registration.Batch) registration.Applied {
	h.Helper()
	if b.Owner == "" {
		b.Owner = "cli"
	}
	done, err := h.Apply(context.Background(), b, operator)
	h.must(err)
	return done
}

// acts are what became of each entry.
func acts(a registration.Applied) map[string]registration.Act {
	out := map[string]registration.Act{}
	for _, c := range a.Changes {
		out[c.Entry.Name] = c.Act
	}
	return out
}

// names are the entries that there are.
func (h *house) names() (names []string) {
	h.Helper()
	for _, e := range h.state().Entries {
		names = append(names, e.Name)
	}
	return names
}

func entriesKeepTheirAge(h *house) {
	age := func(want map[string]uint64) {
		h.Helper()
		got := map[string]uint64{}
		for _, e := range h.state().Entries {
			got[e.Name] = e.Created
		}
		h.same("age", got, want)
	}
	a, b := entry("a"), entry("b")
	b.Created = 99 // whoever applies has no say
	h.apply(registration.Batch{Entries: []registration.Entry{a}})
	h.apply(registration.Batch{Entries: []registration.Entry{b}})
	a.Hint = "new"
	h.apply(registration.Batch{Entries: []registration.Entry{a}})
	age(map[string]uint64{"a": 1, "b": 2})
	h.reopen()
	h.apply(registration.Batch{Delete: []string{"a"}})
	h.apply(registration.Batch{Entries: []registration.Entry{a, b}})
	age(map[string]uint64{"a": h.state().At.Number, "b": 2})
}

func applyIsOneRevision(h *house) {
	done := h.apply(registration.Batch{Entries: []registration.Entry{wholeEntry("orders"), entry("billing")}})
	h.same("acts", acts(done), map[string]registration.Act{"billing": registration.Created, "orders": registration.Created})
	for range 2 {
		s := h.state()
		want := []registration.Entry{entry("billing"), wholeEntry("orders")}
		want[0].Revision, want[1].Revision = 1, 1
		h.same("entries", s.Entries, want)
		h.same("revision", s.At, done.Revision)
		if done.Revision.Number != 1 || len(s.Changes) != 3 {
			h.Fatalf("revision %d with changes %v, want 1 with the store's and two entries'", done.Revision.Number, s.Changes)
		}
		for i, want := range []struct{ kind, id string }{{"store", s.Changes[0].ID}, {registration.KindEntry, "orders"}, {registration.KindEntry, "billing"}} {
			if c := s.Changes[i]; c.Kind != want.kind || c.ID != want.id || c.Revision.Number != 1 {
				h.Errorf("change %d is %+v, want %v", i, c, want)
			}
		}
		h.whole()
		h.reopen()
	}
	got := h.admin()
	h.same("audit", got, []audit.Admin{{Time: h.clock.Now(), Server: "a", Principal: "uid:1000", Act: audit.ActApply, Subject: "cli",
		Changes: []string{"created billing", "created orders"}, Revision: 1, RequestID: "r1"}})
}

func applyIsAllOrNothing(h *house) {
	h.apply(registration.Batch{Entries: entries("a", "b")})
	changed, unwritable := entry("a"), entry("z")
	changed.Hint, unwritable.Hint = "new", "\xff"
	for _, row := range []struct {
		name  string
		batch registration.Batch
		kind  fault.Kind
		code  fault.Code
	}{
		{"an entry without a name", registration.Batch{Entries: []registration.Entry{changed, {ID: id("/x")}}}, fault.Invalid, fault.BadEntry},
		{"a name twice", registration.Batch{Entries: entries("c", "d", "c")}, fault.Invalid, fault.BadEntry},
		{"a name applied and deleted", registration.Batch{Entries: entries("c", "a"), Delete: []string{"b", "a"}}, fault.Invalid, fault.BadEntry},
		{"a name applied, its SPIFFE ID deleted", registration.Batch{Entries: entries("c", "a"), Delete: []string{"b", entry("a").ID.String()}},
			fault.Invalid, fault.BadEntry},
		{"the second deletion of what is not there", registration.Batch{Entries: entries("c"), Delete: []string{"a", "nobody"}},
			fault.NotFound, fault.EntryUnknown},
		{"a dry run of a deletion of what is not there", registration.Batch{Delete: []string{"nobody"}, DryRun: true}, fault.NotFound, fault.EntryUnknown},
		{"the last entry cannot be written", registration.Batch{Entries: []registration.Entry{changed, entry("c"), unwritable}, Delete: []string{"b"}},
			fault.Internal, ""},
	} {
		h.Run(row.name, func(t *testing.T) {
			h := &house{t, h.DB, h.config, h.clock}
			row.batch.Owner = "cli"
			h.refuses(row.kind, row.code, func() error {
				done, err := h.Apply(context.Background(), row.batch, operator)
				h.same("what a refused batch did", done, registration.Applied{})
				return err
			})
		})
	}
	h.apply(registration.Batch{Entries: entries("c")})
	h.same("names", h.names(), []string{"a", "b", "c"})
	h.whole() // what was taken back left no gap
}

func applyIsIdempotent(h *house) {
	batch := registration.Batch{Entries: []registration.Entry{wholeEntry("a"), entry("b")}}
	first := h.apply(batch)
	before := h.state()
	again := h.apply(batch)
	h.same("acts", acts(again), map[string]registration.Act{"a": registration.Unchanged, "b": registration.Unchanged})
	h.same("revision", again.Revision, first.Revision)
	after := h.state()
	if n := len(after.Audit) - len(before.Audit); n != 1 {
		h.Errorf("%d audit rows for one act", n)
	}
	after.Audit = before.Audit
	h.same("state", after, before)
	h.same("audit", h.admin()[1], audit.Admin{Time: h.clock.Now(), Server: "a", Principal: "uid:1000", Act: audit.ActApply,
		Subject: "cli", RequestID: "r1"})
}

func updateSaysBefore(h *house) {
	h.apply(registration.Batch{Entries: entries("a", "b")})
	changed := entry("a")
	changed.Hint, changed.ID = "new", id("/elsewhere")
	done := h.apply(registration.Batch{Entries: []registration.Entry{changed, entry("b")}})
	before := entry("a")
	before.Revision, changed.Revision = 1, 2
	h.same("changes", done.Changes[0], registration.EntryChange{Act: registration.Updated, Entry: changed, Before: before})
	h.same("acts", acts(done), map[string]registration.Act{"a": registration.Updated, "b": registration.Unchanged})
	h.same("entries", h.state().Entries[0], changed)
	for _, subject := range []string{"spiffe://example.org/a", "spiffe://example.org/elsewhere"} { // the ID it is found by moved too
		_, err := h.Apply(context.Background(), registration.Batch{Delete: []string{subject}, DryRun: true}, operator)
		if gone := subject == "spiffe://example.org/a"; gone != fault.Is(err, fault.NotFound) {
			h.Errorf("deleting %s: %v", subject, err)
		}
	}
}

func pruneTakesOwn(h *house) {
	h.apply(registration.Batch{Owner: "file", Entries: entries("a", "b", "shared")})
	h.apply(registration.Batch{Owner: "cli", Entries: entries("c", "d", "shared")}) // unchanged, and now the operator's
	done := h.apply(registration.Batch{Owner: "file", Entries: entries("b"), Prune: true})
	h.same("acts", acts(done), map[string]registration.Act{"a": registration.Deleted, "b": registration.Unchanged})
	h.same("names", h.names(), []string{"b", "c", "d", "shared"})
	h.apply(registration.Batch{Owner: "file", Prune: true})
	h.same("names after an empty file", h.names(), []string{"c", "d", "shared"})
	h.apply(registration.Batch{Owner: "cli", Entries: entries("shared"), Delete: []string{"c"}, Prune: true})
	h.same("names after the operator's prune", h.names(), []string{"shared"})
	h.whole()
}

func dryRunChangesNothing(h *house) {
	h.apply(registration.Batch{Entries: entries("a", "b", "c")})
	changed := entry("b")
	changed.Hint = "new"
	batch := registration.Batch{Owner: "cli", Entries: []registration.Entry{changed, entry("d")}, Delete: []string{"c"}, Prune: true, DryRun: true}
	before := h.state()
	would := h.apply(batch)
	h.same("after a dry run", h.state(), before)
	h.same("revision", would.Revision, before.At)
	batch.DryRun = false
	did := h.apply(batch)
	h.same("what it said", would.Changes, did.Changes)
	h.same("acts", acts(did), map[string]registration.Act{"a": registration.Deleted, "b": registration.Updated, "c": registration.Deleted,
		"d": registration.Created})
	h.whole()
}

func deleteByNameAndID(h *house) {
	twin := entry("twin")
	twin.ID = entry("a").ID
	named := entry("own")
	named.Name = named.ID.String() // as an entry without a name is called
	h.apply(registration.Batch{Entries: []registration.Entry{entry("a"), twin, entry("b"), entry("c"), named}})
	done := h.apply(registration.Batch{Delete: []string{"a", "a"}})
	h.same("by name", acts(done), map[string]registration.Act{"a": registration.Deleted})
	h.apply(registration.Batch{Entries: entries("a")})
	done = h.apply(registration.Batch{Delete: []string{"a", "spiffe://example.org/a", "spiffe://example.org/own"}})
	h.same("by name and ID", acts(done), map[string]registration.Act{"a": registration.Deleted, "twin": registration.Deleted,
		"spiffe://example.org/own": registration.Deleted})
	h.same("names", h.names(), []string{"b", "c"})
	h.same("audit", h.admin()[3].Changes, []string{"deleted a", "deleted spiffe://example.org/own", "deleted twin"})
	h.whole()
}

func deleteUnknown(h *house) {
	h.apply(registration.Batch{Entries: entries("a")})
	for _, subject := range []string{"b", "", "A", "a ", "spiffe://example.org/b", "spiffe://example.org/", "%", "a' OR 1=1 --"} {
		h.refuses(fault.NotFound, fault.EntryUnknown, func() error {
			_, err := h.Apply(context.Background(), registration.Batch{Delete: []string{subject}}, operator)
			return err
		})
	}
}

func entriesNamed(h *house) {
	h.apply(registration.Batch{Entries: entries("a", "b", "c")})
	got, err := h.EntriesNamed(context.Background(), []string{"c", "nobody", "a", "c"})
	h.must(err)
	want := entries("a", "c")
	want[0].Revision, want[1].Revision = 1, 1
	h.same("entries", got, want)
}

// A batch of two names is there whole or not at all, and the revision says which.
func entriesAreOneMoment(h *house) {
	ctx, cancel := context.WithCancel(context.Background())
	written := make(chan error, 1)
	go func() {
		for i := 0; ctx.Err() == nil; i++ {
			e := entries("a", "b")
			e[0].Hint, e[1].Hint = string(rune('a'+i%26)), string(rune('a'+i%26))
			if _, err := h.Apply(context.Background(), registration.Batch{Entries: e}, operator); err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	var last uint64
	for last < 100 {
		got, at, err := h.Entries(context.Background())
		h.must(err)
		if last = at.Number; last == 0 {
			continue
		}
		if len(got) != 2 || got[0].Hint != got[1].Hint || got[0].Revision != at.Number || got[1].Revision != at.Number {
			h.Fatalf("at revision %d: %s", at.Number, cmp.Diff(got[0], got[1], asValues))
		}
		chain, err := h.ChainAt(context.Background(), at.Number)
		h.must(err)
		h.same("chain", chain, at.Chain)
	}
	cancel()
	h.must(<-written)
}
