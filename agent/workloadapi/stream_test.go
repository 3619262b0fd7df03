package workloadapi_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-dev/writ/agent/agenttest"
	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/attest"
)

// A client that is denied may throw its identity away, so nobody is denied before entries are known.
func TestWEP_18_INT_06_CLIENT_02_UnavailableUntilEntriesAreKnown(t *testing.T) {
	t.Parallel() // it waits
	n := newNode(t)
	n.server.Apply(entry("web"))
	n.server.Stop()
	n.start()
	conn := agenttest.Dial(t, n.path)
	first, second := svids(t, conn), bundles(t, conn)
	first.ends(codes.Unavailable, "")
	second.ends(codes.Unavailable, "")
	n.server.Start()
	<-n.agent.Synced()
	if got := names(svids(t, conn).next()); !cmp.Equal(got, []string{"web"}) {
		t.Errorf("then it holds %v", got)
	}
}

func TestWEP_20_WAPI_31_WAPI_42_INT_04_CLIENT_03_CallerWithoutEntryIsDenied(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("other", "/another/executable"))
	n.start()
	conn := agenttest.Dial(t, n.path)
	says := fmt.Sprintf("no identity issued; on the node, `writ explain workload --pid %d` says why", os.Getpid())
	svids(t, conn).ends(codes.PermissionDenied, says)
	bundles(t, conn).ends(codes.PermissionDenied, says)
}

// broken is an attestor that cannot find out who calls.
type broken struct{}

func (broken) Attest(context.Context, attest.Peer) ([]attest.Selector, error) {
	return nil, errors.New("the container runtime does not answer")
}

// R9: a failure of ours is no denial, and its cause is not for the caller.
func TestWEP_18_INT_01_INT_02_CLIENT_02_FailingAttestorIsUnavailable(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("web"))
	n.config.Workload = append(n.config.Workload, broken{})
	n.start()
	svids(t, agenttest.Dial(t, n.path)).ends(codes.Unavailable, "the caller could not be attested; try again")
}

// What is served depends on who calls.
func TestWAPI_05_EachCallerGetsItsOwn(t *testing.T) {
	n := started(t)
	one, two := agenttest.NewCaller(t, n.path), agenttest.NewCaller(t, n.path)
	n.server.Apply(entry("one", one.Path), entry("two", two.Path))
	n.server.Apply(entry("both"))
	agenttest.Await(t, "the entries", func() bool { return n.agent.Status().SVIDs == 3 })
	if got := names(until(svids(t, one.Conn), 2)); !cmp.Equal(got, []string{"one", "both"}) {
		t.Errorf("the first holds %v", got)
	}
	if got := names(until(svids(t, two.Conn), 2)); !cmp.Equal(got, []string{"two", "both"}) {
		t.Errorf("the second holds %v", got)
	}
}

// until reads until a message has that many SVIDs.
func until(w watch[*workload.X509SVIDResponse], count int) *workload.X509SVIDResponse {
	w.t.Helper()
	for {
		if m := w.next(); len(m.GetSvids()) == count {
			return m
		}
	}
}

// Never a message without SVIDs.
func TestWAPI_16_WAPI_20_CLIENT_04_WithdrawnEntryEndsTheStream(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("a"), entry("b"))
	n.start()
	conn := agenttest.Dial(t, n.path)
	w, b := svids(t, conn), bundles(t, conn)
	if got := names(w.next()); !cmp.Equal(got, []string{"a", "b"}) {
		t.Fatalf("it holds %v", got)
	}
	b.next()
	n.server.Remove("a")
	if got := names(w.next()); !cmp.Equal(got, []string{"b"}) {
		t.Errorf("with one gone it holds %v", got)
	}
	n.server.Remove("b")
	w.ends(codes.PermissionDenied, "no identity issued")
	b.ends(codes.PermissionDenied, "no identity issued")
}

// An entry that is replaced in one revision, or gets another ID, is no moment without an identity.
func TestINT_02_CLIENT_02_ReplacedEntryDeniesNobody(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("web"))
	n.start()
	w := svids(t, agenttest.Dial(t, n.path))
	w.next()
	moved := entry("web")
	moved.SpiffeId = "spiffe://example.org/moved"
	n.server.Apply(moved)
	if got := names(w.next()); !cmp.Equal(got, []string{"moved"}) {
		t.Errorf("it holds %v", got)
	}
}

// With any other code, or none, clients stop watching for good.
func TestWEP_28_INT_02_CLIENT_01_StreamsEndUnavailable(t *testing.T) {
	for _, row := range []struct {
		name string
		stop func(n *node)
	}{
		{"the surface stops", func(n *node) { n.handler.Stop() }},
		{"the agent stops", func(n *node) { n.stopAgent() }},
		{"all of it stops", func(n *node) { n.stop() }},
		{"the connection breaks", func(n *node) { n.hangUp() }},
	} {
		t.Run(row.name, func(t *testing.T) {
			n := newNode(t)
			n.server.Apply(entry("web"))
			n.start()
			conn := agenttest.Dial(t, n.path)
			w, b := svids(t, conn), bundles(t, conn)
			w.next()
			b.next()
			row.stop(n)
			w.ends(codes.Unavailable, "")
			b.ends(codes.Unavailable, "")
		})
	}
}

// The message after a change that the caller sees is the first after many that it does not see.
func TestWAPI_08_CLIENT_24_UnchangedContentIsNotResent(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("web"))
	n.start()
	conn := agenttest.Dial(t, n.path)
	w, b := svids(t, conn), bundles(t, conn)
	first, roots := w.next(), b.next()

	n.server.Apply(entry("other", "/another/executable"))
	n.server.Apply(entry("web")) // again, under a new revision
	n.server.Change(n.server.Bundle())
	n.server.Trust("foreign.org", n.server.Root) // nobody federates with it
	n.server.Stop()
	n.server.Start()
	n.server.Remove("other")
	agenttest.Await(t, "the last revision", func() bool { return n.agent.Status().Revision == 6 })
	n.server.Apply(hinted("web", "told"))
	next := w.next()
	if got := next.GetSvids()[0].GetHint(); got != "told" {
		t.Errorf("told of a change that is none")
	}
	next.Svids[0].Hint = ""
	if diff := cmp.Diff(first, next, protocmp.Transform()); diff != "" {
		t.Errorf("more than the hint changed: %s", diff)
	}
	federated := entry("web")
	federated.FederatesWith = []string{"foreign.org"}
	n.server.Apply(federated)
	if got := b.next().GetBundles(); len(got) != 2 || cmp.Equal(got, roots.GetBundles()) {
		t.Errorf("bundles told of a change that is none")
	}
}

// Half-way through its life an SVID is pushed anew with another key, in a message that holds all the rest.
func TestWAPI_07_WAPI_08_RotationPushesTheFullState(t *testing.T) {
	t.Parallel() // it waits
	n := newNode(t)
	short := entry("short")
	short.Ttl = durationpb.New(5 * time.Second)
	n.server.Trust("foreign.org", n.server.Root)
	long := entry("long")
	long.FederatesWith = []string{"foreign.org"}
	n.server.Apply(short, long)
	n.start()
	w := svids(t, agenttest.Dial(t, n.path))
	before, after := w.next(), w.next()
	if got := [][]string{names(before), names(after)}; !cmp.Equal(got, [][]string{{"long", "short"}, {"long", "short"}}) {
		t.Fatalf("they hold %v", got)
	}
	old, renewed := before.GetSvids()[1], after.GetSvids()[1]
	if cmp.Equal(old.GetX509SvidKey(), renewed.GetX509SvidKey()) || cmp.Equal(old.GetX509Svid(), renewed.GetX509Svid()) {
		t.Error("the key or the certificate is the old one")
	}
	perfect(t, n.server, renewed)
	before.Svids[1], after.Svids[1] = nil, nil
	if diff := cmp.Diff(before, after, protocmp.Transform()); diff != "" {
		t.Errorf("the rest changed: %s", diff)
	}
}

// R8: the first is the default of every client.
func TestWAPI_34_CLIENT_13_OrderIsStable(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("b"))
	n.server.Apply(entry("c"))
	n.server.Apply(entry("a"))
	n.start()
	want := []string{"b", "c", "a"} // by age
	conn := agenttest.Dial(t, n.path)
	for range 20 {
		if got := names(svids(t, conn).next()); !cmp.Equal(got, want) {
			t.Fatalf("it holds %v", got)
		}
	}
	for range 3 {
		n.stop()
		refusals := map[string]int{}
		n.server.Lock()
		n.server.Refuse = func(name string) bool { // at the first asking, so that the default is signed last
			refusals[name]++
			return name == "b" && refusals[name] == 1
		}
		n.server.Unlock()
		n.start()
		<-n.agent.Synced()
		if got := names(svids(t, agenttest.Dial(t, n.path)).next()); !cmp.Equal(got, want) {
			t.Errorf("after a restart it holds %v", got)
		}
	}
	w := svids(t, agenttest.Dial(t, n.path))
	w.next()
	for i := range 10 {
		n.server.Apply(hinted("c", fmt.Sprint(i)))
		if got := names(w.next()); !cmp.Equal(got, want) {
			t.Errorf("after an update it holds %v", got)
		}
	}
	n.server.Apply(entry("0"))
	if got := names(w.next()); !cmp.Equal(got, append(want, "0")) {
		t.Errorf("with one entry more it holds %v", got)
	}
	n.server.Change(&nodev1.Change{Kind: &nodev1.Change_EntryRemoved{EntryRemoved: "b"}}, &nodev1.Change{Kind: &nodev1.Change_Entry{Entry: entry("b")}})
	if got, want := names(w.next()), []string{"c", "a", "0", "b"}; !cmp.Equal(got, want) {
		t.Errorf("once its first went and came back it holds %v", got)
	}
}

// A slow reader gets the newest state in place of all that it missed, and holds nobody up.
func TestSlowReader(t *testing.T) {
	n := newNode(t)
	n.server.Trust("foreign.org", large(n.server, 300<<10))
	web := func(hint string) {
		e := hinted("web", hint)
		e.FederatesWith = []string{"foreign.org"}
		n.server.Apply(e)
	}
	web("first")
	n.start()
	window := []grpc.DialOption{grpc.WithStaticStreamWindowSize(64 << 10), grpc.WithStaticConnWindowSize(64 << 10)}
	slow, fast := svids(t, agenttest.Dial(t, n.path, window...)), svids(t, agenttest.Dial(t, n.path))
	fast.next()
	const updates = 20
	for i := range updates {
		hint := fmt.Sprint(i)
		web(hint)
		for fast.next().GetSvids()[0].GetHint() != hint {
		}
	}
	read := 1
	for ; slow.next().GetSvids()[0].GetHint() != fmt.Sprint(updates-1); read++ {
	}
	if read > 4 { // the first, what the transport had taken, what was being sent, the newest
		t.Errorf("it read %d messages for %d updates", read, updates)
	}
}

// A stream is its process's. What that becomes gets nothing more, and an end of the process is the stream's.
func TestWEP_15_StreamEndsWithItsCaller(t *testing.T) {
	n := started(t)
	changed, ended := agenttest.NewCaller(t, n.path), agenttest.NewCaller(t, n.path)
	n.server.Apply(entry("web"))
	agenttest.Await(t, "the entry", func() bool { return n.agent.Status().SVIDs == 1 })
	w, b, e := svids(t, changed.Conn), bundles(t, changed.Conn), svids(t, ended.Conn)
	w.next()
	b.next()
	e.next()

	changed.Become()
	n.server.Trust("foreign.org", n.server.Root)
	federated := hinted("web", "after exec")
	federated.FederatesWith = []string{"foreign.org"}
	n.server.Apply(federated)
	w.ends(codes.PermissionDenied, "")
	b.ends(codes.PermissionDenied, "")
	svids(t, changed.Conn).ends(codes.PermissionDenied, "")

	if got := e.next().GetSvids()[0].GetHint(); got != "after exec" {
		t.Errorf("the other caller got %q", got)
	}
	ended.End()
	if _, err := e.recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream of a process that ended: %v", err)
	}
	agenttest.Await(t, "no subscription", func() bool { return n.agent.Status().Subscriptions == 0 })
}

// Our own bundle gone, another's never stands in its place.
func TestID_32_WAPI_23_CLIENT_06_ForeignBundleIsNeverOurs(t *testing.T) {
	n := newNode(t)
	foreign := agenttest.New(t, "foreign.org")
	n.server.Trust("foreign.org", foreign.Root)
	e := entry("web")
	e.FederatesWith = []string{"foreign.org"}
	n.server.Apply(e)
	n.start()
	conn := agenttest.Dial(t, n.path)
	w, b := svids(t, conn), bundles(t, conn)
	w.next()
	b.next()
	n.server.Distrust("example.org")
	w.ends(codes.Unavailable, "")
	b.ends(codes.Unavailable, "")
}
