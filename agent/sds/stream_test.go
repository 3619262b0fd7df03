package sds_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/google/go-cmp/cmp"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-dev/writ/agent/agenttest"
	"github.com/writ-dev/writ/attest"
)

func request(names ...string) *discoveryv3.DiscoveryRequest {
	return &discoveryv3.DiscoveryRequest{TypeUrl: secretType, ResourceNames: names}
}

// As the contract has it: a name that is not there yet keeps the stream open and is pushed when it exists,
// also for a caller that has no identity at all.
func TestSDS_06_SDS_10_SDS_23_NameThatIsNotThereYet(t *testing.T) {
	protocols(t, func(t *testing.T, open func(*testing.T, *grpc.ClientConn) talk) {
		n := newNode(t)
		n.server.Trust("foreign.org", n.server.Root)
		n.start()
		conn := agenttest.Dial(t, n.path)
		roots := open(t, conn) // a pure verifier
		roots.ask("ROOTCA")
		if found, _ := roots.next(); !cmp.Equal(namesOf(found), []string{"ROOTCA"}) {
			t.Errorf("a caller without identity gets %v of ROOTCA", namesOf(found))
		}
		early, unknown, unfederated := open(t, conn), open(t, conn), open(t, conn)
		early.ask("default")
		unknown.ask(b)
		unfederated.ask(foreign)
		agenttest.Await(t, "four streams", func() bool { return n.agent.Status().Subscriptions == 4 })

		n.server.Apply(entry("a"))
		if found, _ := early.next(); len(found) != 1 || leafOf(t, found["default"]).URIs[0].String() != a {
			t.Errorf("the default is %v", namesOf(found))
		}
		n.server.Apply(federated("b", "foreign.org"))
		if found, _ := unknown.next(); !cmp.Equal(namesOf(found), []string{b}) {
			t.Errorf("pushed %v", namesOf(found))
		}
		if found, _ := unfederated.next(); !cmp.Equal(namesOf(found), []string{foreign}) {
			t.Errorf("pushed %v", namesOf(found))
		}
	})
}

// What there is of several names comes at once, the rest when it exists; on StreamSecrets with what there was.
func TestPartOfTheNames(t *testing.T) {
	protocols(t, func(t *testing.T, open func(*testing.T, *grpc.ClientConn) talk) {
		n := newNode(t)
		n.server.Apply(entry("a"))
		n.start()
		s := open(t, agenttest.Dial(t, n.path))
		s.ask(a, b, "file-root:system")
		if found, removed := s.next(); !cmp.Equal(namesOf(found), []string{a}) || len(removed) > 0 {
			t.Errorf("first %v, removed %v", namesOf(found), removed)
		}
		n.server.Apply(entry("b"))
		found, removed := s.next()
		want := []string{a, b}
		if _, incremental := s.(*deltaStream); incremental {
			want = []string{b}
		}
		if !cmp.Equal(namesOf(found), want) || len(removed) > 0 {
			t.Errorf("then %v, removed %v", namesOf(found), removed)
		}
	})
}

// FetchSecrets has no later: what is not there is InvalidArgument, and what may come in a moment Unavailable.
func TestSDS_10_FetchOfUnknownNames(t *testing.T) {
	t.Parallel() // it waits
	n := started(t)
	conn := agenttest.Dial(t, n.path)
	for _, names := range [][]string{{"default"}, {a}, {foreign}, {"ROOTCA", "nothing"}, {"file-root:system"}, {"spiffe://example.org/"}, {"*", "nothing"}} {
		_, err := fetch(t, conn, nil, names...)
		if s := status.Convert(err); s.Code() != codes.InvalidArgument || !strings.Contains(s.Message(), names[len(names)-1]) {
			t.Errorf("%v: %v", names, err)
		}
	}
	n.server.Lock()
	n.server.Refuse = func(string) bool { return true }
	n.server.Unlock()
	n.server.Apply(entry("a"))
	agenttest.Await(t, "the refusal", func() bool { return n.agent.Status().Pending == 1 })
	if _, err := fetch(t, conn, nil, "default"); status.Code(err) != codes.Unavailable {
		t.Errorf("what is being signed: %v", err)
	}
	if found, err := fetch(t, conn, nil, "ROOTCA"); err != nil || len(found) != 1 {
		t.Errorf("ROOTCA meanwhile: %v", err)
	}
	w := world(t, conn)
	w.ask("ROOTCA", "default")
	if found, _ := w.next(); !cmp.Equal(namesOf(found), []string{"ROOTCA"}) {
		t.Errorf("the stream meanwhile: %v", namesOf(found))
	}
}

// As the contract has it: the stream stays; delta says what is withdrawn, StreamSecrets says nothing. What comes back is pushed.
func TestSDS_24_WithdrawnName(t *testing.T) {
	protocols(t, func(t *testing.T, open func(*testing.T, *grpc.ClientConn) talk) {
		n := newNode(t)
		n.server.Apply(entry("a"))
		n.start()
		s := open(t, agenttest.Dial(t, n.path))
		s.ask("default", a)
		before, _ := s.next()
		n.server.Remove("a")
		agenttest.Await(t, "the withdrawal", func() bool { return n.agent.Status().SVIDs == 0 })
		if _, incremental := s.(*deltaStream); incremental {
			if found, removed := s.next(); len(found) != 0 || !cmp.Equal(removed, []string{"default", a}) {
				t.Errorf("pushed %v, removed %v", namesOf(found), removed)
			}
		}
		n.server.Apply(entry("a"))
		after, removed := s.next()
		if !cmp.Equal(namesOf(after), []string{"default", a}) || len(removed) > 0 {
			t.Errorf("back are %v, removed %v", namesOf(after), removed)
		}
		if leafOf(t, before[a]).Equal(leafOf(t, after[a])) {
			t.Error("it is the withdrawn one")
		}
	})
}

// A rotation is pushed with a new key, and nothing that the names do not show.
func TestSDS_22_PushesChangesOnly(t *testing.T) {
	t.Parallel() // it waits
	protocols(t, func(t *testing.T, open func(*testing.T, *grpc.ClientConn) talk) {
		t.Parallel()
		n := newNode(t)
		short := entry("a")
		short.Ttl = durationpb.New(5 * time.Second)
		n.server.Apply(short)
		n.start()
		conn := agenttest.Dial(t, n.path)
		s, roots := open(t, conn), open(t, conn)
		s.ask("default")
		roots.ask("ROOTCA")
		before, _ := s.next()
		roots.next()
		n.server.Change(n.server.Bundle())
		n.server.Apply(federated("b", "foreign.org"))
		after, _ := s.next()
		if !leafOf(t, after["default"]).NotAfter.After(leafOf(t, before["default"]).NotAfter) {
			t.Error("told of a change that is none")
		}
		if cmp.Equal(before["default"].GetTlsCertificate().GetPrivateKey().GetInlineBytes(), after["default"].GetTlsCertificate().GetPrivateKey().GetInlineBytes()) {
			t.Error("the key is the old one")
		}
		other := agenttest.New(t, "example.org")
		n.server.Trust("example.org", n.server.Root, other.Root)
		found, _ := roots.next()
		if _, held := trusts(t, found["ROOTCA"]); len(held) != 2 {
			t.Errorf("told of a change that is none: %d roots", len(held))
		}
	})
}

// Rule 13: an Envoy's default certificate does not change with the order in which SVIDs are signed after a restart.
func TestDefaultIsStable(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("b"), entry("a"))
	for _, open := range []func(conn *grpc.ClientConn) map[string]*tlsv3.Secret{
		func(conn *grpc.ClientConn) map[string]*tlsv3.Secret {
			w := world(t, conn)
			w.ask("default")
			found, _ := w.next()
			return found
		},
		func(conn *grpc.ClientConn) map[string]*tlsv3.Secret {
			d := delta(t, conn)
			d.ask("default")
			found, _ := d.next()
			return found
		},
		func(conn *grpc.ClientConn) map[string]*tlsv3.Secret {
			found, err := fetch(t, conn, nil, "default")
			if err != nil {
				t.Error(err)
			}
			return found
		},
	} {
		refusals := 0
		n.server.Lock()
		n.server.Refuse = func(name string) bool { // the default is signed last
			if name == "a" {
				refusals++
			}
			return name == "a" && refusals == 1
		}
		n.server.Unlock()
		n.start()
		<-n.agent.Synced()
		if leaf := leafOf(t, open(agenttest.Dial(t, n.path))["default"]); leaf.URIs[0].String() != a {
			t.Errorf("the default is %s", leaf.URIs[0])
		}
		n.stop()
	}
}

// What an answer to a response means.
func TestSDS_16_SDS_17_SDS_18_SDS_19_StateOfTheWorldConversation(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("a"), entry("b"))
	n.start()
	conn := agenttest.Dial(t, n.path)
	w := world(t, conn)
	w.ask("default", "ROOTCA")
	first := w.response()

	stale := request("ALL")
	stale.ResponseNonce = "not-the-last"
	w.send(stale)
	w.ask("ROOTCA", "default") // acknowledges; the order does not count
	refusal := request("default", "ROOTCA")
	refusal.ResponseNonce, refusal.ErrorDetail = first.GetNonce(), &rpcstatus.Status{Code: int32(codes.Internal), Message: "no"}
	w.send(refusal)
	w.send(refusal)
	w.ask("default", "ROOTCA", "nothing") // other names: answered at once, with what there is
	second := w.response()
	if got := namesOf(read(t, second.GetResources()...)); !cmp.Equal(got, []string{"ROOTCA", "default"}) {
		t.Errorf("the next response is to something else: %v", got)
	}
	if first.GetVersionInfo() != second.GetVersionInfo() { // R16: it follows content
		t.Errorf("versions %s and %s of one content", first.GetVersionInfo(), second.GetVersionInfo())
	}
	w.ask("nothing")
	w.ask() // after some names, no names are none
	w.ask(b)
	if got := namesOf(read(t, w.response().GetResources()...)); !cmp.Equal(got, []string{b}) {
		t.Errorf("after names of which nothing is there: %v", got)
	}
	refusal = request(b)
	refusal.ResponseNonce, refusal.ErrorDetail = w.last.GetNonce(), &rpcstatus.Status{Code: int32(codes.Internal), Message: "no"}
	w.send(refusal)
	n.server.Apply(entry("b", "b.internal"))
	if leaf := leafOf(t, read(t, w.response().GetResources()...)[b]); !cmp.Equal(leaf.DNSNames, []string{"b.internal"}) {
		t.Error("what was refused came again before it changed")
	}

	again := world(t, conn) // a reconnect names the version it has, and is answered all the same
	reconnect := request("default", "ROOTCA")
	reconnect.VersionInfo = second.GetVersionInfo()
	again.send(reconnect)
	if got := again.response().GetVersionInfo(); got != second.GetVersionInfo() {
		t.Errorf("version %s on another stream, %s on this", got, second.GetVersionInfo())
	}
	if err := again.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := again.stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the client's end: %v", err)
	}
}

// R16, the contract: versions depend on content alone, so what a reconnecting Envoy holds is not sent again.
func TestSDS_02_SDS_16_DeltaReconnect(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("a"), entry("b"))
	n.start()
	conn := agenttest.Dial(t, n.path)
	d := delta(t, conn)
	d.ask("default", "ROOTCA", b)
	held := map[string]string{}
	for _, one := range d.response().GetResources() {
		held[one.GetName()] = one.GetVersion()
	}
	if len(held) != 3 {
		t.Fatalf("it holds %v", held)
	}
	names := []string{"default", "ROOTCA", b}

	same := delta(t, conn)
	same.send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: names, InitialResourceVersions: held})
	n.server.Apply(entry("b", "b.internal"))
	if found, removed := same.next(); !cmp.Equal(namesOf(found), []string{b}) || leafOf(t, found[b]).DNSNames == nil || len(removed) > 0 {
		t.Errorf("what was held came again: %v, removed %v", namesOf(found), removed)
	}

	n.stop()
	n.server.Remove("b") // while nobody looked
	n.start()
	<-n.agent.Synced()
	conn = agenttest.Dial(t, n.path)
	restarted := delta(t, conn)
	restarted.send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: names, InitialResourceVersions: held})
	if found, removed := restarted.next(); !cmp.Equal(namesOf(found), []string{"default"}) || !cmp.Equal(removed, []string{b}) {
		t.Errorf("after a restart of the agent %v is new and %v removed", namesOf(found), removed)
	}
}

// The incremental protocol: what is subscribed to, asked for again, and let go of.
func TestSDS_02_DeltaConversation(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("a"), entry("b"))
	n.start()
	d := delta(t, agenttest.Dial(t, n.path))
	d.ask("ROOTCA")
	first := d.response()
	refusal := &rpcstatus.Status{Code: int32(codes.Internal), Message: "no"}
	d.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: first.GetNonce(), ErrorDetail: refusal})
	d.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: "another", ErrorDetail: refusal})
	expect := func(what string, want []string, removed ...string) {
		t.Helper()
		found, gone := d.next()
		if !cmp.Equal(namesOf(found), want) || len(gone)+len(removed) > 0 && !cmp.Equal(gone, removed) {
			t.Errorf("%s: %v, removed %v", what, namesOf(found), gone)
		}
	}
	d.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: "stale", ResourceNamesSubscribe: []string{a}})
	expect("a further name, whatever the nonce", []string{a})
	d.ask("ROOTCA")
	expect("a name that is held, asked for again", []string{"ROOTCA"})
	d.send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{a, "never asked for"}})
	n.server.Apply(entry("a", "a.internal"))
	agenttest.Await(t, "its new SVID", func() bool {
		found, err := fetch(t, agenttest.Dial(t, n.path), nil, a)
		return err == nil && leafOf(t, found[a]).DNSNames != nil
	})
	d.ask(b)
	expect("after letting go of another that changed", []string{b})
	d.ask("*")
	expect("the wildcard", []string{domain, a})
	d.send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{b}})
	expect("a name let go of that the wildcard covers", []string{b})
	d.send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{"*", "ROOTCA"}})
	n.server.Apply(entry("c"))
	agenttest.Await(t, "its SVID", func() bool { return n.agent.Status().SVIDs == 3 })
	d.ask("default")
	expect("after letting go of all", []string{"default"})
	d.send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{"default"}})
	d.ask("*")
	expect("the wildcard again", []string{domain, a, b, "spiffe://example.org/c"})
}

// R16: one type is served, and an empty one is taken for it.
func TestSDS_16_OtherTypesAreInvalid(t *testing.T) {
	n := started(t)
	conn := agenttest.Dial(t, n.path)
	const other = "type.googleapis.com/envoy.config.listener.v3.Listener"
	wrong := request("ROOTCA")
	wrong.TypeUrl = other
	if _, err := secretv3.NewSecretDiscoveryServiceClient(conn).FetchSecrets(t.Context(), wrong); status.Code(err) != codes.InvalidArgument {
		t.Errorf("FetchSecrets: %v", err)
	}
	w := world(t, conn)
	w.send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"ROOTCA"}})
	w.response()
	w.send(wrong)
	w.ends(codes.InvalidArgument, other)
	d := delta(t, conn)
	if err := d.stream.Send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"ROOTCA"}}); err != nil {
		t.Fatal(err)
	}
	d.response()
	if err := d.stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: other}); err != nil {
		t.Fatal(err)
	}
	d.ends(codes.InvalidArgument, other)
}

// One stream has no more names than a person could have written.
func TestNamesOfOneStreamAreBounded(t *testing.T) {
	n := started(t)
	conn := agenttest.Dial(t, n.path)
	numbered := func(from, to int) []string {
		var names []string
		for i := from; i < to; i++ {
			names = append(names, fmt.Sprint(i))
		}
		return names
	}
	if _, err := fetch(t, conn, nil, numbered(0, 1001)...); status.Code(err) != codes.InvalidArgument || strings.Contains(err.Error(), "1000,") {
		t.Errorf("FetchSecrets: %v", err)
	}
	w := world(t, conn)
	w.ask(numbered(0, 1001)...)
	w.ends(codes.InvalidArgument, "more than 1000 names")
	d := delta(t, conn)
	d.ask(append(numbered(0, 999), "ROOTCA")...)
	d.next()
	d.ask(numbered(998, 1000)...)
	d.ends(codes.InvalidArgument, "more than 1000 names")
}

// Envoy comes back after any end; the code is the one that says so.
func TestWEP_28_StreamsEndUnavailable(t *testing.T) {
	for name, stop := range map[string]func(n *node){
		"the surface stops":     func(n *node) { n.handler.Stop() },
		"the agent stops":       func(n *node) { n.stopAgent() },
		"all of it stops":       func(n *node) { n.stop() },
		"the connection breaks": func(n *node) { n.hangUp() },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.server.Apply(entry("a"))
			n.start()
			conn := agenttest.Dial(t, n.path)
			w, d, waiting := world(t, conn), delta(t, conn), world(t, conn)
			w.ask("default")
			d.ask("default")
			waiting.ask("nothing")
			w.next()
			d.next()
			agenttest.Await(t, "three streams", func() bool { return n.agent.Status().Subscriptions == 3 })
			stop(n)
			w.ends(codes.Unavailable, "")
			d.ends(codes.Unavailable, "")
			waiting.ends(codes.Unavailable, "")
		})
	}
}

// Envoys that start with the agent wait on their streams; only what cannot wait is turned away.
func TestSDS_21_WEP_18_StreamsAreHeldUntilEntriesAreKnown(t *testing.T) {
	t.Parallel() // it waits
	protocols(t, func(t *testing.T, open func(*testing.T, *grpc.ClientConn) talk) {
		t.Parallel()
		n := newNode(t)
		n.server.Apply(entry("a"))
		n.server.Stop()
		n.start()
		conn := agenttest.Dial(t, n.path)
		early, ended := open(t, conn), open(t, conn)
		early.ask("default")
		ended.ask("default")
		if _, err := fetch(t, conn, nil, "default"); status.Code(err) != codes.Unavailable { // after the agent's own patience
			t.Errorf("FetchSecrets: %v", err)
		}
		n.server.Start()
		if found, _ := early.next(); !cmp.Equal(namesOf(found), []string{"default"}) {
			t.Errorf("pushed %v", namesOf(found))
		}
		ended.next()
	})
	t.Run("and end with the surface", func(t *testing.T) {
		n := newNode(t)
		n.server.Stop()
		n.start()
		w := world(t, agenttest.Dial(t, n.path))
		w.ask("default")
		n.handler.Stop()
		w.ends(codes.Unavailable, "")
	})
}

// broken is an attestor that cannot find out who calls.
type broken struct{}

func (broken) Attest(context.Context, attest.Peer) ([]attest.Selector, error) {
	return nil, errors.New("the container runtime does not answer")
}

// A failure of ours is no denial, and its cause is not for the caller.
func TestSDS_01_FailingAttestorIsUnavailable(t *testing.T) {
	n := newNode(t)
	n.config.Workload = append(n.config.Workload, broken{})
	n.start()
	conn := agenttest.Dial(t, n.path)
	if _, err := fetch(t, conn, nil, "ROOTCA"); status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "container") {
		t.Errorf("FetchSecrets: %v", err)
	}
	w, d := world(t, conn), delta(t, conn)
	w.ask("ROOTCA")
	d.ask("ROOTCA")
	w.ends(codes.Unavailable, "the caller could not be attested; try again")
	d.ends(codes.Unavailable, "the caller could not be attested; try again")
}

// A stream is its process's. What that becomes gets no secret by a push, and none by asking.
func TestWEP_15_StreamEndsWithItsCaller(t *testing.T) {
	protocols(t, func(t *testing.T, open func(*testing.T, *grpc.ClientConn) talk) {
		n := newNode(t)
		n.server.Apply(entry("a"))
		n.start()
		asks, told, ends := agenttest.NewCaller(t, n.path), agenttest.NewCaller(t, n.path), agenttest.NewCaller(t, n.path)
		asking, pushed, last := open(t, asks.Conn), open(t, told.Conn), open(t, ends.Conn)
		for _, s := range []talk{asking, pushed, last} {
			s.ask("ROOTCA")
			s.next()
		}
		asks.Become()
		asking.ask("default")
		asking.ends(codes.PermissionDenied, "")
		told.Become()
		n.server.Trust("example.org", n.server.Root, agenttest.New(t, "example.org").Root)
		pushed.ends(codes.PermissionDenied, "")
		last.next()
		if _, err := fetch(t, asks.Conn, nil, "default"); status.Code(err) != codes.PermissionDenied {
			t.Errorf("FetchSecrets: %v", err)
		}
		ends.End()
		last.ends(codes.Unavailable, "")
		agenttest.Await(t, "no subscription", func() bool { return n.agent.Status().Subscriptions == 0 })
	})
}

// A slow Envoy gets the newest state in place of all that it missed, and holds nobody up.
func TestSlowReader(t *testing.T) {
	protocols(t, func(t *testing.T, open func(*testing.T, *grpc.ClientConn) talk) {
		n := newNode(t)
		var roots []string
		for i := range 60 { // about 30 kB of roots in ALL
			name := fmt.Sprintf("d%d.org", i)
			n.server.Trust(name, n.server.Root)
			roots = append(roots, name)
		}
		n.server.Apply(federated("a", roots...))
		n.start()
		window := []grpc.DialOption{grpc.WithStaticStreamWindowSize(64 << 10), grpc.WithStaticConnWindowSize(64 << 10)}
		slow, fast := open(t, agenttest.Dial(t, n.path, window...)), open(t, agenttest.Dial(t, n.path))
		slow.ask("ALL")
		fast.ask("ALL")
		held := func(s talk) int {
			t.Helper()
			found, _ := s.next()
			_, roots := trusts(t, found["ALL"])
			return len(roots)
		}
		held(fast)
		const updates = 40
		own := n.server.Root
		for i := range updates {
			more := agenttest.New(t, "example.org").Root
			n.server.Trust(fmt.Sprintf("d%d.org", i), own, more)
			for held(fast) != 62+i {
			}
		}
		read := 1
		for ; held(slow) != 61+updates; read++ {
		}
		if read > updates/2 {
			t.Errorf("it read %d messages for %d updates", read, updates)
		}
	})
}

// What comes over one stream costs that stream.
func TestBadMessagesHurtNobodyElse(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("a"))
	n.start()
	conn := agenttest.Dial(t, n.path)
	s := world(t, conn)
	s.ask("default")
	s.next()
	w, d := world(t, conn), delta(t, conn)
	w.ask(strings.Repeat("x", 2<<20))
	w.ends(codes.ResourceExhausted, "")
	d.ask(strings.Repeat("x", 2<<20))
	d.ends(codes.ResourceExhausted, "")
	n.server.Apply(entry("a", "a.internal"))
	if found, _ := s.next(); leafOf(t, found["default"]).DNSNames == nil {
		t.Error("the stream beside them was told of a change that is none")
	}
}
