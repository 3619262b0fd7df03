package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-dev/writ/agent"
	"github.com/writ-dev/writ/agent/agenttest"
	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/api/registrationv1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/svid"
)

// soonEnough is when an ask that cannot be answered has ended. It is 1.5 s; a machine with much to do takes longer.
const soonEnough = 4 * time.Second

func jwts(t *testing.T, a *agent.Agent, p attest.Peer, audience ...string) []agent.JWTSVID {
	t.Helper()
	<-a.Synced()
	got, err := a.FetchJWTs(t.Context(), p, agent.JWTRequest{Audience: audience})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// jwt is the only JWT-SVID that a process gets.
func jwt(t *testing.T, a *agent.Agent, p attest.Peer, audience ...string) agent.JWTSVID {
	t.Helper()
	got := jwts(t, a, p, audience...)
	if len(got) != 1 {
		t.Fatalf("it gets %d", len(got))
	}
	return got[0]
}

func parsed(t *testing.T, s agent.JWTSVID) *svid.JWT {
	t.Helper()
	j, err := svid.ParseJWT(string(s.Token))
	if err != nil {
		t.Fatal(err)
	}
	if j.ID != s.ID || !j.Expires.Equal(s.Expires) {
		t.Errorf("it says %s until %s, the token %s until %s", s.ID, s.Expires, j.ID, j.Expires)
	}
	return j
}

// refusedJWT wants no JWT-SVID, and to know that before the caller gives up.
func refusedJWT(t *testing.T, a *agent.Agent, p attest.Peer, kind fault.Kind, says string, audience ...string) {
	t.Helper()
	begun := time.Now()
	got, err := a.FetchJWTs(t.Context(), p, agent.JWTRequest{Audience: audience})
	if passed := time.Since(begun); passed > soonEnough {
		t.Errorf("it took %s", passed)
	}
	var f *fault.Error
	if !errors.As(err, &f) || f.Kind != kind || !strings.Contains(f.What, says) {
		t.Errorf("it got %v, %v", got, err)
	}
}

func signedJWTs(server *agenttest.Authority, of string) int {
	return server.Count(func() int { return server.SignedJWTs[of] })
}

func TestJWTIsSignedOncePerAudience(t *testing.T) {
	server := started(t)
	server.Apply(entry("web", "alice"))
	a, _ := agenttest.Run(t, config(t, server))
	p := newProcess(1)
	first := jwt(t, a, p, "db", "cache")
	if got := parsed(t, first); !cmp.Equal(got.Audience, []string{"db", "cache"}) || got.ID.String() != "spiffe://example.org/web" {
		t.Errorf("it is for %v, of %s", got.Audience, got.ID)
	}
	for _, same := range [][]string{{"db", "cache"}, {"cache", "db"}, {"cache", "db", "cache"}} {
		if got := jwt(t, a, newProcess(1), same...); got != first {
			t.Errorf("%v is another one", same)
		}
	}
	for _, other := range [][]string{{"db"}, {"cache"}, {"db;cache"}, {"db", "Cache"}, {"db", "cache", "x"}} {
		got := jwt(t, a, p, other...)
		if got.Token == first.Token || !cmp.Equal(parsed(t, got).Audience, other) {
			t.Errorf("%q gets one for %q", other, parsed(t, got).Audience)
		}
	}
	if n := server.Count(func() int { return len(server.SignedJWTs) }); n != 6 || signedJWTs(server, "web db,cache") != 1 {
		t.Errorf("%d audiences were signed, the first %d times", n, signedJWTs(server, "web db,cache"))
	}
	if n := a.Status().JWTs; n != 6 {
		t.Errorf("%d are held", n)
	}
}

func TestManyWhoAskAtOnceCostOneSignature(t *testing.T) {
	server := started(t)
	server.Apply(entry("web", "alice"))
	a, _ := agenttest.Run(t, config(t, server))
	asked, answer := make(chan struct{}), make(chan struct{})
	server.Lock()
	server.BeforeJWT = func(context.Context, *nodev1.SignJWTRequest) error {
		close(asked) // a second time it would panic
		<-answer
		return nil
	}
	server.Unlock()
	<-a.Synced()
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() { jwt(t, a, newProcess(1), "db") })
	}
	<-asked
	close(answer)
	all.Wait()
	if n := signedJWTs(server, "web db"); n != 1 {
		t.Errorf("signed %d times", n)
	}
}

// WAPI-52, WAPI-53, WAPI-56, WAPI-57.
func TestJWTsAreInTheOrderOfIdentities(t *testing.T) {
	server := started(t)
	second, third, other := entry("b", "alice"), entry("c", "alice"), entry("d", "bob")
	second.Hint, third.Hint = "main", "main"
	server.Apply(third, second, entry("e", "alice"), other)
	a, _ := agenttest.Run(t, config(t, server))
	p := newProcess(1)
	v := next(t, subscribe(t, a, p), "all", holds("b", "c", "e"))
	got := jwts(t, a, p, "db")
	for i, identity := range v.Identities {
		if got[i].Entry != identity.Entry || got[i].ID != identity.ID || got[i].Hint != identity.Hint {
			t.Errorf("%d is %s of %s, its X.509-SVID %s", i, got[i].Hint, got[i].Entry, identity.Entry)
		}
		parsed(t, got[i])
	}
	for _, row := range []struct {
		id   string
		want []agent.JWTSVID
	}{
		{"spiffe://example.org/c", got[1:2]},
	} {
		one, err := a.FetchJWTs(t.Context(), p, agent.JWTRequest{Audience: []string{"db"}, ID: spiffeid.RequireFromString(row.id)})
		if err != nil || !slices.Equal(one, row.want) {
			t.Errorf("of %s there is %v, %v", row.id, one, err)
		}
	}
	for _, other := range []string{"d", "nobody"} { // what another may hold, and what nobody may, is denied alike
		none, err := a.FetchJWTs(t.Context(), p, agent.JWTRequest{Audience: []string{"db"}, ID: spiffeid.RequireFromString("spiffe://example.org/" + other)})
		var f *fault.Error
		if !errors.As(err, &f) || f.Kind != fault.Denied || f.Code != fault.OtherIdentity || len(none) > 0 ||
			f.What != "no identity issued with that SPIFFE ID; this process may hold spiffe://example.org/b, spiffe://example.org/c, spiffe://example.org/e" {
			t.Errorf("of %s there is %v, %v", other, none, err)
		}
	}
	if len(got) != 3 {
		t.Errorf("%d for three entries", len(got))
	}
	if none := jwts(t, a, newProcess(3), "db"); len(none) != 0 {
		t.Errorf("a stranger gets %v", none)
	}
}

func TestAudienceIsBounded(t *testing.T) {
	server := started(t)
	server.Apply(entry("web", "alice"))
	a, _ := agenttest.Run(t, config(t, server))
	<-a.Synced()
	most := slices.Repeat([]string{strings.Repeat("x", 300)}, 32)
	for i := range most {
		most[i] += fmt.Sprint(i)
	}
	jwt(t, a, newProcess(1), most...)
	for name, audience := range map[string][]string{
		"none": nil, "empty": {""}, "empty beside another": {"db", ""}, "33": append(most[:32:32], "y"), "1025 bytes": {strings.Repeat("x", 1025)},
		"no text": {"\xff"}, "a line break": {"a\nb"}, "a zero byte": {"a\x00b"}, "more than fits": slices.Repeat([]string{strings.Repeat("x", 1000)}, 32),
	} {
		t.Run(name, func(t *testing.T) { refusedJWT(t, a, newProcess(1), fault.Invalid, "audience", audience...) })
	}
}

// The clock is moved on: five minutes are too long for a test.
func TestJWTIsRenewedWhileSomebodyAsks(t *testing.T) {
	t.Parallel() // it waits
	server := started(t)
	server.Apply(entry("web", "alice"))
	c := config(t, server)
	c.Now = server.Now
	a, _ := agenttest.Run(t, c)
	p := newProcess(1)
	first := jwt(t, a, p, "db")
	move := func(by time.Duration) { server.Ahead.Add(int64(by)) }

	move(2 * time.Minute) // 45 hundredths of its life are 2 min 15 s
	if got := jwt(t, a, p, "db"); got != first || signedJWTs(server, "web db") != 1 {
		t.Error("it was renewed before half of its life")
	}
	move(time.Minute)
	agenttest.Await(t, "the renewal", func() bool { return signedJWTs(server, "web db") == 2 })
	agenttest.Await(t, "the newer one", func() bool { return jwt(t, a, p, "db").Expires.After(first.Expires) })

	second := jwt(t, a, p, "db")
	move(3 * time.Minute)
	agenttest.Await(t, "another renewal", func() bool { return signedJWTs(server, "web db") == 3 })
	agenttest.Await(t, "the third", func() bool { return jwt(t, a, p, "db").Expires.After(second.Expires) })
	move(4 * time.Minute)  // which is more than three quarters of its life
	jwt(t, a, p, "marker") // the loop that asks for it would ask for what is due too
	agenttest.Await(t, "a look at what is due", func() bool { return a.Status().JWTs == 2 })
	if n := signedJWTs(server, "web db"); n != 3 {
		t.Errorf("it was signed %d times, the last time for nobody", n)
	}
	old := jwt(t, a, p, "db") // it is past its half, and given at once
	agenttest.Await(t, "a renewal behind that", func() bool { return signedJWTs(server, "web db") == 4 })
	agenttest.Await(t, "a younger one", func() bool { return jwt(t, a, p, "db").Expires.After(old.Expires) })
	move(20 * time.Minute)
	if got := jwt(t, a, p, "db"); got.Expires.Before(server.Now()) {
		t.Errorf("it ended %s ago", server.Now().Sub(got.Expires))
	}
}

func TestJWTsAreServedWhileTheServerIsAway(t *testing.T) {
	t.Parallel() // it waits
	server := started(t)
	server.Apply(entry("web", "alice"))
	c := config(t, server)
	c.Now = server.Now
	a, _ := agenttest.Run(t, c)
	p := newProcess(1)
	first := jwt(t, a, p, "db")
	server.Stop()
	agenttest.Await(t, "the break", func() bool { return !a.Status().Connected })
	refusedJWT(t, a, p, fault.Unavailable, "no server answers", "new")
	server.Ahead.Store(int64(5*time.Minute - 15*time.Second))
	if got := jwt(t, a, p, "db"); got != first {
		t.Error("it is another one")
	}
	server.Ahead.Store(int64(5*time.Minute - 4*time.Second)) // five are the least
	refusedJWT(t, a, p, fault.Unavailable, "no server answers", "db")
	server.Start()
	agenttest.Await(t, "the server", func() bool { return a.Status().Connected })
	if got := jwt(t, a, p, "db"); !got.Expires.After(first.Expires) {
		t.Error("it is the old one")
	}
}

// A node whose clock is behind must not hand out what has ended for everybody else.
func TestJWTEndsByTheSlowerClockToo(t *testing.T) {
	t.Parallel() // it waits
	server := started(t)
	server.JWTTTL = 40 * time.Second
	server.Ahead.Store(int64(50 * time.Second))
	server.Apply(entry("web", "alice"))
	c := config(t, server)
	var ahead atomic.Int64
	c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	a, _ := agenttest.Run(t, c)
	p := newProcess(1)
	first := jwt(t, a, p, "db")
	server.Stop()
	agenttest.Await(t, "the break", func() bool { return !a.Status().Connected })
	ahead.Store(int64(20 * time.Second))
	if got := jwt(t, a, p, "db"); got != first {
		t.Error("it is another one")
	}
	ahead.Store(int64(39 * time.Second)) // the token says that it has 50 s more
	refusedJWT(t, a, p, fault.Unavailable, "no server answers", "db")
}

// The server takes calls and answers none: nothing that is held waits for that.
func TestJWTsAreServedWhileTheServerHangs(t *testing.T) {
	t.Parallel() // it waits
	server := started(t)
	server.Apply(entry("web", "alice"))
	c := config(t, server)
	c.Now = server.Now
	a, _ := agenttest.Run(t, c)
	p := newProcess(1)
	first := jwt(t, a, p, "db")
	hung := make(chan struct{}, 10)
	server.Lock()
	server.BeforeJWT = func(ctx context.Context, _ *nodev1.SignJWTRequest) error {
		hung <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	server.Unlock()
	server.Ahead.Store(int64(3 * time.Minute))
	jwt(t, a, p, "db") // which has the renewal asked for, if the loop did not
	<-hung
	begun := time.Now()
	if got := jwt(t, a, p, "db"); got != first || time.Since(begun) > time.Second {
		t.Errorf("it took %s", time.Since(begun))
	}
	refusedJWT(t, a, p, fault.Unavailable, "the server does not answer in time", "new")
}

var busy = fault.Status(fault.New(fault.Unavailable, nil, "no JWT key signs yet").With(fault.AuthorityMissing, ""))

func TestRefusalThatPassesIsWaitedOut(t *testing.T) {
	server := started(t)
	server.Apply(entry("web", "alice"))
	a, _ := agenttest.Run(t, config(t, server))
	left := 3
	server.Lock()
	server.BeforeJWT = func(context.Context, *nodev1.SignJWTRequest) error {
		if left--; left > 0 {
			return busy
		}
		return nil
	}
	server.Unlock()
	parsed(t, jwt(t, a, newProcess(1), "db"))
}

func TestRefusalIsSaid(t *testing.T) {
	for _, row := range []struct {
		name  string
		err   error
		kind  fault.Kind
		says  string
		stays bool // it is said until the client gives up
	}{
		{"the audience is no good", status.Error(codes.InvalidArgument, "the audience cannot be issued"), fault.Invalid, "the audience cannot be issued", false},
		{"the server issues none", status.Error(codes.Unimplemented, "unknown"), fault.Unavailable, "the server issues no JWT-SVIDs", false},
		{"no key signs yet", busy, fault.Unavailable, "no JWT key signs yet", true},
		{"a fault of the server's", status.Error(codes.Internal, "internal error"), fault.Unavailable, "the server does not sign one", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel() // some wait
			server := started(t)
			server.Apply(entry("web", "alice"))
			a, _ := agenttest.Run(t, config(t, server))
			server.Lock()
			server.BeforeJWT = func(context.Context, *nodev1.SignJWTRequest) error { return row.err }
			server.Unlock()
			<-a.Synced()
			agenttest.Await(t, "the server", func() bool { return a.Status().Connected })
			begun := time.Now()
			refusedJWT(t, a, newProcess(1), row.kind, row.says, "db")
			if waited := time.Since(begun) > time.Second; waited != row.stays {
				t.Errorf("it took %s", time.Since(begun))
			}
		})
	}
}

// Workloads take the first, which must not become another because it cannot be signed just now.
func TestFirstJWTIsNeverLeftOut(t *testing.T) {
	server := started(t)
	server.Apply(entry("a", "alice"), entry("b", "alice"))
	a, _ := agenttest.Run(t, config(t, server))
	next(t, subscribe(t, a, newProcess(1)), "both", holds("a", "b"))
	refuse := func(name string) {
		server.Lock()
		defer server.Unlock()
		server.Refuse = func(entry string) bool { return entry == name }
	}
	refuse("b")
	if got := jwt(t, a, newProcess(1), "one"); got.Entry != "a" {
		t.Errorf("it gets %s", got.Entry)
	}
	refuse("a")
	refusedJWT(t, a, newProcess(1), fault.Unavailable, "does not sign", "two")
}

// What does not verify with the bundle that workloads have is not handed out.
func TestJWTThatDoesNotVerifyIsRefused(t *testing.T) {
	other := agenttest.New(t, "example.org")
	claims := func() map[string]any {
		return map[string]any{"sub": "spiffe://example.org/web", "aud": []string{"db"}, "exp": time.Now().Add(time.Minute).Unix()}
	}
	for name, bend := range map[string]func(map[string]any, *nodev1.JWTSigningResult){
		"another ID":          func(c map[string]any, _ *nodev1.JWTSigningResult) { c["sub"] = "spiffe://example.org/other" },
		"another audience":    func(c map[string]any, _ *nodev1.JWTSigningResult) { c["aud"] = []string{"other"} },
		"one audience more":   func(c map[string]any, _ *nodev1.JWTSigningResult) { c["aud"] = []string{"db", "other"} },
		"it ended":            func(c map[string]any, _ *nodev1.JWTSigningResult) { c["exp"] = time.Now().Add(-time.Minute).Unix() },
		"an unknown key":      func(_ map[string]any, r *nodev1.JWTSigningResult) { r.Token = other.JWT(claims()) },
		"it is no token":      func(_ map[string]any, r *nodev1.JWTSigningResult) { r.Token = "x" },
		"it is not there":     func(_ map[string]any, r *nodev1.JWTSigningResult) { r.Token = "" },
		"its signature is no": func(_ map[string]any, r *nodev1.JWTSigningResult) { r.Token = r.Token[:len(r.Token)-4] + "AAAA" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // some wait
			server := started(t)
			server.Apply(entry("web", "alice"))
			a, _ := agenttest.Run(t, config(t, server))
			jwt(t, a, newProcess(1), "first")
			server.Lock()
			server.BendJWT = func(r *nodev1.JWTSigningResult) {
				c := claims()
				before := maps.Clone(c)
				if bend(c, r); !cmp.Equal(before, c) {
					server.Unlock()
					r.Token = server.JWT(c)
					server.Lock()
				}
			}
			server.Unlock()
			refusedJWT(t, a, newProcess(1), fault.Unavailable, "no JWT-SVID for this audience is held", "db")
		})
	}
}

func hintedEntry(name, user, hint string) *registrationv1.Entry {
	e := entry(name, user)
	e.Hint = hint
	return e
}

func TestJWTGoesWithItsEntry(t *testing.T) {
	t.Parallel() // it waits
	server := started(t)
	server.Apply(entry("web", "alice"))
	a, _ := agenttest.Run(t, config(t, server))
	p := newProcess(1)
	first := jwt(t, a, p, "db")

	server.Apply(hintedEntry("web", "alice", "told"))
	agenttest.Await(t, "the hint", func() bool { return jwt(t, a, p, "db").Hint == "told" })
	if got := jwt(t, a, p, "db"); got.Token != first.Token {
		t.Error("a hint costs no signature")
	}
	short := hintedEntry("web", "alice", "told")
	short.JwtTtl = durationpb.New(time.Minute)
	server.Apply(short)
	agenttest.Await(t, "the shorter life", func() bool { return jwt(t, a, p, "db").Expires.Before(first.Expires) })

	moved := entry("web", "alice")
	moved.SpiffeId = "spiffe://example.org/elsewhere"
	server.Apply(moved)
	agenttest.Await(t, "the other ID", func() bool { return parsed(t, jwt(t, a, p, "db")).ID.Path() == "/elsewhere" })

	other := entry("web", "bob")
	other.SpiffeId = moved.SpiffeId
	server.Apply(other)
	agenttest.Await(t, "the loss of the entry", func() bool { return len(jwts(t, a, p, "db")) == 0 })
	jwt(t, a, newProcess(2), "db")
	server.Remove("web")
	agenttest.Await(t, "the end of the entry", func() bool { return len(jwts(t, a, newProcess(2), "db")) == 0 && a.Status().JWTs == 0 })
}

func TestJWTGoesWithItsKey(t *testing.T) {
	server := started(t)
	server.Apply(entry("web", "alice"))
	a, _ := agenttest.Run(t, config(t, server))
	p := newProcess(1)
	first := jwt(t, a, p, "db")
	revision := a.Status().Revision
	server.RotateJWT(true)
	agenttest.Await(t, "the second key", func() bool { return a.Status().Revision > revision })
	if got := jwt(t, a, p, "db"); got != first {
		t.Error("a key that is added takes nothing away")
	}
	server.RotateJWT(false)
	agenttest.Await(t, "one of the third key", func() bool { return parsed(t, jwt(t, a, p, "db")).KeyID != parsed(t, first).KeyID })
}

func TestBannedNodeHandsOutNoJWT(t *testing.T) {
	t.Parallel() // it waits
	server := started(t)
	server.Apply(entry("web", "alice"))
	a, _ := agenttest.Run(t, config(t, server))
	p := newProcess(1)
	jwt(t, a, p, "db")
	server.Lock()
	for _, node := range server.Nodes {
		node.Locked = true
	}
	server.Unlock()
	server.Stop()
	server.Start()
	agenttest.Await(t, "the refusal", func() bool { return a.Status().Degraded != "" && a.Status().JWTs == 0 })
	refusedJWT(t, a, p, fault.Unavailable, "the server turned this node away", "db")
}

func TestJWTIsForTheProcessThatWasAttested(t *testing.T) {
	server := started(t)
	server.Apply(entry("web", "alice"))
	a, _ := agenttest.Run(t, config(t, server))
	p := newProcess(1)
	jwt(t, a, p, "db")
	p.lost.Store(true) // exec
	refusedJWT(t, a, p, fault.Denied, "is no longer what it was", "db")
	if v, err := a.ViewOf(t.Context(), p); err == nil || v.Known {
		t.Errorf("ViewOf: %+v, %v", v, err)
	}
}

func TestFetchingJWTsAttestsOncePerConnection(t *testing.T) {
	server := started(t)
	server.Apply(entry("web", "alice"))
	attestor := &looks{asks: func(string, string) bool { return false }}
	c := server.Config(t)
	c.Workload = []attest.WorkloadAttestor{attestor}
	a, _ := agenttest.Run(t, c)
	p := newProcess(1)
	for range 3 {
		jwt(t, a, p, "db")
		if v, err := a.ViewOf(t.Context(), p); err != nil || len(v.Bundles) != 1 {
			t.Errorf("ViewOf: %+v, %v", v, err)
		}
	}
	next(t, subscribe(t, a, p), "the identity", holds("web"))
	if n := attestor.n.Load(); n != 1 {
		t.Errorf("it took %d looks", n)
	}
}

// A user that asks for ever new audiences is held up, and neither grows the agent nor pushes out what another user of the same entry
// holds.
func TestEndlessAudiencesCostTheirUserOnly(t *testing.T) {
	server := started(t)
	server.Apply(entry("web", "alice"))
	c := server.Config(t)
	c.Workload = []attest.WorkloadAttestor{fixed{{Method: "unix", Key: "user", Value: "alice"}}}
	var looks atomic.Int64 // at the clock: what passes between two asks does not depend on the machine
	begun := time.Now()
	c.Now = func() time.Time { return begun.Add(time.Duration(looks.Add(1)) * time.Millisecond) }
	a, _ := agenttest.Run(t, c)
	modest, greedy := newProcess(1), newProcess(2)
	jwt(t, a, modest, "db")
	jwt(t, a, greedy, "used")
	refused := 0
	for i := range 400 {
		_, err := a.FetchJWTs(t.Context(), greedy, agent.JWTRequest{Audience: []string{fmt.Sprint(i)}})
		if fault.Is(err, fault.Unavailable) && strings.Contains(err.Error(), "too many audiences") {
			refused++
		}
		jwt(t, a, greedy, "used")
	}
	if refused == 0 {
		t.Error("nothing held it up")
	}
	jwt(t, a, modest, "db")
	if n := server.Count(func() int { return server.SignedJWTs["web db"] + server.SignedJWTs["web used"] }); n != 2 {
		t.Errorf("what is in use was signed %d times", n)
	}
	if n := a.Status().JWTs; n > 257 {
		t.Errorf("%d are held", n)
	}
}

// A user with hundreds of asks under way holds up another's by one call at most.
func TestUsersTakeTurns(t *testing.T) {
	server := started(t)
	server.Apply(entry("web", "alice"))
	c := server.Config(t)
	c.Workload = []attest.WorkloadAttestor{fixed{{Method: "unix", Key: "user", Value: "alice"}}}
	a, _ := agenttest.Run(t, c)
	jwt(t, a, newProcess(1), "first")
	calls, answer := make(chan []string, 100), make(chan struct{})
	server.Lock()
	server.BeforeJWT = func(_ context.Context, r *nodev1.SignJWTRequest) error {
		var asked []string
		for _, one := range r.GetRequests() {
			asked = append(asked, one.GetAudience()[0])
		}
		calls <- asked
		<-answer
		return nil
	}
	server.Unlock()
	var all sync.WaitGroup
	ask := func(p attest.Peer, audience string) {
		all.Go(func() { _, _ = a.FetchJWTs(t.Context(), p, agent.JWTRequest{Audience: []string{audience}}) })
	}
	for i := range 200 {
		ask(newProcess(2), fmt.Sprint(i))
	}
	agenttest.Await(t, "the many", func() bool { return a.Status().JWTsPending == 200 })
	<-calls
	ask(newProcess(1), "modest")
	agenttest.Await(t, "the one", func() bool { return a.Status().JWTsPending == 201 })
	close(answer)
	if second := <-calls; !slices.Contains(second, "modest") || len(second) < 64 {
		t.Errorf("the second call is for %v", second)
	}
	all.Wait()
}

func TestExpiredEntryGivesNoJWT(t *testing.T) {
	server := started(t)
	e := entry("web", "alice")
	e.Expires = timestamppb.New(time.Now().Add(time.Minute))
	server.Apply(e)
	c := config(t, server)
	c.Now = server.Now
	a, _ := agenttest.Run(t, c)
	jwt(t, a, newProcess(1), "db")
	server.Ahead.Store(int64(time.Minute))
	if got := jwts(t, a, newProcess(1), "db"); len(got) != 0 {
		t.Errorf("it gets %v", got)
	}
}

// What all shelves hold together is bounded too.
func TestJWTsAreBoundedInBytes(t *testing.T) {
	server := started(t)
	e := []string{"a", "b", "c"}
	for _, name := range e {
		server.Apply(entry(name, "alice"))
	}
	c := server.Config(t)
	c.Workload = []attest.WorkloadAttestor{fixed{{Method: "unix", Key: "user", Value: "alice"}}}
	a, _ := agenttest.Run(t, c)
	next(t, subscribe(t, a, newProcess(1)), "all", holds(e...))
	modest, greedy := newProcess(1), newProcess(2)
	jwts(t, a, modest, "db")
	long := slices.Repeat([]string{strings.Repeat("x", 1000)}, 11)
	for i := range 95 {
		for j := range long {
			long[j] = fmt.Sprintf("%d %d %s", i, j, strings.Repeat("x", 1000))
		}
		_, _ = a.FetchJWTs(t.Context(), greedy, agent.JWTRequest{Audience: long}) // a slow machine may lose some
	}
	jwts(t, a, modest, "db")
	if n := signedJWTs(server, "a db"); n != 1 {
		t.Errorf("the modest one's was signed %d times", n)
	}
	if n := a.Status().JWTs; n < 100 || n > 240 { // 8 MiB of 15 KiB and twice 11 KiB each
		t.Errorf("%d are held", n)
	}
}

// No token in a log, however it is written there.
func TestJWT_30_TokensDoNotPrint(t *testing.T) {
	t.Parallel() // it waits
	server := started(t)
	server.Apply(entry("web", "alice"))
	c := config(t, server)
	var lines locked
	c.Log = slog.New(slog.NewJSONHandler(&lines, &slog.HandlerOptions{Level: slog.LevelDebug}))
	a, _ := agenttest.Run(t, c)
	got := jwt(t, a, newProcess(1), "db")
	server.Lock()
	server.BendJWT = func(r *nodev1.JWTSigningResult) { r.ExpiresUnix, r.Token = 0, r.Token+"A" }
	server.Unlock()
	_, err := a.FetchJWTs(t.Context(), newProcess(1), agent.JWTRequest{Audience: []string{"x"}})
	if err == nil {
		t.Error("a bent one was taken")
	}
	c.Log.Info("fetched", "svid", got, "token", got.Token, "err", err)
	text := lines.String() + fmt.Sprintf("%v %+v %#v %s %q", got, got, got, got.Token, got.Token)
	if strings.Contains(text, "eyJ") || !strings.Contains(text, "[token]") {
		t.Error(text)
	}
}

// locked is a buffer for a log.
type locked struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// A node may see any number of users, one after the other.
func TestUsersWhoAskNoMoreAreForgotten(t *testing.T) {
	t.Parallel() // it waits
	server := started(t)
	server.Apply(entry("web", "alice"), entry("api", "bob"))
	c := config(t, server)
	c.Now = server.Now
	a, _ := agenttest.Run(t, c)
	jwt(t, a, newProcess(1), "db")
	jwt(t, a, newProcess(2), "db")
	if n := agent.Shelves(a); n != 2 {
		t.Errorf("two users have %d shelves", n)
	}
	server.Ahead.Store(int64(20 * time.Minute))
	agenttest.Await(t, "that both are forgotten", func() bool { return agent.Shelves(a) == 0 })
	jwt(t, a, newProcess(1), "db")
}

// What a denial names is bounded: it travels in a header.
func TestDenialNamesSomeOfMany(t *testing.T) {
	server := started(t)
	long := strings.Repeat("x", 900)
	for i := range 12 {
		server.Apply(entry(fmt.Sprintf("e%02d", i), "alice"))
	}
	first, second := entry("a", "bob"), entry("b", "bob")
	first.SpiffeId, second.SpiffeId = "spiffe://example.org/a"+long, "spiffe://example.org/b"+long
	server.Apply(first, second)
	a, _ := agenttest.Run(t, config(t, server))
	<-a.Synced()
	for uid, want := range map[uint32]string{1: "/e00, spiffe://example.org/e01", 2: long + " and 1 more"} {
		_, err := a.FetchJWTs(t.Context(), newProcess(uid), agent.JWTRequest{Audience: []string{"db"}, ID: spiffeid.RequireFromString("spiffe://example.org/none")})
		if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), want) || uid == 1 && !strings.HasSuffix(err.Error(), "/e09 and 2 more") || len(err.Error()) > 2000 {
			t.Errorf("user %d is told %v", uid, err)
		}
	}
}
