package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
)

func writerRules() []rule {
	return []rule{
		{"many writers lose nothing, and revisions leave no gap", writersLoseNothing},
		{"a refused write does not spoil those that share its transaction", refusalsSpoilNothing},
		{"readers see whole revisions while others write", readersSeeWholeRevisions},
		{"whoever left before the write leaves no trace", leftBeforehand},
		{"whoever leaves during the write gets an error and nothing else", leavingMeanwhile},
		{"closing ends what was asked for and refuses what comes after", closingEndsWrites},
	}
}

func writersLoseNothing(h *house) {
	const writers, each = 32, 10
	var mu sync.Mutex
	var got []uint64
	together(writers, func(w int) {
		for i := range each {
			done, err := h.Apply(context.Background(), registration.Batch{Entries: entries(fmt.Sprintf("e-%02d-%d", w, i))}, operator)
			if err != nil {
				h.Errorf("writer %d: %v", w, err)
				return
			}
			chain, err := h.ChainAt(context.Background(), done.Revision.Number)
			if err != nil || !slices.Equal(chain, done.Revision.Chain) {
				h.Errorf("revision %d is not readable when its write returns: %v", done.Revision.Number, err)
			}
			mu.Lock()
			got = append(got, done.Revision.Number)
			mu.Unlock()
		}
	})
	slices.Sort(got)
	for i, number := range got {
		if number != uint64(i+1) {
			h.Fatalf("revision %d is number %d of those that were given", number, i+1)
		}
	}
	s := h.state()
	if len(s.Entries) != writers*each || s.At.Number != writers*each {
		h.Fatalf("%d entries at revision %d, want %d", len(s.Entries), s.At.Number, writers*each)
	}
	h.whole()
	h.reopen()
	h.same("entries after a restart", h.state().Entries, s.Entries)
}

// Every second write is refused in the middle of its work: after it deleted an entry that it may not delete alone.
func refusalsSpoilNothing(h *house) {
	h.apply(registration.Batch{Entries: entries("stays")})
	together(40, func(i int) {
		if i%2 == 0 {
			_, err := h.Apply(context.Background(), registration.Batch{Delete: []string{"stays", "nobody"}}, operator)
			if !fault.Is(err, fault.NotFound) {
				h.Errorf("writer %d: %v", i, err)
			}
			return
		}
		done, err := h.Apply(context.Background(), registration.Batch{Entries: entries(fmt.Sprintf("e%02d", i))}, operator)
		if err != nil || len(done.Changes) != 1 || done.Changes[0].Act != registration.Created {
			h.Errorf("writer %d: %v %v", i, done, err)
		}
	})
	s := h.state()
	if len(s.Entries) != 21 || s.At.Number != 21 || s.Entries[20].Name != "stays" || s.Entries[20].Revision != 1 {
		h.Errorf("%d entries at revision %d, the last %+v", len(s.Entries), s.At.Number, s.Entries[len(s.Entries)-1])
	}
	if n := len(s.Audit); n != 21 {
		h.Errorf("%d audit rows for 21 writes", n)
	}
	h.whole()
}

// A follower that reads as fast as it can never meets a number whose changes are not there.
func readersSeeWholeRevisions(h *house) {
	var writing atomic.Bool
	writing.Store(true)
	var reading sync.WaitGroup
	for range 4 {
		reading.Go(func() {
			var held uint64
			for writing.Load() {
				at, err := h.Newest(context.Background())
				if err != nil {
					h.Error(err)
					return
				}
				changes, err := h.Changes(context.Background(), held, all)
				if err != nil {
					h.Error(err)
					return
				}
				for _, c := range changes {
					if c.Revision.Number > held+1 {
						h.Errorf("revision %d follows %d", c.Revision.Number, held)
						return
					}
					held = c.Revision.Number
				}
				if held < at.Number {
					h.Errorf("revision is %d, changes end at %d", at.Number, held)
					return
				}
			}
		})
	}
	together(8, func(w int) {
		for i := range 20 {
			if _, err := h.Apply(context.Background(), registration.Batch{Entries: entries(fmt.Sprintf("e-%d-%d", w, i))}, operator); err != nil {
				h.Error(err)
			}
		}
	})
	writing.Store(false)
	reading.Wait()
}

func leftBeforehand(h *house) {
	h.apply(registration.Batch{Entries: entries("a")})
	h.admitted(node("n"))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	before := h.state()
	for range 20 { // a call that is cancelled may be queued or not
		for what, err := range h.everyWrite(ctx) {
			if !errors.Is(err, context.Canceled) {
				h.Fatalf("%s: %v", what, err)
			}
		}
	}
	h.apply(registration.Batch{Delete: []string{"a"}, DryRun: true}) // what was queued is over
	h.same("state", h.state(), before)
}

// everyWrite asks for one of each kind.
func (h *house) everyWrite(ctx context.Context) map[string]error {
	errs := map[string]error{}
	_, errs["Apply"] = h.Apply(ctx, registration.Batch{Entries: entries("b")}, operator)
	_, errs["Admit"] = h.Admit(ctx, attest.Admission{Node: node("m")}, audit.Attestation{})
	next := node("n")
	next.Generation = 2
	_, errs["Renew"] = h.Renew(ctx, next, audit.Attestation{})
	_, errs["Ban"] = h.Ban(ctx, attest.Ban{Subject: "x509pop:serial:7"}, operator)
	errs["Evict"] = h.Evict(ctx, node("n").ID.String(), operator)
	errs["CreateToken"] = h.CreateToken(ctx, token("t"), operator)
	errs["RecordAuthority"] = h.RecordAuthority(ctx, authority("k"))
	errs["RecordIssuance"] = h.RecordIssuance(ctx, h.intent("01"))
	return errs
}

// What a caller gets with the error is not what the writer works on: the race detector watches.
func leavingMeanwhile(h *house) {
	n := h.admitted(node("n"))
	h.apply(registration.Batch{Entries: entries("a")})
	for left, wait := 0, time.Duration(0); left < 100; wait = (wait + 7*time.Microsecond) % (2 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), wait)
		kept, err := h.Renew(ctx, n, audit.Attestation{}) // the same generation with the same SVID key
		if err != nil {
			left++
			h.same("node", kept, attest.Node{})
		}
		done, applyErr := h.Apply(ctx, registration.Batch{Entries: entries("a")}, operator)
		if applyErr != nil {
			left++
			h.same("what was done", done, registration.Applied{})
		}
		cancel()
		for _, err := range []error{err, applyErr} {
			if err != nil && !errors.Is(err, context.DeadlineExceeded) {
				h.Fatal(err)
			}
		}
	}
	h.same("node", h.node("n"), n)
}

func closingEndsWrites(h *house) {
	var mu sync.Mutex
	kept := map[string]bool{}
	refused := 0
	var writing sync.WaitGroup
	some := make(chan struct{}, 1000)
	for w := range 16 {
		writing.Go(func() {
			for i := 0; ; i++ {
				name := fmt.Sprintf("e-%02d-%03d", w, i)
				_, err := h.Apply(context.Background(), registration.Batch{Entries: entries(name)}, operator)
				mu.Lock()
				if err != nil {
					refused++
					if !fault.Is(err, fault.Unavailable) {
						h.Errorf("closed: %v", err)
					}
					mu.Unlock()
					return
				}
				kept[name] = true
				mu.Unlock()
				select {
				case some <- struct{}{}:
				default:
				}
			}
		})
	}
	for range 50 {
		<-some
	}
	h.must(h.Close())
	writing.Wait()
	h.must(h.Close()) // once more is no error
	_, err := h.Apply(context.Background(), registration.Batch{}, operator)
	h.want(err, fault.Unavailable, fault.StoreBusy)
	h.open()
	for name := range kept {
		if got, err := h.EntriesNamed(context.Background(), []string{name}); err != nil || len(got) != 1 {
			h.Errorf("%s was acknowledged and is gone: %v", name, err)
		}
	}
	if got := h.names(); len(got) < len(kept) || refused != 16 {
		h.Errorf("%d entries, %d acknowledged, %d writers refused", len(got), len(kept), refused)
	}
}
