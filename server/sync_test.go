package server_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/api/registrationv1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
)

// follower is a node's open Sync stream and what it holds by it, as an agent would.
type follower struct {
	d        *domain
	h        *host
	stream   nodev1.Node_SyncClient
	close    context.CancelFunc
	revision uint64
	chain    []byte
	entries  map[string]*registrationv1.Entry
	facts    map[string]*nodev1.Identity
	bundle   *nodev1.Bundle
	silent   bool // it does not acknowledge
}

// follow opens a Sync stream that holds nothing.
func (h *host) follow() *follower {
	h.d.t.Helper()
	f := &follower{d: h.d, h: h, entries: map[string]*registrationv1.Entry{}, facts: map[string]*nodev1.Identity{}}
	f.open()
	return f
}

// open opens the stream with what is held.
func (f *follower) open() {
	f.d.t.Helper()
	ctx, cancel := context.WithTimeout(f.d.t.Context(), 2*patience) // what is waited for in vain fails the test
	f.close = cancel
	f.d.t.Cleanup(cancel)
	f.stream = must(f.h.connect().Sync(ctx))(f.d.t)
	open := &nodev1.SyncOpen{Version: 1, Revision: f.revision, Chain: f.chain}
	if err := f.stream.Send(&nodev1.SyncRequest{Step: &nodev1.SyncRequest_Open{Open: open}}); err != nil {
		f.d.t.Fatal(err)
	}
}

// next takes the messages of one revision, applies and acknowledges them.
func (f *follower) next() []*nodev1.SyncResponse {
	f.d.t.Helper()
	var messages []*nodev1.SyncResponse
	for {
		m := must(f.stream.Recv())(f.d.t)
		if messages = append(messages, m); !m.More {
			break
		}
	}
	f.take(messages)
	if !f.silent {
		f.ack()
	}
	return messages
}

func (f *follower) ack() {
	f.d.t.Helper()
	if err := f.stream.Send(&nodev1.SyncRequest{Step: &nodev1.SyncRequest_Ack{Ack: &nodev1.SyncAck{Revision: f.revision}}}); err != nil {
		f.d.t.Fatal(err)
	}
}

func (f *follower) take(messages []*nodev1.SyncResponse) {
	f.d.t.Helper()
	if messages[0].Snapshot {
		clear(f.entries)
		clear(f.facts)
	}
	for _, m := range messages {
		for _, c := range m.Changes {
			switch kind := c.Kind.(type) {
			case *nodev1.Change_Entry:
				f.entries[kind.Entry.Name] = kind.Entry
			case *nodev1.Change_EntryRemoved:
				delete(f.entries, kind.EntryRemoved)
			case *nodev1.Change_Identity:
				f.facts[kind.Identity.SpiffeId] = kind.Identity
			case *nodev1.Change_IdentityRemoved:
				delete(f.facts, kind.IdentityRemoved)
			case *nodev1.Change_Bundle:
				f.bundle = kind.Bundle
			}
		}
	}
	for id := range f.facts {
		if !slices.ContainsFunc(slices.Collect(maps.Values(f.entries)), func(e *registrationv1.Entry) bool { return e.SpiffeId == id }) {
			delete(f.facts, id) // as an agent does: of an ID that it does not hold it knows nothing
		}
	}
	last := messages[len(messages)-1]
	if last.Revision < f.revision && !messages[0].Snapshot {
		f.d.t.Errorf("revision %d came after %d", last.Revision, f.revision)
	}
	f.revision, f.chain = last.Revision, last.Chain
	if digest := registration.Digest(f.held()); last.Digest != nil && !bytes.Equal(last.Digest, digest) {
		f.d.t.Errorf("at revision %d the digest is %x, of what is held %x", last.Revision, last.Digest, digest)
	}
}

func (f *follower) held() (entries []registration.Entry) {
	for _, e := range f.entries {
		entries = append(entries, must(registration.FromWire(e))(f.d.t))
	}
	return entries
}

// reach takes messages until it is at that revision.
func (f *follower) reach(revision uint64) (taken int) {
	f.d.t.Helper()
	for f.revision < revision {
		taken += len(f.next())
	}
	return taken
}

func (f *follower) names() []string { return slices.Sorted(maps.Keys(f.entries)) }

// wantHeld checks what is held against a fresh stream of the same node, which begins with everything.
func (f *follower) wantHeld() {
	f.d.t.Helper()
	fresh := f.h.follow()
	fresh.silent = true
	fresh.next()
	fresh.close()
	if diff := cmp.Diff(fresh.entries, f.entries, protocmp.Transform()); diff != "" {
		f.d.t.Errorf("entries (-fresh +held):\n%s", diff)
	}
	if diff := cmp.Diff(fresh.facts, f.facts, protocmp.Transform()); diff != "" {
		f.d.t.Errorf("facts (-fresh +held):\n%s", diff)
	}
	if diff := cmp.Diff(fresh.bundle, f.bundle, protocmp.Transform(), protocmp.IgnoreFields(&nodev1.Bundle{}, "sequence")); diff != "" {
		f.d.t.Errorf("bundle (-fresh +held):\n%s", diff)
	}
}

func TestSyncBeginsWithASnapshotOfWhatConcernsTheNode(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	d.apply(entry("everywhere"), entry("orders", "join_token:name:web-1"), entry("billing", "join_token:name:web-2"),
		entry("both", "join_token:name:web-1", "x509pop:subject:web-1"))
	d.caughtUp()
	f := d.join("web-1").follow()
	messages := f.next()
	if !messages[0].Snapshot || messages[len(messages)-1].Digest == nil {
		t.Error("the stream does not begin with a snapshot and its digest")
	}
	if diff := cmp.Diff([]string{"everywhere", "orders"}, f.names()); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if got := slices.Sorted(maps.Keys(f.facts)); !slices.Equal(got, []string{"spiffe://example.org/everywhere", "spiffe://example.org/orders"}) {
		t.Errorf("facts are about %v", got)
	}
	if f.bundle == nil || len(f.bundle.X509Authorities) != 1 || len(f.bundle.IssuingCertificates) != 1 {
		t.Errorf("the bundle is %v", f.bundle)
	}
}

func TestSyncTellsWhatChanges(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	d.apply(entry("orders"), entry("stays"))
	d.caughtUp()
	h := d.join("web-1")
	f := h.follow()
	f.next()
	for _, step := range []struct {
		name string
		do   func() uint64
		want []string // changes of entries
	}{
		{"an entry is created", func() uint64 { return d.apply(entry("billing")) }, []string{"billing"}},
		{"an entry is updated", func() uint64 { e := entry("orders"); e.Dns = []string{"orders.internal"}; return d.apply(e) }, []string{"orders"}},
		{"an entry gets another SPIFFE ID", func() uint64 { e := entry("orders"); e.SpiffeId += "/v2"; return d.apply(e) }, []string{"orders"}},
		{"a second entry for an ID comes", func() uint64 {
			e := entry("orders-too")
			e.SpiffeId = "spiffe://example.org/billing"
			return d.apply(e)
		}, []string{"orders-too"}},
		{"an entry moves to another node", func() uint64 { return d.apply(entry("billing", "join_token:name:web-2")) }, []string{"-billing"}},
		{"it comes back", func() uint64 { return d.apply(entry("billing", "join_token:name:web-1")) }, []string{"billing"}},
		{"entries are deleted", func() uint64 { return d.remove("billing", "orders-too") }, []string{"-billing", "-orders-too"}},
	} {
		t.Run(step.name, func(t *testing.T) {
			revision := step.do()
			var got []string
			for f.revision < revision {
				for _, m := range f.next() {
					if m.Snapshot {
						t.Error("a snapshot came")
					}
					for _, c := range m.Changes {
						if e := c.GetEntry(); e != nil {
							got = append(got, e.Name)
						} else if name := c.GetEntryRemoved(); name != "" {
							got = append(got, "-"+name)
						}
					}
				}
			}
			if diff := cmp.Diff(step.want, got); diff != "" {
				t.Errorf("told (-want +got):\n%s", diff)
			}
			f.wantHeld()
		})
	}
}

// What does not concern a node must not reach it.
func TestSyncIsSilentAboutOtherNodes(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	f := d.join("web-1").follow()
	f.next()
	for i := range 20 {
		d.apply(entry(fmt.Sprintf("other-%d", i), "join_token:name:web-2"))
	}
	d.apply(entry("mine", "join_token:name:web-1"))
	for _, m := range f.next() {
		for _, c := range m.Changes {
			if name := c.GetEntry().GetName() + c.GetIdentity().GetEntry(); name != "mine" {
				t.Errorf("told of %v", c)
			}
		}
	}
}

// The facts about an ID depend on other nodes and on entries for them.
func TestSyncTellsFactsThatOthersChange(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	d.apply(entry("orders"))
	d.caughtUp()
	h := d.join("web-1")
	f := h.follow()
	f.next()
	const id = "spiffe://example.org/orders"
	if got := f.facts[id]; got.Node != h.id || got.Assurance != 1 || got.Entry != "orders" {
		t.Fatalf("facts are %v", got)
	}
	d.admitted(d.machine("web-2"))
	for f.facts[id].Node != "" {
		f.next()
	}
	second := entry("second", "join_token:name:web-9")
	second.SpiffeId = id
	d.apply(second)
	for f.facts[id].Entry != "" {
		f.next()
	}
	f.wantHeld()
}

func TestSyncResumes(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	d.apply(entry("orders"), entry("stays"), entry("goes"))
	d.caughtUp()
	h := d.join("web-1")
	f := h.follow()
	f.next()

	f.close()
	d.apply(entry("billing"))
	d.remove("goes")
	d.admitted(d.machine("web-2")) // the facts about every ID change: two nodes hold it now
	newest := must(d.db.Newest(t.Context()))(t)
	f.open()
	for f.revision < newest.Number {
		for _, m := range f.next() {
			if m.Snapshot {
				t.Error("a snapshot came")
			}
			for _, c := range m.Changes {
				if e := c.GetEntry(); e != nil && e.Name != "billing" {
					t.Errorf("entry %s, which did not change, came again", e.Name)
				}
			}
		}
	}
	f.wantHeld()

	f.close()
	f.open() // nothing changed meanwhile
	f.reach(d.apply(entry("later")))
	if diff := cmp.Diff([]string{"billing", "later", "orders", "stays"}, f.names()); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	f.wantHeld()
}

func TestSyncOfAnUnknownHistoryBeginsAnew(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	d.apply(entry("orders"))
	d.caughtUp()
	h := d.join("web-1")
	f := h.follow()
	f.next()
	f.close()
	at := f.revision
	for _, row := range []struct {
		name     string
		revision uint64
		chain    []byte
	}{
		{"the revision is known and the chain is another's", at, bytes.Repeat([]byte{1}, 32)},
		{"the chain is missing", at, nil},
		{"the revision is not in the store", at + 1000, f.chain},
		{"the revision is as large as can be", 1<<64 - 1, f.chain},
	} {
		t.Run(row.name, func(t *testing.T) {
			f.revision, f.chain = row.revision, row.chain
			f.entries["ghost"] = entry("ghost")
			f.open()
			defer f.close()
			if !f.next()[0].Snapshot {
				t.Error("no snapshot came")
			}
			if diff := cmp.Diff([]string{"orders"}, f.names()); diff != "" {
				t.Errorf("entries (-want +got):\n%s", diff)
			}
		})
	}
}

// An agent that reads slowly gets the last state of each thing, not its history.
func TestSyncCoalescesForSlowReaders(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	h := d.join("web-1")
	f := h.follow()
	f.next()
	const entries, rounds = 10, 100
	var writers sync.WaitGroup // at once, so that the store commits them in groups
	for i := range entries {
		writers.Go(func() {
			e := must(registration.FromWire(entry(fmt.Sprintf("entry-%d", i))))(t)
			for k := range 40 { // so large that the stream's window is soon full
				e.Match = append(e.Match, attest.Selector{Method: "unix", Key: "path", Value: fmt.Sprintf("/%0200d", k)})
			}
			for round := range rounds {
				e.Hint = fmt.Sprint(round)
				if _, err := d.db.Apply(context.Background(), registration.Batch{Entries: []registration.Entry{e}}, act); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	d.caughtUp()
	if taken := f.reach(must(d.db.Newest(t.Context()))(t).Number); taken > entries*rounds/10 {
		t.Errorf("%d changes came as %d messages", entries*rounds, taken)
	}
	for i := range entries {
		if got, want := f.entries[fmt.Sprintf("entry-%d", i)].GetHint(), fmt.Sprint(rounds-1); got != want {
			t.Errorf("entry %d is at change %s, want %s", i, got, want)
		}
	}
	f.wantHeld()
}

func TestBigSnapshotComesInPieces(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	const count = 1000
	var batch []*registrationv1.Entry
	for i := range count {
		batch = append(batch, entry(fmt.Sprintf("entry-%d", i)))
	}
	d.apply(batch...)
	d.caughtUp()
	h := d.newHost(d.token(&adminv1.CreateTokenRequest{}))
	a := must(h.attest(bent{}))(t)
	if len(a.Sync) != 1 || !a.Sync[0].More || a.Sync[0].Changes[0].GetBundle() == nil {
		t.Errorf("the admission of a node with much to hold has %d messages", len(a.Sync))
	}
	f := h.follow()
	messages := f.next()
	if len(messages) < 4 || len(f.entries) != count || len(f.facts) != count {
		t.Errorf("%d messages brought %d entries and %d facts", len(messages), len(f.entries), len(f.facts))
	}
	for i, m := range messages {
		if m.Snapshot != (i == 0) || (m.Digest != nil) != (i == len(messages)-1) || m.Revision != messages[0].Revision {
			t.Errorf("message %d: snapshot %t, digest %x, revision %d", i, m.Snapshot, m.Digest, m.Revision)
		}
	}
}

func TestExpiredEntryGoes(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	brief, also := entry("brief"), entry("also")
	also.SpiffeId = "spiffe://example.org/brief"
	d.apply(brief, also)
	d.caughtUp()
	h := d.join("web-1")
	away, f := h.follow(), h.follow()
	away.next()
	f.next()
	brief.Expires = timestamppb.New(time.Now().Add(1500 * time.Millisecond))
	revision := d.apply(brief)
	away.reach(revision)
	away.close()
	for slices.Contains(f.names(), "brief") {
		f.next()
	}
	if now := time.Now(); now.Before(brief.Expires.AsTime()) {
		t.Errorf("it went %s before its time", brief.Expires.AsTime().Sub(now))
	}
	f.wantHeld()
	if got := f.facts["spiffe://example.org/brief"].GetEntry(); got != "also" {
		t.Errorf("the ID's only entry is %q, want also", got)
	}
	away.open() // it does not hold it for longer because it was away
	away.reach(d.apply(entry("later")))
	away.wantHeld()
}

func TestSyncEndsWithTheAgentSVID(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	h := d.join("web-1")
	until := must(x509.ParseCertificate(h.certificate().Certificate[0]))(t).NotAfter
	d.ahead.Store(int64(time.Until(until) - 1500*time.Millisecond)) // so that it ends soon
	f := h.follow()
	f.next()
	_, err := f.stream.Recv()
	wantFault(t, err, fault.Unauthenticated, fault.NodeUnknown)
	if now := d.now(); now.Before(until) {
		t.Errorf("the stream ended %s before the SVID", until.Sub(now))
	}
}

func TestSyncThatDoesNotBeginEnds(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	h := d.join("web-1")
	stream := must(h.connect().Sync(t.Context()))(t)
	_, err := stream.Recv() // without a word
	wantFault(t, err, fault.Invalid, "")
}
