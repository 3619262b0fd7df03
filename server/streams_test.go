package server_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/api/registrationv1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
	"github.com/writ-dev/writ/server"
	"github.com/writ-dev/writ/store"
)

// ending is a way in which a node's time is over.
type ending struct {
	name string
	do   func(t *testing.T, h *host)
	kind fault.Kind
	code fault.Code
}

var endings = []ending{
	{"banned by its agent ID", func(t *testing.T, h *host) {
		must(h.d.admin.BanNode(t.Context(), &adminv1.BanNodeRequest{Subject: h.id, Reason: "stolen"}))(t)
	}, fault.Denied, fault.NodeBanned},
	{"banned by a selector", func(t *testing.T, h *host) {
		must(h.d.admin.BanNode(t.Context(), &adminv1.BanNodeRequest{Subject: "join_token:name:web-1"}))(t)
	}, fault.Denied, fault.NodeBanned},
	{"locked by a copy of its data directory", func(t *testing.T, h *host) {
		copied := *h
		must(h.renew(h.generation+1, newKey(t)))(t)
		_, err := copied.renew(copied.generation+1, newKey(t))
		wantFault(t, err, fault.Denied, fault.NodeLocked)
	}, fault.Denied, fault.NodeLocked},
	{"locked by a generation that skips one", func(t *testing.T, h *host) {
		_, err := h.renew(h.generation+2, newKey(t))
		wantFault(t, err, fault.Denied, fault.NodeLocked)
	}, fault.Denied, fault.NodeLocked},
	{"evicted", func(t *testing.T, h *host) {
		must(h.d.admin.EvictNode(t.Context(), &adminv1.EvictNodeRequest{AgentId: h.id}))(t)
	}, fault.Unauthenticated, fault.NodeUnknown},
}

func TestEndOfANodeEndsItsStreamsAndCalls(t *testing.T) {
	t.Parallel()
	for _, row := range endings {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			d := newDomain(t)
			d.apply(entry("orders"))
			token := d.token(&adminv1.CreateTokenRequest{Node: "web-1"})
			h, bystander := d.admitted(token), d.join("web-2")
			f, still := h.follow(), bystander.follow()
			f.next()
			still.next()
			row.do(t, h)
			_, err := f.stream.Recv()
			for err == nil { // facts may still change before the end
				_, err = f.stream.Recv()
			}
			wantFault(t, err, row.kind, row.code)

			_, err = h.sign("orders")
			wantFault(t, err, row.kind, row.code)
			_, err = must(h.connect().Sync(t.Context()))(t).Recv()
			wantFault(t, err, row.kind, row.code)
			if row.code != fault.NodeUnknown { // an evicted one may come back, with its token even
				_, err = h.renew(h.generation+1, newKey(t))
				wantFault(t, err, row.kind, row.code)
				_, err = h.attest(bent{})
				wantFault(t, err, row.kind, row.code)
			}
			d.apply(entry("later"))
			for still.entries["later"] == nil { // others are not touched
				still.next()
			}
		})
	}
}

// A banned host does not come back under another name: its keys are banned with it.
func TestBanCoversKeys(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	machine := d.machine("web-1")
	h := d.admitted(machine)
	must(d.admin.BanNode(t.Context(), &adminv1.BanNodeRequest{Subject: h.id}))(t)
	_, err := d.newHost(machine).attest(bent{}) // another node key, the same evidence key
	wantFault(t, err, fault.Denied, fault.NodeBanned)
	same := d.newHost(d.token(&adminv1.CreateTokenRequest{}))
	same.key = h.key
	_, err = same.attest(bent{}) // other evidence, the same node key
	wantFault(t, err, fault.Denied, fault.NodeBanned)
}

// Who does not know the node key can neither renew nor lock a node, nor learn that it is there.
func TestStrangerCanNotTouchANode(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	h := d.join("web-1")
	stranger := d.newHost()
	for _, id := range []string{h.id, "spiffe://example.org/writ/agent/join_token/none"} {
		stranger.id = id
		_, err := stranger.renew(7, newKey(t))
		wantFault(t, err, fault.NotFound, fault.NodeUnknown)
	}
	must(h.renew(2, newKey(t)))(t)
}

// feed is the store's, with a test at one of its doors. Only streams of agents go through it: they alone have a peer.
type feed struct {
	*store.DB
	chainAt, changed atomic.Pointer[func()]        // called after the store's answer is known
	behind           atomic.Pointer[chan struct{}] // the server's registry reads nothing before it is closed
}

func (f *feed) ChainAt(ctx context.Context, revision uint64) ([]byte, error) {
	chain, err := f.DB.ChainAt(ctx, revision)
	meet(ctx, &f.chainAt)
	return chain, err
}

func (f *feed) Changes(ctx context.Context, after uint64, limit int) ([]registration.Change, error) {
	if _, remote := peer.FromContext(ctx); !remote {
		if wait := f.behind.Load(); wait != nil {
			<-*wait
		}
	}
	changes, err := f.DB.Changes(ctx, after, limit)
	if len(changes) == 0 {
		meet(ctx, &f.changed)
	}
	return changes, err
}

func meet(ctx context.Context, at *atomic.Pointer[func()]) {
	if _, remote := peer.FromContext(ctx); !remote {
		return
	}
	if do := at.Swap(nil); do != nil {
		(*do)()
	}
}

// watched gives a domain whose feed a test can meet.
func watched(t *testing.T) (*domain, *feed) {
	t.Helper()
	f := &feed{}
	d := newDomain(t, func(c *server.Config) {
		f.DB = c.Store.Feed.(*store.DB)
		c.Store.Feed = f
	})
	return d, f
}

func TestNothingIsMissedWhileAStreamResumes(t *testing.T) {
	t.Parallel()
	d, feed := watched(t)
	d.apply(entry("orders"), entry("goes"))
	d.caughtUp()
	f := d.join("web-1").follow()
	f.next()
	f.close()
	d.apply(entry("while-away"))
	for _, at := range []*atomic.Pointer[func()]{&feed.chainAt, &feed.changed} {
		meanwhile := func() {
			d.apply(entry("meanwhile"))
			d.remove("goes")
			d.caughtUp()
		}
		at.Store(&meanwhile)
		f.open()
		for f.entries["meanwhile"] == nil || f.entries["goes"] != nil {
			f.next()
		}
		f.wantHeld()
		f.close()
		d.apply(entry("goes"))
		d.remove("meanwhile")
		d.caughtUp()
		f.open()
		for f.entries["meanwhile"] != nil || f.entries["goes"] == nil {
			f.next()
		}
		f.close()
	}
}

// An agent that comes from a server which read more of the store is not told old things as new ones.
func TestServerBehindItsAgentCatchesUpFirst(t *testing.T) {
	t.Parallel()
	d, feed := watched(t)
	d.apply(entry("orders"))
	d.caughtUp()
	f := d.join("web-1").follow()
	f.next()
	f.close()
	behind, asked := make(chan struct{}), make(chan struct{})
	feed.behind.Store(&behind)
	d.apply(entry("new"))
	newest := must(d.db.Newest(t.Context()))(t)
	f.revision, f.chain, f.entries["new"] = newest.Number, newest.Chain, entry("new")
	opened := func() { close(asked) }
	feed.chainAt.Store(&opened)
	go func() {
		<-asked
		close(behind)
	}()
	f.open()
	d.until("the server has it", func() bool { return d.held() >= newest.Number })
	d.apply(entry("later"))
	for f.entries["later"] == nil {
		for _, m := range f.next() {
			for _, c := range m.Changes {
				if name := c.GetEntry().GetName(); m.Snapshot || name != "" && name != "later" {
					t.Errorf("told of %q, snapshot: %t", name, m.Snapshot)
				}
			}
		}
	}
}

// A node that proves other facts than before is told anew what concerns it, whenever it does.
func TestOtherSelectorsBringASnapshot(t *testing.T) {
	t.Parallel()
	d, feed := watched(t)
	d.apply(entry("one", "x509pop:subject:web-1"), entry("two", "x509pop:subject:web-2"))
	d.caughtUp()
	key := newKey(t)
	one, two := d.certified(key, "web-1"), d.certified(key, "web-2")
	h := d.admitted(one)
	f := h.follow()
	f.next()
	become := func(a attest.Attestor) {
		h.attestors = []attest.Attestor{a}
		must(h.attest(bent{}))(t)
		d.caughtUp()
	}
	want := func(when, name string) {
		t.Helper()
		for !slices.Equal(f.names(), []string{name}) {
			if messages := f.next(); !messages[0].Snapshot && slices.Contains(f.names(), name) {
				t.Errorf("%s: entries came without a snapshot", when)
			}
		}
		f.wantHeld()
	}
	want("at first", "one")
	become(two)
	want("while the stream is open", "two")
	f.close()
	become(one)
	f.open()
	want("while away", "one")
	f.close()
	for _, at := range []*atomic.Pointer[func()]{&feed.chainAt, &feed.changed} {
		meanwhile := func() { become(two) }
		at.Store(&meanwhile)
		f.open()
		want("while the stream opens", "two")
		become(one)
		want("after that", "one")
		f.close()
	}
}

func TestNodeThatEndsWhileItsStreamOpensGetsNone(t *testing.T) {
	t.Parallel()
	for _, row := range endings {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			d, feed := watched(t)
			d.apply(entry("orders"))
			d.caughtUp()
			h := d.join("web-1")
			f := h.follow()
			f.next()
			f.close()
			ending := func() {
				row.do(t, h)
				d.caughtUp()
			}
			feed.chainAt.Store(&ending)
			f.open()
			_, err := f.stream.Recv()
			for err == nil {
				_, err = f.stream.Recv()
			}
			wantFault(t, err, row.kind, row.code)
		})
	}
}

// A stream that said nothing yet is no way around its node's end either.
func TestNodeThatEndsBeforeItsStreamOpensGetsNone(t *testing.T) {
	t.Parallel()
	for _, row := range endings {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			d := newDomain(t)
			d.apply(entry("orders"))
			h := d.join("web-1")
			c := h.connect()
			stream := must(c.Sync(t.Context()))(t)
			must(c.Sign(t.Context(), &nodev1.SignRequest{}))(t) // behind it on the same connection
			row.do(t, h)
			d.caughtUp()
			if err := stream.Send(&nodev1.SyncRequest{Step: &nodev1.SyncRequest_Open{Open: &nodev1.SyncOpen{Version: 1}}}); err != nil {
				t.Log(err) // Recv knows why
			}
			_, err := stream.Recv()
			wantFault(t, err, row.kind, row.code)
		})
	}
}

// fill gives a node more to hold than a stream's window takes.
func (d *domain) fill() {
	d.t.Helper()
	var batch []*registrationv1.Entry
	for i := range 600 {
		e := entry(fmt.Sprintf("entry-%d", i))
		e.Hint = strings.Repeat("x", 1000)
		batch = append(batch, e)
	}
	d.apply(batch...)
	d.caughtUp()
}

func TestAgentThatDoesNotReadCanNotStay(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	d.fill()
	h := d.join("web-1")
	f := h.follow() // and reads nothing
	d.until("the stream is open", func() bool { return d.metric("writ_server_agents") == 1 })
	must(d.admin.BanNode(t.Context(), &adminv1.BanNodeRequest{Subject: h.id}))(t)
	d.until("the stream is gone", func() bool { return d.metric("writ_server_agents") == 0 })
	var err error
	for err == nil {
		_, err = f.stream.Recv()
	}
	wantFault(t, err, fault.Denied, fault.NodeBanned)
}

func TestRunEndsEveryStream(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	d.fill()
	reads, idle := d.join("web-1").follow(), d.join("web-2").follow()
	reads.next()
	d.until("the streams are open", func() bool { return d.metric("writ_server_agents") == 2 })
	d.running()
	for _, f := range []*follower{reads, idle} {
		var err error
		for err == nil {
			_, err = f.stream.Recv()
		}
		wantFault(t, err, fault.Unavailable, "")
	}
	d.until("the streams are gone", func() bool { return d.metric("writ_server_agents") == 0 })
	_, err := d.admin.WaitRevision(t.Context(), &adminv1.WaitRevisionRequest{})
	if err != nil {
		wantFault(t, err, fault.Unavailable, "")
	}
}

func TestStreamBeginsWithAnOpenMessage(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	c := d.join("web-1").connect()
	for _, first := range []*nodev1.SyncRequest{
		{}, {Step: &nodev1.SyncRequest_Ack{Ack: &nodev1.SyncAck{Revision: 1}}}, {Step: &nodev1.SyncRequest_Open{Open: &nodev1.SyncOpen{Version: 2}}},
	} {
		stream := must(c.Sync(t.Context()))(t)
		if err := stream.Send(first); err != nil {
			t.Fatal(err)
		}
		_, err := stream.Recv()
		wantFault(t, err, fault.Invalid, "")
	}
}

// waiting asks for a revision and gives the channel on which the answer comes.
func (d *domain) waiting(revision uint64) <-chan *adminv1.WaitRevisionResponse {
	answered := make(chan *adminv1.WaitRevisionResponse, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		answer, err := d.admin.WaitRevision(ctx, &adminv1.WaitRevisionRequest{Revision: revision})
		if err != nil {
			d.t.Errorf("wait for revision %d: %v", revision, err)
		}
		answered <- answer
	}()
	return answered
}

func TestWaitRevisionWaitsForEveryAck(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	first, second := d.join("web-1").follow(), d.join("web-2").follow()
	for _, f := range []*follower{first, second} {
		f.next()
	}
	d.until("both are there", func() bool { return d.metric("writ_server_agents") == 2 })
	first.silent, second.silent = true, true
	revision := d.apply(entry("orders"))
	answered := d.waiting(revision)
	first.reach(revision)
	second.reach(revision)
	first.ack()
	d.until("one has it", func() bool {
		acked := 0
		for _, n := range must(d.admin.ListNodes(context.Background(), &adminv1.ListNodesRequest{}))(t).Nodes {
			if n.Connected && n.Revision >= revision {
				acked++
			}
		}
		return acked == 1
	})
	select {
	case <-answered:
		t.Error("answered before the second agent has it")
	case <-time.After(50 * time.Millisecond): // it shows that nothing comes; too short a wait hides a failure and makes none
	}
	second.close() // whoever leaves is not waited for
	if got := (<-answered).GetAgents(); got != 1 {
		t.Errorf("%d agents have it", got)
	}
	if _, err := d.admin.WaitRevision(t.Context(), &adminv1.WaitRevisionRequest{Revision: revision + 10}); err == nil {
		t.Error("a revision that is not there yet is waited for")
	}
}

// Changes that never pause must not hold up who waits for one of them.
func TestWaitRevisionDoesNotWaitForLaterChanges(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	f := d.join("web-1").follow()
	f.next()
	revision := d.apply(entry("orders"))
	f.reach(revision)
	f.silent = true
	f.reach(d.apply(entry("later"))) // came, and is not acknowledged
	if got := (<-d.waiting(revision)).GetRevision(); got != revision {
		t.Errorf("answered for revision %d", got)
	}
}
