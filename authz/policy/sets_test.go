package policy_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/writ-dev/writ/authz"
	"github.com/writ-dev/writ/authz/policy"
)

func TestChoicesAreChecked(t *testing.T) {
	for _, row := range []struct {
		name    string
		choices map[string]policy.Choice
		want    string
	}{
		{"a name for another's eyes", map[string]policy.Choice{"A b": {Any: true}}, "A b: a set's name is of"},
		{"a name for none", map[string]policy.Choice{"none": {Any: true}}, "none: is what metrics say"},
		{"hosts that a client chooses", map[string]policy.Choice{"a": {Hosts: []string{"x"}}}, "a: hosts: a client names its host"},
		{"a host twice", map[string]policy.Choice{"a": {Hosts: []string{"x"}, HostsPinned: true}, "b": {Hosts: []string{"X"}, HostsPinned: true}}, `b: hosts: "X" is a's already`},
		{"any host", map[string]policy.Choice{"a": {Hosts: []string{"*"}, HostsPinned: true}}, "wildcards"},
		{"two for the rest", map[string]policy.Choice{"a": {Any: true}, "b": {Any: true}}, "b: any: is a already"},
		{"a destination that is none", map[string]policy.Choice{"a": {Destinations: []string{"orders"}}}, `a: destinations: "orders"`},
		{"a wildcard in the middle", map[string]policy.Choice{"a": {Destinations: []string{"spiffe://x/*/y"}}}, "spiffe://x/*/y"},
		{"part of a segment", map[string]policy.Choice{"a": {Destinations: []string{"spiffe://x/a*"}}}, "spiffe://x/a*"},
		{"any trust domain", map[string]policy.Choice{"a": {Destinations: []string{"spiffe://*"}}}, "spiffe://*"},
		{"a destination twice", map[string]policy.Choice{"a": {Destinations: []string{"spiffe://x/y"}}, "b": {Destinations: []string{"spiffe://x/y"}}}, "is a's already"},
		{"a subtree twice", map[string]policy.Choice{"a": {Destinations: []string{"spiffe://x/*"}}, "b": {Destinations: []string{"spiffe://x/*"}}}, "is a's already"},
	} {
		if err := policy.CheckChoices(row.choices); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", row.name, err, row.want)
		}
	}
}

// choices has a set for each kind of choice.
func choices() map[string]policy.Choice {
	return map[string]policy.Choice{
		"orders": {Destinations: []string{"spiffe://x/orders", "spiffe://y/shop/*"}},
		"shop":   {Destinations: []string{"spiffe://x/*"}},
		"deep":   {Destinations: []string{"spiffe://x/a/b/*"}},
		"host":   {Hosts: []string{"api.example.org", "API.example.org:8443", "kiosk.example.org"}, HostsPinned: true},
		"named":  {},
	}
}

// newSets follows a set for each choice. Each allows everything, and says its name in a header.
func newSets(t testing.TB, choices map[string]policy.Choice, registry prometheus.Registerer) *policy.Sets {
	t.Helper()
	live := map[string]*policy.Live{}
	for name := range choices {
		files := mapFS(map[string]string{"a.rego": `package envoy.authz
allow := {"allowed": true, "headers": {"by": "` + name + `"}}
`})
		var err error
		if live[name], err = policy.NewLive(t.Context(), policy.LiveConfig{Name: name, Files: files, Registerer: registry}); err != nil {
			t.Fatal(err)
		}
	}
	sets, err := policy.NewSets(live, choices)
	if err != nil {
		t.Fatal(err)
	}
	return sets
}

func asked(destination, host string, extensions map[string]any) map[string]any {
	return map[string]any{"attributes": map[string]any{"destination": map[string]any{"principal": destination}, "contextExtensions": extensions,
		"request": map[string]any{"http": map[string]any{"method": "GET", "path": "/", "host": host,
			"headers": map[string]any{policy.ContextKey: "named", "x-" + policy.ContextKey: "named", ":authority": "api.example.org"}}}}}
}

func TestSetsAreChosen(t *testing.T) {
	sets := newSets(t, choices(), nil)
	rest := choices()
	rest["rest"] = policy.Choice{Any: true}
	withRest := newSets(t, rest, nil)
	names := func(set string) map[string]any { return map[string]any{policy.ContextKey: set} }
	for _, row := range []struct {
		name    string
		request map[string]any
		want    string // "": none
	}{
		{"the destination's", asked("spiffe://x/orders", "api.example.org", nil), "orders"},
		{"below a destination", asked("spiffe://x/web", "", nil), "shop"},
		{"the longest that fits", asked("spiffe://x/a/b/c", "", nil), "deep"},
		{"not part of a segment", asked("spiffe://x/a/bc", "", nil), "shop"},
		{"not the parent itself", asked("spiffe://y/shop", "", nil), ""},
		{"of the other trust domain", asked("spiffe://y/shop/1", "", nil), "orders"},
		{"an ID that only begins like one", asked("spiffe://x/web?a=spiffe://y/shop", "", nil), ""},
		{"an ID with dots", asked("spiffe://x/../y", "", nil), ""},
		{"another case", asked("SPIFFE://x/orders", "", nil), ""},
		{"a common name", asked("CN=orders", "", nil), ""},
		{"the route's before the destination's", asked("spiffe://x/orders", "", names("named")), "named"},
		{"the route's before the host's", asked("", "api.example.org", names("named")), "named"},
		{"a route's that is not there, whatever else fits", asked("spiffe://x/orders", "api.example.org", names("no")), ""},
		{"a route's with capitals", asked("spiffe://x/orders", "", names("Named")), ""},
		{"the host's", asked("", "api.example.org", nil), "host"},
		{"the host's in another case", asked("", "Api.Example.org", nil), "host"},
		{"the host's with its port", asked("", "api.example.org:8443", nil), "host"},
		{"another port", asked("", "api.example.org:80", nil), ""},
		{"a trailing dot", asked("", "api.example.org.", nil), ""},
		{"a trailing dot and a port", asked("", "api.example.org.:8443", nil), ""},
		{"a port without its number", asked("", "api.example.org:", nil), ""},
		{"a letter whose small letter is k", asked("", "\u212Aiosk.example.org", nil), ""},
		{"the route's without a name", asked("spiffe://x/orders", "", names("")), ""},
		{"nothing", asked("", "", nil), ""},
		{"another extension", asked("", "", map[string]any{"set": "named"}), ""},
	} {
		for decider, want := range map[*policy.Sets]string{sets: row.want, withRest: orRest(row.want, row.request)} {
			d := decider.Decide(t.Context(), "", request(t, row.request))
			switch {
			case d.Set != want:
				t.Errorf("%s: decided by %q, want %q", row.name, d.Set, want)
			case want == "" && (d.Outcome != authz.Failed || d.Cause != authz.NoSet || d.Reason == ""):
				t.Errorf("%s: %s by %s, want it failed", row.name, d.Outcome, d.Cause)
			case want != "" && (d.Outcome != authz.Allowed || len(d.Headers) != 1 || d.Headers[0].Value != want):
				t.Errorf("%s: %s with %v, want it of %s", row.name, d.Outcome, d.Headers, want)
			}
		}
	}
}

// orRest is who decides where a set is for the rest: that one, unless the route names another, or the host is a set's in another spelling.
func orRest(want string, request map[string]any) string {
	attributes := request["attributes"].(map[string]any)
	extensions, _ := attributes["contextExtensions"].(map[string]any)
	host, _ := attributes["request"].(map[string]any)["http"].(map[string]any)["host"].(string)
	if want == "" && extensions[policy.ContextKey] == nil && !strings.HasPrefix(host, "api.") {
		return "rest"
	}
	return want
}

func TestSetsByName(t *testing.T) {
	sets := newSets(t, choices(), nil)
	if d := sets.Decide(t.Context(), "shop", request(t, asked("spiffe://x/orders", "", nil))); d.Set != "shop" {
		t.Errorf("the caller's set: decided by %q", d.Set)
	}
	if d := sets.Decide(t.Context(), "none", request(t, asked("spiffe://x/orders", "", nil))); d.Outcome != authz.Failed || d.Cause != authz.NoSet {
		t.Errorf("no such set: %s by %s", d.Outcome, d.Cause)
	}
	for _, set := range []string{"", "none"} {
		if d := sets.Decide(t.Context(), set, []byte("\xff")); d.Outcome != authz.Malformed {
			t.Errorf("bytes that are no message, for %q: %s", set, d.Outcome)
		}
	}
}

// Two messages in one are one to protobuf: the last extension counts, for the choice as for the policy.
func TestTheLastExtensionChooses(t *testing.T) {
	first := request(t, asked("", "", map[string]any{policy.ContextKey: "shop"}))
	second := request(t, asked("", "", map[string]any{policy.ContextKey: "named"}))
	if d := newSets(t, choices(), nil).Decide(t.Context(), "", append(first, second...)); d.Set != "named" {
		t.Errorf("decided by %q", d.Set)
	}
}

func TestSetsHaveTheirOwnMetricsAndRevisions(t *testing.T) {
	registry := prometheus.NewRegistry()
	folders := map[string]string{"a": t.TempDir(), "b": t.TempDir()}
	live := map[string]*policy.Live{}
	for name, folder := range folders {
		write(t, folder, "a.rego", allowAll)
		var err error
		if live[name], err = policy.NewLive(t.Context(), policy.LiveConfig{Name: name, Folder: folder, Registerer: registry}); err != nil {
			t.Fatal(err)
		}
	}
	sets, err := policy.NewSets(live, map[string]policy.Choice{"a": {Any: true}, "b": {}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { sets.Watch(ctx) })
	defer func() { cancel(); wg.Wait() }()
	before := live["a"].Revision()
	write(t, folders["b"], "a.rego", "package envoy.authz\nallow := false\n")
	wait(t, "b changes", func() bool { return live["b"].Revision() != before })
	write(t, folders["b"], "b.rego", "package")
	wait(t, "b is refused", func() bool { return live["b"].LastError() != nil })
	if live["a"].Revision() != before || live["a"].LastError() != nil {
		t.Errorf("a changed with b: %s, %v", live["a"].Revision(), live["a"].LastError())
	}
	want := `
		# HELP writ_policy_reload_failures_total Changes of a policy set that did not go live.
		# TYPE writ_policy_reload_failures_total counter
		writ_policy_reload_failures_total{set="a"} 0
		writ_policy_reload_failures_total{set="b"} 1
		# HELP writ_policy_revision_info 1 for the live revision of a policy set.
		# TYPE writ_policy_revision_info gauge
		writ_policy_revision_info{revision="` + before + `",set="a"} 1
		writ_policy_revision_info{revision="` + live["b"].Revision() + `",set="b"} 1
	`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "writ_policy_reload_failures_total", "writ_policy_revision_info"); err != nil {
		t.Error(err)
	}
}
