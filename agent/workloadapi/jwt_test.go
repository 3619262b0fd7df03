package workloadapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	client "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/agent/agenttest"
	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/attest"
)

// soonEnough is when an ask that cannot be answered has ended. It is 1.5 s; a machine with much to do takes longer.
const soonEnough = 4 * time.Second

func fetchJWT(t *testing.T, conn *grpc.ClientConn, id string, audience ...string) (*workload.JWTSVIDResponse, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(withHeader(t.Context(), "true"), within)
	defer cancel()
	return workload.NewSpiffeWorkloadAPIClient(conn).FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: audience, SpiffeId: id})
}

// mustFetchJWT gives the names of the SVIDs too.
func mustFetchJWT(t *testing.T, conn *grpc.ClientConn, id string, audience ...string) (svids []*workload.JWTSVID, named []string) {
	t.Helper()
	response, err := fetchJWT(t, conn, id, audience...)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range response.GetSvids() {
		named = append(named, strings.TrimPrefix(s.GetSpiffeId(), "spiffe://example.org/"))
	}
	return response.GetSvids(), named
}

func validate(t *testing.T, conn *grpc.ClientConn, audience, token string) (*workload.ValidateJWTSVIDResponse, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(withHeader(t.Context(), "true"), within)
	defer cancel()
	return workload.NewSpiffeWorkloadAPIClient(conn).ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: audience, Svid: token})
}

func jwtBundles(t *testing.T, conn *grpc.ClientConn) watch[*workload.JWTBundlesResponse] {
	t.Helper()
	ctx, cancel := context.WithTimeout(withHeader(t.Context(), "true"), within)
	t.Cleanup(cancel)
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return watch[*workload.JWTBundlesResponse]{t, stream.Recv}
}

func wantCode(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	if s := status.Convert(err); s.Code() != code || !strings.Contains(s.Message(), text) {
		t.Errorf("got %v, want %s %q", err, code, text)
	}
}

func served(t *testing.T, n *node) *grpc.ClientConn {
	t.Helper()
	n.start()
	<-n.agent.Synced()
	return agenttest.Dial(t, n.path)
}

func TestWAPI_50_AudienceIsMandatory(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("web"))
	conn := served(t, n)
	for _, audience := range [][]string{nil, {""}, {"db", ""}, {strings.Repeat("x", 1025)}, slices.Repeat([]string{"x"}, 33)} {
		_, err := fetchJWT(t, conn, "", audience...)
		wantCode(t, err, codes.InvalidArgument, "audience")
	}
}

func TestJWTSVIDsOfTheIdentitiesAskedFor(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("b"), entry("a"), entry("other", "/another/executable"))
	conn := served(t, n)
	t.Run("WAPI-51, WAPI-52, WAPI-55, WAPI-57: all, in the order of the X.509-SVIDs", func(t *testing.T) {
		want := names(svids(t, conn).next())
		for range 5 {
			got, named := mustFetchJWT(t, conn, "", "one", "two")
			if !cmp.Equal(named, want) || !cmp.Equal(want, []string{"a", "b"}) {
				t.Fatalf("it gets %v, and the X.509-SVIDs %v", named, want)
			}
			for _, s := range got {
				j, err := jwtsvid.ParseInsecure(s.GetSvid(), []string{"two"})
				if err != nil {
					t.Fatal(err)
				}
				if j.ID.String() != s.GetSpiffeId() || !cmp.Equal(j.Audience, []string{"one", "two"}) {
					t.Errorf("%s is of %s, for %v", s.GetSpiffeId(), j.ID, j.Audience)
				}
			}
		}
	})
	t.Run("WAPI-53: one", func(t *testing.T) {
		if _, named := mustFetchJWT(t, conn, "spiffe://example.org/b", "db"); !cmp.Equal(named, []string{"b"}) {
			t.Errorf("it gets %v", named)
		}
	})
	for _, row := range []struct {
		name string
		code codes.Code
		says string
		ids  []string
	}{
		{"WAPI-53: none of the caller's", codes.PermissionDenied, "no identity issued",
			[]string{"spiffe://example.org/other", "spiffe://example.org/nobody", "spiffe://foreign.org/a", "spiffe://example.org"}},
		{"WAPI-54: none at all", codes.InvalidArgument, "spiffe_id",
			[]string{"foo", "spiffe://example.org/", "spiffe://example.org/a/", "SPIFFE://example.org/a"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, id := range row.ids {
				_, err := fetchJWT(t, conn, id, "db")
				wantCode(t, err, row.code, row.says)
			}
		})
	}
}

func TestWAPI_56_CLIENT_14_HintsAreUnique(t *testing.T) {
	n := newNode(t)
	n.server.Apply(hinted("a", "x"), hinted("b", "x"), hinted("c", "y"))
	got, _ := mustFetchJWT(t, served(t, n), "", "db")
	if hints := []string{got[0].GetHint(), got[1].GetHint(), got[2].GetHint()}; !cmp.Equal(hints, []string{"x", "", "y"}) {
		t.Errorf("hints are %q", hints)
	}
}

// Without an entry, each of the three says so in the words that rust-spiffe looks for.
func TestCallerWithoutIdentityIsDeniedJWTs(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("other", "/another/executable"))
	conn := served(t, n)
	t.Run("WEP-20, CLIENT-03: FetchJWTSVID", func(t *testing.T) {
		_, err := fetchJWT(t, conn, "", "db")
		wantCode(t, err, codes.PermissionDenied, "no identity issued")
	})
	t.Run("WAPI-65, CLIENT-03: FetchJWTBundles", func(t *testing.T) {
		jwtBundles(t, conn).ends(codes.PermissionDenied, "no identity issued")
	})
	t.Run("WAPI-77, CLIENT-03: ValidateJWTSVID", func(t *testing.T) {
		_, err := validate(t, conn, "db", n.server.JWT(claims("web", "db")))
		wantCode(t, err, codes.PermissionDenied, "no identity issued")
	})
}

// What is not served says so; these answer something else to a process without an identity.
func TestWAPI_01_CLIENT_23_WhatIsNotServedSaysSo(t *testing.T) {
	n := newNode(t)
	conn := served(t, n)
	for method, served := range methods() {
		code := status.Code(call(withHeader(t.Context(), "true"), conn, "/SpiffeWorkloadAPI/"+method, nil))
		if want := code == codes.PermissionDenied || code == codes.InvalidArgument; want != served {
			t.Errorf("%s answers %s", method, code)
		}
	}
}

// While entries are unknown nobody is denied.
func TestWEP_18_CLIENT_02_JWTsAreUnavailableUntilEntriesAreKnown(t *testing.T) {
	t.Parallel() // it waits
	n := newNode(t)
	n.server.Apply(entry("web"))
	n.server.Stop()
	n.start()
	conn := agenttest.Dial(t, n.path)
	begun := time.Now()
	_, err := fetchJWT(t, conn, "", "db")
	wantCode(t, err, codes.Unavailable, "does not know its entries yet")
	if passed := time.Since(begun); passed > soonEnough {
		t.Errorf("it took %s", passed)
	}
	_, err = validate(t, conn, "db", "x")
	wantCode(t, err, codes.Unavailable, "")
	jwtBundles(t, conn).ends(codes.Unavailable, "")
}

func TestWAPI_58_NoServerIsUnavailable(t *testing.T) {
	t.Parallel() // it waits
	n := newNode(t)
	n.server.Apply(entry("web"))
	conn := served(t, n)
	held, _ := mustFetchJWT(t, conn, "", "held")
	n.server.Stop()
	agenttest.Await(t, "the break", func() bool { return !n.agent.Status().Connected })
	begun := time.Now()
	_, err := fetchJWT(t, conn, "", "new")
	wantCode(t, err, codes.Unavailable, "no JWT-SVID for this audience is held: no server answers")
	if passed := time.Since(begun); passed > soonEnough {
		t.Errorf("it took %s", passed)
	}
	if again, _ := mustFetchJWT(t, conn, "", "held"); again[0].GetSvid() != held[0].GetSvid() {
		t.Error("what is held is another one")
	}
	if _, err := validate(t, conn, "held", held[0].GetSvid()); err != nil {
		t.Errorf("validating without a server: %v", err)
	}
}

// R14.
func TestBundlesOfJWTKeys(t *testing.T) {
	n := newNode(t)
	foreign, keyless := agenttest.New(t, "foreign.org"), agenttest.New(t, "keyless.org")
	n.server.Change(foreign.Bundle())
	n.server.Trust("keyless.org", keyless.Root)
	n.server.Trust("unknown.org", keyless.Root)
	e := entry("web")
	e.FederatesWith = []string{"foreign.org", "keyless.org"}
	n.server.Apply(e)
	n.server.RotateJWT(true)
	got := jwtBundles(t, served(t, n)).next().GetBundles()
	t.Run("WAPI-60, WAPI-25, INT-07, CLIENT-12, CLIENT-20: our own and the federated, by ID", func(t *testing.T) {
		if ids := slices.Sorted(maps.Keys(got)); !cmp.Equal(ids, []string{"spiffe://example.org", "spiffe://foreign.org"}) {
			t.Fatalf("bundles of %v", ids)
		}
	})
	for id, count := range map[string]int{"spiffe://example.org": 2, "spiffe://foreign.org": 1} {
		t.Run("WAPI-61, WAPI-62, WAPI-63, CLIENT-19: the keys of "+id, func(t *testing.T) {
			b, err := jwtbundle.Parse(spiffeid.RequireTrustDomainFromString(id), got[id])
			if err != nil || len(b.JWTAuthorities()) != count {
				t.Errorf("%d keys, %v", len(b.JWTAuthorities()), err)
			}
			var set struct{ Keys []map[string]any }
			if err := json.Unmarshal(got[id], &set); err != nil {
				t.Fatal(err)
			}
			for _, key := range set.Keys {
				if names := slices.Sorted(maps.Keys(key)); !cmp.Equal(names, []string{"crv", "kid", "kty", "x", "y"}) {
					t.Errorf("a key has %v", names)
				}
			}
		})
	}
}

func TestWAPI_60_CLIENT_20_OwnBundleIsThereWithoutKeys(t *testing.T) {
	n := newNode(t)
	n.server.Trust("example.org", n.server.Root)
	n.server.Apply(entry("web"))
	conn := served(t, n)
	got := jwtBundles(t, conn).next().GetBundles()
	if string(got["spiffe://example.org"]) != `{"keys":[]}` || len(got) != 1 {
		t.Errorf("bundles are %q", got)
	}
	_, err := validate(t, conn, "db", n.server.JWT(claims("web", "db")))
	wantCode(t, err, codes.InvalidArgument, "publishes no keys")
}

// No bundle depends on an SVID that is not signed yet.
func TestWAPI_09_BundlesWaitForNoSVID(t *testing.T) {
	n := newNode(t)
	n.server.Refuse = func(string) bool { return true }
	n.server.Apply(entry("web"))
	conn := served(t, n)
	if got := jwtBundles(t, conn).next().GetBundles(); len(got) != 1 {
		t.Errorf("bundles of keys: %v", got)
	}
	if got := bundles(t, conn).next().GetBundles(); len(got) != 1 {
		t.Errorf("bundles: %v", got)
	}
}

func TestCLIENT_01_CLIENT_04_CLIENT_24_JWTBundleStreamTellsOfChangesOnly(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("web"))
	conn := served(t, n)
	w := jwtBundles(t, conn)
	first := w.next().GetBundles()["spiffe://example.org"]
	n.server.Apply(hinted("web", "told"), entry("more"))
	n.server.Change(n.server.Bundle())
	n.server.RotateJWT(true)
	second := w.next().GetBundles()["spiffe://example.org"]
	if strings.Count(string(second), `"kid"`) != 2 {
		t.Errorf("after a change that is none it was told %s, and before %s", second, first)
	}
	n.handler.Stop()
	w.ends(codes.Unavailable, "")
	n.stop()
	n.start()
	again := jwtBundles(t, agenttest.Dial(t, n.path))
	again.next()
	n.server.Remove("web")
	n.server.Remove("more")
	again.ends(codes.PermissionDenied, "no identity issued")
}

// claims are a token's, of an ID of ours.
func claims(name string, audience ...string) map[string]any {
	return map[string]any{"sub": "spiffe://example.org/" + name, "aud": audience, "exp": time.Now().Add(time.Minute).Unix(), "iat": time.Now().Unix()}
}

func TestWAPI_72_CLIENT_21_OwnClaimsAreGiven(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("web"))
	conn := served(t, n)
	c := claims("nobody", "db", "cache")
	c["iss"], c["n"], c["list"] = "https://example.org", 1.5, []any{"x", true, nil}
	got, err := validate(t, conn, "cache", n.server.JWT(c))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"sub": c["sub"], "aud": []any{"db", "cache"}, "exp": float64(c["exp"].(int64)), "iat": float64(c["iat"].(int64)),
		"iss": c["iss"], "n": 1.5, "list": c["list"]}
	if diff := cmp.Diff(want, got.GetClaims().AsMap()); diff != "" || got.GetSpiffeId() != c["sub"] {
		t.Errorf("of %s: %s", got.GetSpiffeId(), diff)
	}
	t.Run("WAPI-76: aud is a text", func(t *testing.T) {
		c["aud"] = "db"
		if got, err = validate(t, conn, "db", n.server.JWT(c)); err != nil || !cmp.Equal(got.GetClaims().AsMap()["aud"], any([]any{"db"})) {
			t.Errorf("aud is %v, %v", got.GetClaims().AsMap()["aud"], err)
		}
	})
}

func TestWAPI_72_OfForeignTokensThreeClaims(t *testing.T) {
	n := newNode(t)
	foreign, stranger := agenttest.New(t, "foreign.org"), agenttest.New(t, "stranger.org")
	n.server.Change(foreign.Bundle())
	n.server.Change(stranger.Bundle()) // which another entry federates with, and the caller's does not
	e, other := entry("web"), entry("other", "/another/executable")
	e.FederatesWith, other.FederatesWith = []string{"foreign.org"}, []string{"stranger.org"}
	n.server.Apply(e, other)
	conn := served(t, n)
	theirs := func(domain string) map[string]any {
		c := claims("web", "db")
		c["sub"], c["role"], c["iss"] = "spiffe://"+domain+"/web", "admin", "https://"+domain
		return c
	}
	got, err := validate(t, conn, "db", foreign.JWT(theirs("foreign.org")))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"sub": "spiffe://foreign.org/web", "aud": []any{"db"}, "exp": float64(theirs("foreign.org")["exp"].(int64))}
	if diff := cmp.Diff(want, got.GetClaims().AsMap()); diff != "" || got.GetSpiffeId() != "spiffe://foreign.org/web" {
		t.Errorf("of %s: %s", got.GetSpiffeId(), diff)
	}
	for name, token := range map[string]string{
		"WAPI-74: not federated with":           stranger.JWT(theirs("stranger.org")),
		"WAPI-74: our ID under a foreign key":   foreign.JWT(claims("web", "db")),
		"WAPI-74: a foreign ID under our key":   n.server.JWT(theirs("foreign.org")),
		"WAPI-74: a stranger's under a foreign": foreign.JWT(theirs("stranger.org")),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := validate(t, conn, "db", token)
			wantCode(t, err, codes.InvalidArgument, "")
		})
	}
}

// What makes a token invalid is tested in package svid, row by row; here is one of each kind.
func TestWAPI_73_CLIENT_21_WhatIsInvalidIsRefused(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("web"))
	conn := served(t, n)
	good := n.server.JWT(claims("web", "db"))
	if _, err := validate(t, conn, "db", good); err != nil {
		t.Fatal(err)
	}
	old, rootless := claims("web", "db"), claims("web", "db")
	old["exp"] = time.Now().Add(-11 * time.Second).Unix()
	rootless["sub"] = "spiffe://example.org"
	late := claims("web", "db")
	late["exp"] = time.Now().Add(-5 * time.Second).Unix()
	if _, err := validate(t, conn, "db", n.server.JWT(late)); err != nil {
		t.Errorf("five seconds after its end: %v", err)
	}
	for name, row := range map[string][2]string{
		"WAPI-70, WAPI-13: no audience":          {"", good},
		"WAPI-70, WAPI-13: no token":             {"db", ""},
		"WAPI-70, WAPI-13: nothing at all":       {"", ""},
		"WAPI-71: garbage":                       {"db", "garbage"},
		"WAPI-71: another audience":              {"cache", good},
		"WAPI-71: another case":                  {"DB", good},
		"WAPI-71: eleven seconds late":           {"db", n.server.JWT(old)},
		"WAPI-71: an ID without path":            {"db", n.server.JWT(rootless)},
		"WAPI-71: another authority's":           {"db", agenttest.New(t, "example.org").JWT(claims("web", "db"))},
		"WAPI-64: by the key of the X.509-SVIDs": {"db", n.server.JWTByCA(claims("web", "db"))},
		"WAPI-71: a line break":                  {"db", good + "\n"},
		"WAPI-71: a cut signature":               {"db", good[:len(good)-2]},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := validate(t, conn, row[0], row[1])
			wantCode(t, err, codes.InvalidArgument, "")
			if strings.Contains(fmt.Sprint(err), "eyJ") { // JWT-30
				t.Errorf("the answer repeats the token: %v", err)
			}
		})
	}
}

// counting is an attestor that counts.
type counting struct {
	attest.WorkloadAttestor
	looks atomic.Int32
}

func (c *counting) Attest(ctx context.Context, p attest.Peer) ([]attest.Selector, error) {
	c.looks.Add(1)
	return c.WorkloadAttestor.Attest(ctx, p)
}

func TestCallerIsAttestedOncePerConnectionForEveryCall(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("web"))
	attestor := &counting{WorkloadAttestor: n.config.Workload[0]}
	n.config.Workload = []attest.WorkloadAttestor{attestor}
	conn := served(t, n)
	for range 3 {
		got, _ := mustFetchJWT(t, conn, "", "db")
		if _, err := validate(t, conn, "db", got[0].GetSvid()); err != nil {
			t.Error(err)
		}
		jwtBundles(t, conn).next()
		svids(t, conn).next()
	}
	if looks := attestor.looks.Load(); looks != 1 {
		t.Errorf("it took %d looks", looks)
	}
}

// What the process becomes gets nothing that was attested before.
func TestWEP_15_JWTsAreTheCallers(t *testing.T) {
	n := started(t)
	one, changed := agenttest.NewCaller(t, n.path), agenttest.NewCaller(t, n.path)
	n.server.Apply(entry("one", one.Path), entry("both"))
	agenttest.Await(t, "the entries", func() bool { return n.agent.Status().SVIDs == 2 })
	if _, named := mustFetchJWT(t, one.Conn, "", "db"); !cmp.Equal(named, []string{"both", "one"}) {
		t.Errorf("the first gets %v", named)
	}
	got, named := mustFetchJWT(t, changed.Conn, "", "db")
	if !cmp.Equal(named, []string{"both"}) {
		t.Errorf("the second gets %v", named)
	}
	changed.Become()
	_, err := fetchJWT(t, changed.Conn, "", "db")
	wantCode(t, err, codes.PermissionDenied, "")
	_, err = validate(t, changed.Conn, "db", got[0].GetSvid())
	wantCode(t, err, codes.PermissionDenied, "")
}

// A caller that waits for the server does not hold up the agent's end, and is told to try again.
func TestWaitingForAJWTEndsWithTheAgent(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("web"))
	conn := served(t, n)
	asked := make(chan struct{}, 10)
	n.server.Lock()
	n.server.BeforeJWT = func(ctx context.Context, _ *nodev1.SignJWTRequest) error {
		asked <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	n.server.Unlock()
	ended := make(chan error, 1)
	go func() {
		_, err := fetchJWT(t, conn, "", "db")
		ended <- err
	}()
	<-asked
	n.stopAgent()
	wantCode(t, <-ended, codes.Unavailable, "")
}

// Go-spiffe's source through a life of a workload.
func TestINT_01_CLIENT_20_GoSpiffeJWTSource(t *testing.T) {
	t.Parallel() // it waits
	n := newNode(t)
	n.server.Apply(entry("b"), entry("a"))
	n.start()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	source, err := client.NewJWTSource(ctx, client.WithClientOptions(client.WithAddr("unix://"+n.path), client.WithBackoffStrategy(soon{})))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = source.Close() }()
	fetch := func(audience string, more ...string) *jwtsvid.SVID {
		t.Helper()
		s, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience, ExtraAudiences: more})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	check := func(s *jwtsvid.SVID, audience string) {
		t.Helper()
		if _, err := jwtsvid.ParseAndValidate(s.Marshal(), source, []string{audience}); err != nil {
			t.Errorf("go-spiffe with our bundle: %v", err)
		}
		if got, err := client.ValidateJWTSVID(ctx, s.Marshal(), audience, client.WithAddr("unix://"+n.path)); err != nil || got.ID != s.ID {
			t.Errorf("ValidateJWTSVID: %v, %v", got, err)
		}
	}
	s := fetch("db", "cache")
	if s.ID.String() != "spiffe://example.org/a" || s.Hint != "" || !cmp.Equal(s.Audience, []string{"db", "cache"}) {
		t.Errorf("it is %s for %v", s.ID, s.Audience)
	}
	check(s, "cache")
	all, err := source.FetchJWTSVIDs(ctx, jwtsvid.Params{Audience: "db"})
	if err != nil || len(all) != 2 {
		t.Errorf("all: %v, %v", all, err)
	}
	one, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "db", Subject: spiffeid.RequireFromString("spiffe://example.org/b")})
	if err != nil || one.ID.Path() != "/b" {
		t.Errorf("by subject: %v, %v", one, err)
	}
	n.server.RotateJWT(true)
	agenttest.Await(t, "the second key", func() bool {
		b, err := source.GetJWTBundleForTrustDomain(s.ID.TrustDomain())
		return err == nil && len(b.JWTAuthorities()) == 2
	})
	check(s, "db")
	check(fetch("after"), "after")
	n.stop()
	n.start()
	agenttest.Await(t, "the agent's return", func() bool {
		_, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "again"})
		return err == nil
	})
	check(fetch("again"), "again")
	check(s, "db") // from before the restart
}
