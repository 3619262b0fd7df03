package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/ca"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
)

func issuanceRules() []rule {
	return []rule{
		{"an intent is one audit row and no revision", intentIsRecorded},
		{"what moved since it was read is stale, and takes no serial", movedIsStale},
		{"what has no entry, no node or no known generation is judged by the rest", partsThatAreNotThere},
		{"a serial is taken once", serialIsTakenOnce},
		{"of fifty that race for one serial, one gets it", serialRace},
		{"of many intents each stands alone", intentsStandAlone},
		{"what is banned meanwhile gets nothing, whichever comes first", banAgainstIssuance},
	}
}

// issuing has an entry, a node and an authority, as intent names them.
func (h *house) issuing() {
	h.Helper()
	h.apply(registration.Batch{Entries: entries("orders", "other")})
	h.admitted(node("n"))
	h.must(h.RecordAuthority(context.Background(), authority("k")))
}

// intent is what was read of the house that issuing set up.
func (h *house) intent(serial string) audit.Issuance {
	return audit.Issuance{
		Serial: serial, SPIFFEID: entry("orders").ID.String(), Entry: "orders", EntryRevision: 1, Node: node("n").ID.String(),
		NodeGeneration: 1, AuthorityID: "k", Profile: "workload", NotBefore: h.clock.Now(), NotAfter: h.clock.Now().Add(time.Hour),
		Draft: audit.Digest{1, 2, 3}, RequestID: "r1",
	}
}

func (h *house) issuances() []audit.Issuance {
	h.Helper()
	return records[audit.Issuance](h, audit.KindIssuance)
}

func intentIsRecorded(h *house) {
	h.issuing()
	before := h.state()
	h.must(h.RecordIssuance(context.Background(), h.intent("0a")))
	want := h.intent("0a")
	want.Time, want.Server = h.clock.Now(), "a"
	h.same("audit", h.issuances(), []audit.Issuance{want})
	after := h.state()
	if n := len(after.Audit) - len(before.Audit); n != 1 {
		h.Errorf("%d audit rows", n)
	}
	after.Audit = before.Audit
	h.same("state", after, before)
}

func movedIsStale(h *house) {
	ctx := context.Background()
	h.issuing()
	apply := func(change func(*registration.Entry)) func() error {
		return func() error {
			e := entry("orders")
			change(&e)
			_, err := h.Apply(ctx, registration.Batch{Owner: "cli", Entries: []registration.Entry{e}}, operator)
			return err
		}
	}
	put := func(state string) func() error {
		return func() error {
			a := authority("k")
			a.State = state
			return h.RecordAuthority(ctx, a)
		}
	}
	again := func() error { _, err := h.admit(node("n")); return err }
	// Each row goes on from where the last one's mend left the house.
	for i, row := range []struct {
		name       string
		move, mend func() error
	}{
		{"the entry changed", apply(func(e *registration.Entry) { e.Hint = "new" }), nil},
		{"the entry is another SPIFFE ID's now", apply(func(e *registration.Entry) { e.ID = id("/elsewhere") }), apply(func(*registration.Entry) {})},
		{"the entry is gone", func() error {
			_, err := h.Apply(ctx, registration.Batch{Delete: []string{"orders"}}, operator)
			return err
		}, apply(func(*registration.Entry) {})},
		{"the entry went and came back", func() error {
			_, err := h.Apply(ctx, registration.Batch{Delete: []string{"orders"}}, operator)
			return errors.Join(err, apply(func(*registration.Entry) {})())
		}, nil},
		{"the node renewed", func() error {
			n := h.node("n")
			n.Generation++
			_, err := h.renew(n)
			return err
		}, nil},
		{"the node attested anew", again, nil},
		{"the node is gone", func() error { return h.Evict(ctx, node("n").ID.String(), operator) }, again},
		{"the node is locked", func() error {
			n := h.node("n")
			n.Generation += 2
			if _, err := h.renew(n); !fault.Is(err, fault.Denied) {
				return fmt.Errorf("not locked: %w", err)
			}
			return nil
		}, func() error { return errors.Join(h.Evict(ctx, node("n").ID.String(), operator), again()) }},
		{"the authority is prepared only", put(ca.StatePrepared), put(ca.StateActive)},
		{"the authority is old", put(ca.StateOld), put(ca.StateActive)},
		{"the authority is tainted", put(ca.StateTainted), put(ca.StateActive)},
		{"the authority is revoked", put(ca.StateRevoked), put(ca.StateActive)},
		{"the node is banned", func() error { h.ban(node("n").ID.String()); return nil }, nil},
	} {
		h.Run(row.name, func(t *testing.T) {
			h := &house{t, h.DB, h.config, h.clock}
			asRead := func(serial string) audit.Issuance {
				intent := h.intent(serial)
				read, err := h.EntriesNamed(ctx, []string{"orders"})
				h.must(err)
				intent.EntryRevision, intent.NodeGeneration = read[0].Revision, h.node("n").Generation
				return intent
			}
			intent := asRead(fmt.Sprintf("%02x", i))
			h.must(row.move())
			h.refuses(fault.Stale, "", func() error { return h.RecordIssuance(ctx, intent) })
			if row.mend != nil {
				h.must(row.mend())
			}
			if row.name != "the node is banned" {
				h.must(h.RecordIssuance(ctx, asRead(intent.Serial))) // read again; the serial is free
			}
		})
	}
}

func partsThatAreNotThere(h *house) {
	ctx := context.Background()
	h.issuing()
	server := h.intent("01")
	server.Entry, server.EntryRevision, server.Node, server.NodeGeneration = "", 0, "", 0
	h.must(h.RecordIssuance(ctx, server))
	agent := h.intent("02")
	agent.Entry, agent.EntryRevision, agent.NodeGeneration = "", 0, 0
	h.must(h.RecordIssuance(ctx, agent))
	for what, change := range map[string]func(*audit.Issuance){
		"no authority":          func(i *audit.Issuance) { i.AuthorityID = "" },
		"an unknown authority":  func(i *audit.Issuance) { i.AuthorityID = "l" },
		"an unknown node":       func(i *audit.Issuance) { i.Node = node("m").ID.String() },
		"an unknown entry":      func(i *audit.Issuance) { i.Entry = "nobody" },
		"another entry's ID":    func(i *audit.Issuance) { i.SPIFFEID = entry("other").ID.String() },
		"no entry revision":     func(i *audit.Issuance) { i.EntryRevision = 0 },
		"a revision to come":    func(i *audit.Issuance) { i.EntryRevision = 2 },
		"a generation to come":  func(i *audit.Issuance) { i.NodeGeneration = 2 },
		"an entry, yet no name": func(i *audit.Issuance) { i.Entry = " " },
	} {
		h.Run(what, func(t *testing.T) {
			h := &house{t, h.DB, h.config, h.clock}
			intent := h.intent("03")
			change(&intent)
			h.refuses(fault.Stale, "", func() error { return h.RecordIssuance(ctx, intent) })
		})
	}
	h.refuses(fault.Invalid, "", func() error { return h.RecordIssuance(ctx, h.intent("")) })
}

func serialIsTakenOnce(h *house) {
	ctx := context.Background()
	h.issuing()
	h.must(h.RecordIssuance(ctx, h.intent("0a")))
	h.reopen()
	h.refuses(fault.Conflict, "", func() error { return h.RecordIssuance(ctx, h.intent("0a")) })
	other := h.intent("0a")
	other.Entry, other.SPIFFEID = "other", entry("other").ID.String()
	h.refuses(fault.Conflict, "", func() error { return h.RecordIssuance(ctx, other) })
	h.must(h.RecordIssuance(ctx, h.intent("0b")))
}

func serialRace(h *house) {
	h.issuing()
	errs := make([]error, 50)
	together(len(errs), func(i int) { errs[i] = h.RecordIssuance(context.Background(), h.intent("0a")) })
	if won := count(errs, func(err error) bool { return err == nil }); won != 1 {
		h.Errorf("%d got the serial", won)
	}
	if lost := count(errs, func(err error) bool { return fault.Is(err, fault.Conflict) }); lost != len(errs)-1 {
		h.Errorf("%d conflicts: %v", lost, errs)
	}
	if n := len(h.issuances()); n != 1 {
		h.Errorf("%d intents are recorded", n)
	}
}

func intentsStandAlone(h *house) {
	h.issuing()
	var intents []audit.Issuance
	for i := range 3000 { // more than one statement takes
		intents = append(intents, h.intent(fmt.Sprintf("%04x", i)))
	}
	intents[10].EntryRevision, intents[20].Serial, intents[30].Serial, intents[2999].Serial = 9, "", intents[29].Serial, "0000"
	errs := h.RecordIssuances(context.Background(), intents)
	for i, err := range errs {
		want := map[int]fault.Kind{10: fault.Stale, 20: fault.Invalid, 30: fault.Conflict, 2999: fault.Conflict}
		if kind, refused := want[i]; refused != (err != nil) || refused && !fault.Is(err, kind) {
			h.Errorf("intent %d: %v", i, err)
		}
	}
	var got []string
	for _, i := range h.issuances() {
		got = append(got, i.Serial)
	}
	var want []string
	for i, intent := range intents {
		if i != 10 && i != 20 && i != 30 && i != 2999 {
			want = append(want, intent.Serial)
		}
	}
	h.same("serials, in order", got, want)
	if errs := h.RecordIssuances(context.Background(), nil); len(errs) != 0 {
		h.Errorf("no intents have errors: %v", errs)
	}
}

// Whoever issues while an operator bans is before the ban in the audit rows, or refused.
func banAgainstIssuance(h *house) {
	h.issuing()
	agent := node("n").ID.String()
	together(20, func(i int) {
		if i == 10 {
			h.ban(agent)
			return
		}
		if err := h.RecordIssuance(context.Background(), h.intent(fmt.Sprintf("%02x", i))); err != nil && !fault.Is(err, fault.Stale) {
			h.Error(err)
		}
	})
	rows := h.state().Audit
	ban := slices.IndexFunc(rows, func(row audit.Row) bool { return strings.Contains(string(row.Record), audit.ActBan) })
	if ban < 0 {
		h.Fatal("the ban is not recorded")
	}
	for _, row := range rows[ban:] {
		if row.Kind == audit.KindIssuance {
			h.Errorf("row %d: issued after the ban", row.ID)
		}
	}
	h.refuses(fault.Stale, "", func() error { return h.RecordIssuance(context.Background(), h.intent("ff")) })
}
