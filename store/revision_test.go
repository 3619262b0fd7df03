package store_test

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
	"github.com/writ-dev/writ/store"
)

func revisionRules() []rule {
	return []rule{
		{"history begins at revision 0", historyBegins},
		{"each chain hashes the one before", chainHashes},
		{"a revision is never cut in two", revisionsStayWhole},
		{"a revision that is not in this history is not found", chainOfAnotherHistory},
		{"the first revision after each start says so", startsAreInHistory},
		{"whoever waits wakes when the revision moves", movedWakes},
	}
}

func historyBegins(h *house) {
	at, err := h.Newest(context.Background())
	h.must(err)
	h.same("newest", at, registration.Revision{})
	chain, err := h.ChainAt(context.Background(), 0)
	h.must(err)
	h.same("chain", chain, []byte(nil))
	changes, err := h.Changes(context.Background(), 0, all)
	h.must(err)
	h.same("changes", changes, []registration.Change(nil))
}

func chainHashes(h *house) {
	h.apply(registration.Batch{Entries: entries("a", "b")})
	h.apply(registration.Batch{Entries: entries("c"), Delete: []string{"a"}})
	h.admitted(node("n"))
	h.must(h.RecordAuthority(context.Background(), authority("k")))
	h.whole()
	if n := len(h.state().Changes); n != 7 {
		h.Errorf("%d changes, want 7", n)
	}
	for number := range h.state().At.Number {
		chain, err := h.ChainAt(context.Background(), number+1)
		h.must(err)
		last := slices.IndexFunc(h.state().Changes, func(c registration.Change) bool { return c.Revision.Number == number+2 })
		if last < 0 {
			last = len(h.state().Changes)
		}
		h.same(fmt.Sprintf("chain at %d", number+1), chain, h.state().Changes[last-1].Revision.Chain)
	}
}

func revisionsStayWhole(h *house) {
	for size := range 5 {
		var batch registration.Batch
		for i := range size + 1 {
			batch.Entries = append(batch.Entries, entry(fmt.Sprintf("e%d-%d", size, i)))
		}
		h.apply(batch)
	}
	want := h.state().Changes
	for limit := range 20 {
		var got []registration.Change
		for after := uint64(0); ; {
			page, err := h.Changes(context.Background(), after, limit)
			h.must(err)
			if len(page) == 0 {
				break
			}
			first, last := page[0].Revision.Number, page[len(page)-1].Revision.Number
			if len(page) > max(limit, 1) && first != last {
				h.Errorf("limit %d after %d: %d changes of revisions %d to %d", limit, after, len(page), first, last)
			}
			if last <= after {
				h.Fatalf("limit %d: revision %d after %d", limit, last, after)
			}
			got, after = append(got, page...), last
		}
		h.same(fmt.Sprintf("all pages of %d", limit), got, want)
	}
	for _, after := range []uint64{5, 6, math.MaxInt64, math.MaxUint64} {
		page, err := h.Changes(context.Background(), after, math.MaxInt)
		h.must(err)
		h.same(fmt.Sprintf("changes after %d", after), page, []registration.Change(nil))
	}
}

func chainOfAnotherHistory(h *house) {
	h.apply(registration.Batch{Entries: entries("a")})
	for _, number := range []uint64{2, 3, math.MaxInt64, math.MaxUint64} {
		_, err := h.ChainAt(context.Background(), number)
		h.want(err, fault.NotFound, "")
	}
}

// A copy of a store goes its own way with its first write, even if it is the same write.
func startsAreInHistory(h *house) {
	h.apply(registration.Batch{Entries: entries("a")})
	h.apply(registration.Batch{Entries: entries("b")})
	h.reopen()
	h.reopen() // nothing was written: no revision
	h.apply(registration.Batch{Entries: entries("c")})
	h.apply(registration.Batch{Entries: entries("d")})
	h.whole()
	starts := map[string]uint64{}
	for _, c := range h.state().Changes {
		if c.Kind == store.KindStore {
			starts[c.ID] = c.Revision.Number
		}
	}
	var at []uint64
	for _, number := range starts {
		at = append(at, number)
	}
	h.same("starts", slices.Sorted(slices.Values(at)), []uint64{1, 3})
}

func movedWakes(h *house) {
	var waiting []<-chan struct{}
	for range 3 {
		waiting = append(waiting, h.Moved())
	}
	h.must(h.RecordAuthority(context.Background(), authority("k")))
	for _, c := range waiting {
		h.closed("the revision moved", c)
	}
	h.issuing()
	h.apply(registration.Batch{}) // by now what that raised is over
	still := h.Moved()
	_, err := h.Apply(context.Background(), registration.Batch{Delete: []string{"nobody"}}, operator)
	h.want(err, fault.NotFound, fault.EntryUnknown)
	intent := h.intent("01")
	intent.EntryRevision = h.state().Entries[0].Revision
	h.must(h.RecordIssuance(context.Background(), intent))
	h.apply(registration.Batch{})
	select { // by the batch's end what the others raised would be seen
	case <-still:
		h.Error("woken by a refusal, an issuance or an empty batch")
	default:
	}
	h.apply(registration.Batch{Entries: entries("a")})
	h.closed("an entry came", still)
}
