package registration_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/registration"
)

var domain = spiffeid.RequireTrustDomainFromString("example.org")

func selectors(t testing.TB, list ...string) []attest.Selector {
	t.Helper()
	var out []attest.Selector
	for _, text := range list {
		s, err := attest.ParseSelector(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	slices.SortFunc(out, attest.Selector.Compare)
	return out
}

func id(s string) spiffeid.ID { return spiffeid.RequireFromString(s) }

// orders is an entry with everything in it.
func orders(t testing.TB) registration.Entry {
	return registration.Entry{
		Name: "orders", ID: id("spiffe://example.org/orders"),
		Where: selectors(t, "x509pop:subject:web-1"), Match: selectors(t, "unix:uid:1000", "unix:path:/usr/bin/orders"),
		TTL: time.Hour, JWTTTL: 5 * time.Minute, DNS: []string{"orders.internal"}, Hint: "primary",
		FederatesWith: []spiffeid.TrustDomain{spiffeid.RequireTrustDomainFromString("partner.org")},
		Expires:       time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC), Revision: 12,
	}
}

func named(t testing.TB, name string, match ...string) registration.Entry {
	return registration.Entry{Name: name, ID: id("spiffe://example.org/" + name), Any: true, Match: selectors(t, match...)}
}

func TestMatchNeedsEverySelector(t *testing.T) {
	workload := selectors(t, "unix:uid:1000", "unix:gid:1000", "unix:path:/usr/bin/orders")
	for _, row := range []struct {
		name  string
		match []string
		want  bool
	}{
		{"one selector that the workload has", []string{"unix:uid:1000"}, true},
		{"all that the workload has", []string{"unix:uid:1000", "unix:gid:1000", "unix:path:/usr/bin/orders"}, true},
		{"one of two", []string{"unix:uid:1000", "unix:gid:0"}, false},
		{"another value", []string{"unix:uid:0"}, false},
		{"the beginning of a value", []string{"unix:uid:100"}, false},
		{"a path below", []string{"unix:path:/usr/bin"}, false},
		{"the same key and value of another method", []string{"container:uid:1000"}, false},
		{"another case", []string{"unix:path:/usr/bin/Orders"}, false},
		{"no selectors at all, which no parser lets through", nil, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			grants := registration.Match([]registration.Entry{named(t, "e", row.match...)}, workload)
			if got := len(grants) == 1; got != row.want {
				t.Errorf("grants %v, want one: %v", grants, row.want)
			}
		})
	}
	if grants := registration.Match([]registration.Entry{named(t, "e", "unix:uid:1000")}, nil); len(grants) != 0 {
		t.Errorf("a workload without selectors gets %v", grants)
	}
}

// Who came first stays first, whatever is added or changed later.
func TestMatchOrderNeverFlips(t *testing.T) {
	var entries []registration.Entry
	for name, created := range map[string]uint64{"b": 1, "d": 2, "a": 3, "c": 3} {
		e := named(t, name, "unix:uid:1")
		e.Created, e.Revision = created, 9
		entries = append(entries, e)
	}
	entries = append(entries, named(t, "x", "unix:uid:2"))
	var want []registration.Grant
	for _, name := range []string{"b", "d", "a", "c"} {
		want = append(want, registration.Grant{Entry: name, ID: id("spiffe://example.org/" + name)})
	}
	for range 5 {
		if diff := cmp.Diff(want, registration.Match(entries, selectors(t, "unix:uid:1")), compareIDs); diff != "" {
			t.Error(diff)
		}
		entries = append(entries[1:], entries[0])
	}
}

var compareIDs = cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b })

func TestOnNode(t *testing.T) {
	node := id("spiffe://example.org/writ/agent/x509pop/web-1")
	has := selectors(t, "x509pop:subject:web-1", "x509pop:ca:9f")
	for _, row := range []struct {
		name  string
		entry registration.Entry
		node  spiffeid.ID
		want  bool
	}{
		{"the node has the selector", registration.Entry{Where: selectors(t, "x509pop:subject:web-1")}, node, true},
		{"the node has both", registration.Entry{Where: has}, node, true},
		{"the node has one of two", registration.Entry{Where: selectors(t, "x509pop:subject:web-1", "x509pop:ca:00")}, node, false},
		{"any node", registration.Entry{Any: true}, node, true},
		{"any node, but of another trust domain", registration.Entry{Any: true}, id("spiffe://other.org/writ/agent/x509pop/web-1"), false},
		{"neither where nor any", registration.Entry{}, node, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.entry.ID = id("spiffe://example.org/orders")
			if got := row.entry.OnNode(row.node, has); got != row.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestExpired(t *testing.T) {
	e := orders(t)
	for at, want := range map[time.Time]bool{e.Expires.Add(-time.Nanosecond): false, e.Expires: true, e.Expires.Add(time.Hour): true} {
		if e.Expired(at) != want {
			t.Errorf("at %s: %v", at, !want)
		}
	}
	if e.Expires = (time.Time{}); e.Expired(time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Error("an entry without end expires")
	}
}

func TestEqualSeesEveryFieldButTheRevision(t *testing.T) {
	if e := orders(t); !e.Equal(orders(t)) {
		t.Error("an entry differs from itself")
	}
	same := orders(t)
	same.Revision, same.Expires = 99, same.Expires.In(time.FixedZone("", 3600))
	if e := orders(t); !e.Equal(same) {
		t.Error("revision or time zone counts")
	}
	for name, change := range map[string]func(*registration.Entry){
		"name": func(e *registration.Entry) { e.Name = "x" }, "id": func(e *registration.Entry) { e.ID = id("spiffe://example.org/Orders") },
		"where": func(e *registration.Entry) { e.Where = selectors(t, "a:b:c") }, "any": func(e *registration.Entry) { e.Any = true },
		"match": func(e *registration.Entry) { e.Match = e.Match[:1] }, "ttl": func(e *registration.Entry) { e.TTL++ },
		"jwt_ttl": func(e *registration.Entry) { e.JWTTTL = 0 }, "dns": func(e *registration.Entry) { e.DNS = nil },
		"hint": func(e *registration.Entry) { e.Hint = "" }, "federates_with": func(e *registration.Entry) { e.FederatesWith = nil },
		"expires": func(e *registration.Entry) { e.Expires = time.Time{} },
	} {
		f := orders(t)
		if change(&f); f.Equal(orders(t)) {
			t.Errorf("a change of %s is not seen", name)
		}
	}
}

func TestDigest(t *testing.T) {
	a, b := named(t, "a", "unix:uid:1"), named(t, "b", "unix:uid:1")
	a.Revision, b.Revision = 1, 2
	digest := registration.Digest([]registration.Entry{a, b})
	if len(digest) != 32 || !slices.Equal(digest, registration.Digest([]registration.Entry{b, a})) {
		t.Error("the order counts")
	}
	changed, renamed := b, b
	changed.Revision, renamed.Name = 3, "c"
	for name, other := range map[string][]registration.Entry{"missing": {a}, "changed": {a, changed}, "renamed": {a, renamed}, "none": nil} {
		if slices.Equal(digest, registration.Digest(other)) {
			t.Errorf("%s: same digest", name)
		}
	}
}

func TestNextChain(t *testing.T) {
	base := registration.NextChain(nil, 1, "entry", "a")
	for name, other := range map[string][]byte{
		"revision": registration.NextChain(nil, 2, "entry", "a"), "kind": registration.NextChain(nil, 1, "bundle", "a"),
		"id": registration.NextChain(nil, 1, "entry", "b"), "history": registration.NextChain(base, 1, "entry", "a"),
		"border between kind and id": registration.NextChain(nil, 1, "entr", "ya"), "border before kind": registration.NextChain([]byte("e"), 1, "ntry", "a"),
	} {
		if slices.Equal(base, other) {
			t.Errorf("%s does not count", name)
		}
	}
}

func TestFactsOf(t *testing.T) {
	web := id("spiffe://example.org/web")
	one := registration.Entry{Name: "one", ID: web, Where: selectors(t, "k8s:cluster:prod"), Match: selectors(t, "unix:uid:1", "unix:gid:1"), Hint: "h"}
	two := registration.Entry{Name: "two", ID: web, Any: true, Match: selectors(t, "unix:uid:1", "unix:gid:2"), Hint: "h"}
	other := named(t, "other", "unix:uid:1")
	prod := attest.Node{ID: id("spiffe://example.org/writ/agent/k8s/a"), Selectors: selectors(t, "k8s:cluster:prod"), Assurance: attest.Platform}
	test := attest.Node{ID: id("spiffe://example.org/writ/agent/join_token/b"), Selectors: selectors(t, "join_token:name:b"), Assurance: attest.Bearer}
	locked := prod
	locked.ID, locked.State, locked.Assurance = id("spiffe://example.org/writ/agent/k8s/c"), attest.Locked, attest.KeyFile
	for _, row := range []struct {
		name    string
		entries []registration.Entry
		nodes   []attest.Node
		want    registration.Facts
	}{
		{"one entry, one node", []registration.Entry{one, other}, []attest.Node{prod, test},
			registration.Facts{ID: web, Selectors: []string{"k8s:cluster:prod", "unix:gid:1", "unix:uid:1"}, Assurance: attest.Platform, Entry: "one",
				Hint: "h", Node: prod.ID.String()}},
		{"two entries share what both ask for", []registration.Entry{one, two}, []attest.Node{prod, test},
			registration.Facts{ID: web, Selectors: []string{"unix:uid:1"}, Assurance: attest.Bearer, Hint: "h"}},
		{"two nodes, one of them locked, which may still hold an SVID", []registration.Entry{one}, []attest.Node{prod, locked},
			registration.Facts{ID: web, Selectors: []string{"k8s:cluster:prod", "unix:gid:1", "unix:uid:1"}, Assurance: attest.KeyFile, Entry: "one", Hint: "h"}},
		{"an entry that no node may serve", []registration.Entry{one}, []attest.Node{test},
			registration.Facts{ID: web, Selectors: []string{"k8s:cluster:prod", "unix:gid:1", "unix:uid:1"}, Entry: "one", Hint: "h"}},
		{"no entry", []registration.Entry{other}, []attest.Node{prod}, registration.Facts{ID: web, Selectors: []string{}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			if diff := cmp.Diff(row.want, registration.FactsOf(web, row.entries, row.nodes), compareIDs); diff != "" {
				t.Error(diff)
			}
		})
	}
	hinted := two
	hinted.Hint = "other"
	if f := registration.FactsOf(web, []registration.Entry{one, hinted}, nil); f.Hint != "" {
		t.Errorf("two hints give %q", f.Hint)
	}
}
