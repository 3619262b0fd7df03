package store_test

import (
	"context"
	"time"

	"github.com/writ-dev/writ/ca"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
)

func authorityRules() []rule {
	return []rule{
		{"an authority reads back, in the order of their start", authorityReadsBack},
		{"an authority that did not move makes no revision", authorityUnmoved},
		{"whatever moved of an authority is a revision of the bundle", authorityMoved},
		{"an authority without an id is refused", authorityWithoutID},
	}
}

func authority(name string) ca.AuthorityRecord {
	return ca.AuthorityRecord{
		ID: name, Use: ca.UseX509, Tier: ca.TierIssuing, State: ca.StateActive, Certificate: []byte("certificate of " + name), KeyName: name,
		NotBefore: time.Date(2027, 1, 2, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2027, 1, 3, 0, 0, 0, 0, time.UTC),
	}
}

func (h *house) authorities() []ca.AuthorityRecord {
	h.Helper()
	got, err := h.Authorities(context.Background())
	h.must(err)
	return got
}

func authorityReadsBack(h *house) {
	first, second, third := authority("z"), authority("a"), authority("b")
	first.NotBefore = first.NotBefore.Add(-time.Hour)
	third.Server, third.Tier, third.KeyName, third.Certificate = "b", ca.TierRoot, "", nil
	for _, a := range []ca.AuthorityRecord{third, first, second} {
		h.must(h.RecordAuthority(context.Background(), a))
	}
	first.Server, second.Server = "a", "a" // this server's, where the record names none
	h.reopen()
	h.same("authorities", h.authorities(), []ca.AuthorityRecord{first, second, third})
	h.whole()
}

func authorityUnmoved(h *house) {
	h.must(h.RecordAuthority(context.Background(), authority("k")))
	before := h.state()
	same := authority("k")
	same.NotBefore = same.NotBefore.In(time.FixedZone("", 3600))
	h.must(h.RecordAuthority(context.Background(), same))
	h.same("state", h.state(), before)
}

func authorityMoved(h *house) {
	a := authority("k")
	a.Server = "a"
	h.must(h.RecordAuthority(context.Background(), a))
	for i, move := range []func(*ca.AuthorityRecord){
		func(a *ca.AuthorityRecord) { a.State = ca.StateOld },
		func(a *ca.AuthorityRecord) { a.Certificate = []byte("another") },
		func(a *ca.AuthorityRecord) { a.Server = "b" },
		func(a *ca.AuthorityRecord) { a.Use = ca.UseJWT },
		func(a *ca.AuthorityRecord) { a.Tier = ca.TierRoot },
		func(a *ca.AuthorityRecord) { a.KeyName = "another" },
		func(a *ca.AuthorityRecord) { a.NotBefore = a.NotBefore.Add(time.Microsecond) },
		func(a *ca.AuthorityRecord) { a.NotAfter = a.NotAfter.Add(time.Second) },
	} {
		move(&a)
		h.must(h.RecordAuthority(context.Background(), a))
		h.same("authorities", h.authorities(), []ca.AuthorityRecord{a})
		changes := h.state().Changes
		last := changes[len(changes)-1]
		if last.Revision.Number != uint64(i+2) || last.Kind != registration.KindBundle || last.ID != "k" {
			h.Errorf("move %d: last change is %+v", i, last)
		}
	}
	h.whole()
}

func authorityWithoutID(h *house) {
	h.refuses(fault.Invalid, "", func() error { return h.RecordAuthority(context.Background(), authority("")) })
}
