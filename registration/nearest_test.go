package registration_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
)

// told is what somebody reads of a near entry.
func told(n registration.Near) string {
	out := n.Entry.Name
	for _, s := range n.Has {
		out += " +" + s.String()
	}
	for _, m := range n.Missing {
		out += " -" + m.Want.String()
		for _, s := range m.Instead {
			out += " (" + s.String() + ")"
		}
	}
	return out
}

func TestNearestSaysWhatIsMissing(t *testing.T) {
	workload := []string{"unix:uid:1000", "unix:gid:1000", "unix:path:/usr/bin/curl", "unix:supplementary_gid:4", "unix:supplementary_gid:5"}
	for _, row := range []struct {
		name     string
		workload []string
		entries  []registration.Entry
		want     []string
	}{
		{"no entries", workload, nil, nil},
		{"what matches is not near but there", workload, []registration.Entry{named(t, "a", "unix:uid:1000")}, nil},
		{"another user", workload, []registration.Entry{named(t, "a", "unix:uid:1001")}, []string{"a -unix:uid:1001 (unix:uid:1000)"}},
		{"another path", workload, []registration.Entry{named(t, "a", "unix:uid:1000", "unix:path:/opt/web")},
			[]string{"a +unix:uid:1000 -unix:path:/opt/web (unix:path:/usr/bin/curl)"}},
		{"several values of one key", workload, []registration.Entry{named(t, "a", "unix:supplementary_gid:6")},
			[]string{"a -unix:supplementary_gid:6 (unix:supplementary_gid:4) (unix:supplementary_gid:5)"}},
		{"nothing of that kind", workload, []registration.Entry{named(t, "a", "unix:sha256:00")}, []string{"a -unix:sha256:00"}},
		{"another method", workload, []registration.Entry{named(t, "a", "k8s:uid:1000")}, []string{"a -k8s:uid:1000"}},
		{"a path that the agent sees otherwise", []string{"unix:container_path:/opt/web", "unix:uid:1"}, []registration.Entry{named(t, "a", "unix:path:/opt/web")},
			[]string{"a -unix:path:/opt/web (unix:container_path:/opt/web)"}},
		{"a process without selectors", nil, []registration.Entry{named(t, "a", "unix:uid:0")}, []string{"a -unix:uid:0"}},
		{"fewest missing first, then most there, then by name, three at most", workload, []registration.Entry{
			named(t, "far", "unix:uid:1", "unix:gid:1", "unix:path:/x"),
			named(t, "z-half", "unix:uid:1000", "unix:path:/x"), named(t, "half", "unix:gid:1000", "unix:path:/x"),
			named(t, "one", "unix:uid:1"), named(t, "none", "unix:gid:1", "unix:uid:1")},
			[]string{"half +unix:gid:1000 -unix:path:/x (unix:path:/usr/bin/curl)", "z-half +unix:uid:1000 -unix:path:/x (unix:path:/usr/bin/curl)",
				"one -unix:uid:1 (unix:uid:1000)"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			for range 2 {
				var got []string
				for _, n := range registration.Nearest(row.entries, selectors(t, row.workload...), 3) {
					got = append(got, told(n))
				}
				if diff := cmp.Diff(row.want, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				slices.Reverse(row.entries) // the order that they are in must not show
			}
		})
	}
}

// An entry is either among the matches or among the near, never both and never neither.
func TestNearestAndMatchShareNothing(t *testing.T) {
	pool := rapid.SampledFrom(selectors(t, "unix:uid:1", "unix:uid:2", "unix:gid:1", "unix:path:/a", "unix:path:/b", "k8s:ns:a"))
	rapid.Check(t, func(r *rapid.T) {
		workload := rapid.SliceOf(pool).Draw(r, "workload")
		var entries []registration.Entry
		for i, match := range rapid.SliceOfN(rapid.SliceOfNDistinct(pool, 1, 4, rapid.ID[attest.Selector]), 0, 8).Draw(r, "entries") {
			entries = append(entries, registration.Entry{Name: string(rune('a' + i)), Match: match})
		}
		near := registration.Nearest(entries, workload, len(entries))
		if matches := registration.Match(entries, workload); len(matches)+len(near) != len(entries) {
			r.Fatalf("%d match, %d are near, of %d", len(matches), len(near), len(entries))
		}
		for _, n := range near {
			if len(n.Missing) == 0 || len(n.Missing)+len(n.Has) != len(n.Entry.Match) {
				r.Fatalf("%s", told(n))
			}
		}
	})
}

var noughts = strings.Repeat("0", 64)

var webNode = []string{"join_token:name:web-1"}

func wish(t testing.TB, node []string, workload ...string) registration.Wish {
	return registration.Wish{TrustDomain: domain, Node: selectors(t, node...), Workload: selectors(t, workload...)}
}

func TestSuggestionIsNarrow(t *testing.T) {
	for _, row := range []struct {
		name     string
		node     []string
		workload []string
		want     string // "ID where match"
		note     string // of one of the notes
	}{
		{"a binary of its own", webNode, []string{"unix:uid:1000", "unix:user:orders", "unix:gid:7", "unix:path:/opt/bin/orders-api", "unix:sha256:00ff"},
			"spiffe://example.org/orders-api join_token:name:web-1 unix:path:/opt/bin/orders-api,unix:uid:1000",
			`to narrow it, add under match: "unix:gid:7", "unix:sha256:00ff"`},
		{"a user with a name", webNode, []string{"unix:uid:1000", "unix:user:orders", "unix:path:/orders"},
			"spiffe://example.org/orders join_token:name:web-1 unix:path:/orders,unix:uid:1000", `"unix:user:orders" instead of "unix:uid:1000"`},
		{"a node with a certificate: what stays when it is renewed", []string{"x509pop:ca:00", "x509pop:serial:01", "x509pop:san:urn:x", "x509pop:subject:web-1"},
			[]string{"unix:uid:5", "unix:path:/a"}, "spiffe://example.org/a x509pop:subject:web-1 unix:path:/a,unix:uid:5", ""},
		{"a node with a certificate without a name", []string{"x509pop:ca:" + noughts, "x509pop:serial:1"}, []string{"unix:uid:5", "unix:path:/a"},
			"spiffe://example.org/a x509pop:ca:" + noughts + ",x509pop:serial:1 unix:path:/a,unix:uid:5", ""},
		{"an interpreter", webNode, []string{"unix:uid:1000", "unix:user:orders", "unix:path:/usr/bin/python3.11"},
			"spiffe://example.org/orders join_token:name:web-1 unix:path:/usr/bin/python3.11,unix:uid:1000", "all that this user runs with it would match"},
		{"a container", webNode, []string{"unix:uid:1000", "unix:container_path:/app/server"},
			"spiffe://example.org/server join_token:name:web-1 unix:container_path:/app/server,unix:uid:1000", "whoever makes the container chooses it"},
		{"no path at all", webNode, []string{"unix:uid:1000"}, "spiffe://example.org/uid-1000 join_token:name:web-1 unix:uid:1000", "every process of this user would match"},
		{"root", webNode, []string{"unix:uid:0", "unix:path:/sbin/init"}, "spiffe://example.org/init join_token:name:web-1 unix:path:/sbin/init,unix:uid:0", "this is root"},
		{"a name that no SPIFFE ID may have", webNode, []string{"unix:uid:5", "unix:path:/opt/my app (2)"},
			"spiffe://example.org/my-app--2- join_token:name:web-1 unix:path:/opt/my app (2),unix:uid:5", ""},
		{"a name that is our own", webNode, []string{"unix:uid:5", "unix:user:carol", "unix:path:/usr/bin/writ"},
			"spiffe://example.org/carol join_token:name:web-1 unix:path:/usr/bin/writ,unix:uid:5", ""},
		{"names that are nothing", webNode, []string{"unix:uid:5", "unix:user:..", "unix:path:/usr/bin/..."},
			"spiffe://example.org/uid-5 join_token:name:web-1 unix:path:/usr/bin/...,unix:uid:5", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			s, err := registration.Suggest(wish(t, row.node, row.workload...))
			if err != nil {
				t.Fatal(err)
			}
			join := func(list []attest.Selector) string {
				var out []string
				for _, s := range list {
					out = append(out, s.String())
				}
				return strings.Join(out, ",")
			}
			if got := s.Entry.ID.String() + " " + join(s.Entry.Where) + " " + join(s.Entry.Match); got != row.want || s.Entry.Any {
				t.Errorf("got  %s\nwant %s", got, row.want)
			}
			if notes := strings.Join(s.Notes, "\n"); !strings.Contains(notes, row.note) {
				t.Errorf("the notes are %q", notes)
			}
		})
	}
}

func TestSuggestionRefuses(t *testing.T) {
	taken := named(t, "old", "unix:uid:7")
	taken.ID = id("spiffe://example.org/orders")
	ours := []string{"unix:uid:1000", "unix:path:/usr/bin/orders"}
	for _, row := range []struct {
		name string
		bend func(*registration.Wish)
		kind fault.Kind
		code fault.Code
	}{
		{"a node that nothing tells from others", func(w *registration.Wish) { w.Node = nil }, fault.Invalid, fault.NodeIndistinct},
		{"a user that has no number here", func(w *registration.Wish) { w.Workload = selectors(t, "unix:path:/usr/bin/orders") }, fault.Invalid, fault.BadEntry},
		{"what is reserved", func(w *registration.Wish) { w.ID = id("spiffe://example.org/writ/agent/x") }, fault.Invalid, fault.BadEntry},
		{"another trust domain", func(w *registration.Wish) { w.ID = id("spiffe://other.org/x") }, fault.Invalid, fault.BadEntry},
		{"an ID without a path", func(w *registration.Wish) { w.ID = id("spiffe://example.org") }, fault.Invalid, fault.BadEntry},
		{"a path that turns the direction of writing", func(w *registration.Wish) { w.Workload = selectors(t, "unix:uid:1", "unix:path:/a\u202eb") }, fault.Invalid, fault.BadEntry},
		{"a guess that is another's name", func(w *registration.Wish) { w.Entries = []registration.Entry{taken} }, fault.Conflict, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := wish(t, webNode, ours...)
			row.bend(&w)
			s, err := registration.Suggest(w)
			var f *fault.Error
			if !errors.As(err, &f) || f.Kind != row.kind || f.Code != row.code {
				t.Errorf("got %+v, %v", s, err)
			}
		})
	}
	w := wish(t, nil, ours...)
	w.Any, w.Entries, w.ID = true, []registration.Entry{taken}, taken.ID
	s, err := registration.Suggest(w)
	if err != nil || !s.Entry.Any || !strings.Contains(strings.Join(s.Notes, "\n"), `entry "old" gives the same SPIFFE ID`) {
		t.Errorf("what is said in so many words is done: %+v, %v", s, err)
	}
	w.Entries, w.ID = []registration.Entry{s.Entry}, spiffeid.ID{}
	if again, err := registration.Suggest(w); err != nil || again.Entry.Name != s.Entry.Name {
		t.Errorf("the same suggestion again: %+v, %v", again, err)
	}
}

// Whatever a process calls itself, what is suggested for it reads back as it was, matches it, and is nothing that anybody is warned of.
func TestSuggestionHolds(t *testing.T) {
	text := rapid.OneOf(rapid.StringMatching(`[a-z0-9 :#'"\\{}._/-]{1,20}`), rapid.StringOf(rapid.Rune()), rapid.SampledFrom([]string{"\u2028", "a\u0085b: c", "\u009b31m", "writ"}))
	rapid.Check(t, func(r *rapid.T) {
		workload := []attest.Selector{{Method: "unix", Key: "uid", Value: rapid.SampledFrom([]string{"0", "1000"}).Draw(r, "uid")}}
		for _, key := range []string{"user", "gid", "path", "container_path", "sha256"} {
			if s, err := attest.ParseSelector("unix:" + key + ":" + text.Draw(r, key)); err == nil && rapid.Bool().Draw(r, "has "+key) {
				workload = append(workload, s)
			}
		}
		s, err := registration.Suggest(registration.Wish{TrustDomain: domain, Node: selectors(t, webNode...), Workload: workload})
		if fault.Is(err, fault.Invalid) {
			return // refused, as apply would refuse it
		}
		yaml, yamlErr := s.YAML()
		if err = errors.Join(err, yamlErr, s.Entry.Check(registration.Limits{TrustDomain: domain})); err != nil {
			r.Fatal(err)
		}
		read, err := registration.Parse("suggested", yaml, domain)
		if err != nil || len(read) != 1 || !read[0].Equal(s.Entry) {
			r.Fatalf("%v: %+v\n%s", err, read, yaml)
		}
		if got := read[0].Warnings(time.Time{}); len(got) > 0 || len(registration.Match(read, workload)) != 1 {
			r.Fatalf("warnings %v of\n%s", got, yaml)
		}
	})
}
