package registration_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/writ-dev/writ/api/registrationv1"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
)

// whole is the example of the contract.
const whole = `name: orders
id: spiffe://example.org/orders
where: ["x509pop:subject:web-1"]
match: ["unix:uid:1000", "unix:path:/usr/bin/orders"]
ttl: 1h
jwt_ttl: 5m
dns: [orders.internal]
hint: primary
federates_with: [partner.org]
expires: 2027-01-01T00:00:00Z
`

func TestParseReadsEveryKey(t *testing.T) {
	got, err := registration.Parse("f", []byte(whole), domain)
	if err != nil || len(got) != 1 {
		t.Fatalf("%v, %v", got, err)
	}
	want := orders(t)
	want.Revision = 0
	if !got[0].Equal(want) {
		t.Errorf("got %+v, want %+v", got[0], want)
	}
}

func TestParseNameDefaultsToID(t *testing.T) {
	got, err := registration.Parse("f", []byte("path: /orders\nany: true\nmatch: ['unix:uid:1']\n---\nname: second\nid: spiffe://example.org/orders\nany: true\nmatch: ['unix:uid:2']\n"), domain)
	if err != nil || len(got) != 2 {
		t.Fatalf("%v, %v", got, err)
	}
	if got[0].Name != "spiffe://example.org/orders" || got[0].ID != got[1].ID || got[1].Name != "second" {
		t.Errorf("got %+v", got)
	}
}

// with is a document that would pass, with one line in another form.
func with(key, line string) string {
	lines := map[string]string{"id": "id: spiffe://example.org/web", "where": "where: ['x509pop:subject:web-1']", "match": "match: ['unix:uid:1']"}
	lines[key] = line
	text := ""
	for _, k := range []string{"id", "where", "match", "more"} {
		text += lines[k] + "\n"
	}
	return text
}

func TestParseRefuses(t *testing.T) {
	long := "spiffe://example.org/" + strings.Repeat("x", 2028)
	for _, row := range []struct{ name, text, want string }{
		{"misspelled key", with("more", "mach: []"), `f:4:1: unknown key "mach"`},
		{"repeated key", with("more", "match: ['unix:uid:0']"), `f:4:1: key "match" is given twice`},
		{"neither id nor path", with("id", ""), "f:2:1: neither id nor path is given"},
		{"id and path", with("more", "path: /web"), "f:4:1: id and path exclude each other"},
		{"path without slash", with("id", "path: web"), "f:1:1: "},
		{"path that would leave the trust domain", with("id", "path: .evil.test/web"), "f:1:1: "},
		{"path that is empty", with("id", "path: ''"), "f:1:1: "},
		{"X509-05, root path", with("id", "id: spiffe://example.org"), "has no path"},
		{"trailing slash", with("id", "id: spiffe://example.org/"), "f:1:5: "},
		{"upper-case trust domain", with("id", "id: spiffe://Example.org/web"), "f:1:5: "},
		{"ID-35, foreign trust domain", with("id", "id: spiffe://other.org/web"), "f:1:1: SPIFFE ID spiffe://other.org/web is not of trust domain example.org"},
		{"a name that is only like ours", with("id", "id: spiffe://example.org.evil.test/web"), "is not of trust domain"},
		{"reserved path", with("id", "path: /writ/server/a"), "f:1:1: SPIFFE ID spiffe://example.org/writ/server/a lies under /writ/"},
		{"reserved path, one segment", with("id", "path: /writ/x"), "reserved"},
		{"ID-20, ID of 2049 bytes", with("id", "id: "+long), "f:1:1: SPIFFE ID has 2049 bytes, more than 2048"},
		{"no where", with("where", ""), "no node selectors"},
		{"empty where", with("where", "where: []"), "f:2:1: no node selectors"},
		{"any: false alone", with("where", "any: false"), "no node selectors"},
		{"where and any", with("more", "any: true"), "f:4:1: where and any: true exclude each other"},
		{"any as a word", with("where", "any: yes"), "f:2:6: "},
		{"no match", with("match", ""), "no workload selectors"},
		{"empty match", with("match", "match: []"), "f:3:1: no workload selectors"},
		{"selector of two parts", with("match", "match: ['unix:1000']"), "f:3:9: "},
		{"selector without value", with("match", "match: ['unix:uid:']"), "f:3:9: "},
		{"selector that cannot be printed", with("match", `match: ["unix:path:/a\u0085b"]`), "f:3:1: selector"},
		{"second selector malformed", with("match", "match: ['unix:uid:1', uid]"), "f:3:23: "},
		{"uid that is a name", with("match", "match: ['unix:uid:abc']"), `f:3:9: selector "unix:uid:abc" can never match: it takes a decimal number from 0 to 4294967295 without leading zeros; unix:user takes a name`},
		{"uid below zero", with("match", "match: ['unix:uid:-1']"), "f:3:9: "},
		{"uid with a sign", with("match", "match: ['unix:uid:+1']"), "f:3:9: "},
		{"uid in another form than the kernel's", with("match", "match: ['unix:uid:00']"), "f:3:9: "},
		{"uid beyond 32 bits", with("match", "match: ['unix:uid:4294967296']"), "f:3:9: "},
		{"uid of nobody", with("match", "match: ['unix:uid:65534']"), "65534 names nobody"},
		{"gid that is a name", with("match", "match: ['unix:uid:1', 'unix:gid:staff']"), "unix:group takes a name"},
		{"supplementary gid in hexadecimal", with("match", "match: ['unix:supplementary_gid:0x1']"), "f:3:9: "},
		{"digest of another length", with("match", "match: ['unix:sha256:zz']"), "64 hexadecimal digits"},
		{"digest in upper case", with("match", "match: ['unix:sha256:"+strings.Repeat("A", 64)+"']"), "in lower case"},
		{"relative path", with("match", "match: ['unix:path:rel']"), "absolute path"},
		{"path of a folder", with("match", "match: ['unix:path:/usr/bin/']"), "absolute path"},
		{"path by a way round", with("match", "match: ['unix:container_path:/usr/../bin/x']"), "absolute path"},
		{"path of a file that was deleted", with("match", "match: ['unix:path:/bin/x (deleted)']"), "f:3:9: "},
		{"fingerprint of a node's CA that is none", with("where", "where: ['x509pop:ca:zz']"), "f:2:9: "},
		{"ttl under 5 s", with("more", "ttl: 4999ms"), "f:4:1: ttl 4.999s is under 5s"},
		{"ttl of zero", with("more", "ttl: 0s"), "f:4:1: ttl is zero"},
		{"negative ttl", with("more", "ttl: -1h"), "f:4:1: ttl -1h is under 5s"},
		{"ttl without unit", with("more", "ttl: 3600"), "f:4:6: "},
		{"jwt_ttl under 1 s", with("more", "jwt_ttl: 999ms"), "f:4:1: jwt_ttl 999ms is under 1s"},
		{"WAPI-30, hint over 1024 bytes", with("more", "hint: "+strings.Repeat("h", 1025)), "f:4:1: hint has 1025 bytes"},
		{"hint with a line break", with("more", `hint: "a\nb"`), "f:4:1: hint"},
		{"name with a mark that turns the writing", with("more", `name: "a\u202eb"`), "f:4:1: name"},
		{"name that is another's ID", with("more", "name: spiffe://example.org/admin"), "f:4:1: name"},
		{"expires without a time", with("more", "expires: 2027-01-01"), "f:4:10: expires must be a time"},
		{"expires at the zero time, which would mean never", with("more", "expires: 0001-01-01T00:00:00Z"), "f:4:10: "},
		{"DNS name with an underscore", with("more", "dns: [a_b.test]"), "f:4:1: DNS name"},
		{"DNS name in upper case", with("more", "dns: [A.test]"), "f:4:1: DNS name"},
		{"DNS name that is an address", with("more", "dns: [10.0.0.1]"), "ends in a number"},
		{"DNS name with a port", with("more", "dns: ['a.test:443']"), "f:4:1: DNS name"},
		{"DNS name with an empty label", with("more", "dns: [a..test]"), "f:4:1: DNS name"},
		{"DNS name with a dot at its end", with("more", "dns: [a.test.]"), "f:4:1: DNS name"},
		{"DNS label with a hyphen at its end", with("more", "dns: [a-.test]"), "f:4:1: DNS name"},
		{"DNS label of 64 bytes", with("more", "dns: ["+strings.Repeat("a", 64)+".test]"), "f:4:1: DNS name"},
		{"DNS name of 254 bytes", with("more", "dns: ["+strings.Repeat("a.", 125)+"test]"), "254 bytes"},
		{"wildcard inside", with("more", "dns: ['a.*.test']"), "f:4:1: DNS name"},
		{"wildcard as part of a label", with("more", "dns: ['a*.test']"), "f:4:1: DNS name"},
		{"wildcard alone", with("more", "dns: ['*']"), "f:4:1: DNS name"},
		{"empty DNS name", with("more", "dns: ['']"), "f:4:1: DNS name"},
		{"DNS name given twice", with("more", "dns: [a.test, a.test]"), "given twice"},
		{"ID-09, federation with itself", with("more", "federates_with: [example.org]"), "f:4:1: trust domain example.org is the entry's own"},
		{"ID-24, federation with an ID", with("more", "federates_with: ['spiffe://partner.org']"), "f:4:18: "},
		{"same name twice in a file", with("more", "name: a") + "---\n" + with("more", "name: a"), `f:9:1: the name "a" is taken by the entry at f:4:1`},
		{"same ID twice without names", with("more", "") + "---\n" + with("more", ""), "is taken by the entry at f:1:1"},
		{"anchor", with("match", "match: &m ['unix:uid:1']"), "f:3:8: anchors"},
		{"not a mapping", "- a\n", "f:1:1: "},
	} {
		t.Run(row.name, func(t *testing.T) {
			entries, err := registration.Parse("f", []byte(row.text), domain)
			var refused *fault.Error
			if !errors.As(err, &refused) || refused.Kind != fault.Invalid || refused.Code != fault.BadEntry {
				t.Fatalf("got %v, %v", entries, err)
			}
			if !strings.Contains(strings.Join(refused.Why, "\n"), row.want) || entries != nil {
				t.Errorf("got  %q\nwant %q", refused.Why, row.want)
			}
		})
	}
}

func TestParseTakes(t *testing.T) {
	for _, row := range []struct{ name, text string }{
		{"path near the reserved one", with("id", "path: /writer/x")},
		{"reserved word further down", with("id", "path: /a/writ/x")},
		{"ID-18, ID of 2048 bytes", with("id", "id: spiffe://example.org/"+strings.Repeat("x", 2027))},
		{"any node", with("where", "any: true")},
		{"shortest ttls", with("more", "ttl: 5s\njwt_ttl: 1s")},
		{"WAPI-30, hint of 1024 bytes", with("more", "hint: "+strings.Repeat("h", 1024))},
		{"wildcard as the first label", with("more", "dns: ['*.internal', a-b.internal, x1]")},
		{"the same selector twice", with("match", "match: ['unix:uid:1', 'unix:uid:1']")},
		{"selector whose value holds colons", with("match", "match: ['unix:path:/a:b']")},
		{"lowest and highest uid", with("match", "match: ['unix:uid:0', 'unix:gid:4294967295']")},
		{"every key of a process", with("match", "match: ['unix:user:x', 'unix:group:x', 'unix:supplementary_gid:5', 'unix:container_path:/a b', 'unix:sha256:"+strings.Repeat("0a", 32)+"']")},
		{"a method that comes later", with("match", "match: ['k8s:uid:abc', 'unix:later:x']")},
	} {
		t.Run(row.name, func(t *testing.T) {
			if entries, err := registration.Parse("f", []byte(row.text), domain); err != nil || len(entries) != 1 {
				t.Errorf("got %v, %v", entries, err)
			}
		})
	}
}

func TestParseRefusesUnservableTrustDomain(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("a..b")
	if _, err := registration.Parse("f", []byte(with("id", "path: /web")), td); err == nil || !strings.Contains(err.Error(), "empty label") {
		t.Errorf("R17: got %v", err)
	}
}

func TestParseNamesEveryMistakeAtOnce(t *testing.T) {
	_, err := registration.Parse("f", []byte(with("more", "ttl: 1s\nhint: ' '")+"---\n# nothing\n---\n"+with("match", "mach: x")+"---\n"+with("id", "path: /writ/x")), domain)
	var refused *fault.Error
	if !errors.As(err, &refused) {
		t.Fatal(err)
	}
	var lines []string
	for _, why := range refused.Why {
		lines = append(lines, strings.SplitN(why, ":", 3)[1])
	}
	if diff := cmp.Diff([]string{"4", "5", "11", "14"}, lines); diff != "" {
		t.Errorf("%s\n%v", diff, refused.Why)
	}
}

func TestReadPath(t *testing.T) {
	folder := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("b.yml", with("more", "name: b"))
	write("a.yaml", with("more", "name: a")+"---\n"+with("more", "name: a2"))
	write(".hidden.yaml", "not: read\n")
	write("README.md", "not read")
	write("empty.yaml", "# nothing\n")
	if err := os.Mkdir(filepath.Join(folder, "sub.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	entries, err := registration.ReadPath(folder, domain)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name)
	}
	if diff := cmp.Diff([]string{"a", "a2", "b"}, names); diff != "" {
		t.Error(diff)
	}
	if one, err := registration.ReadPath(filepath.Join(folder, "b.yml"), domain); err != nil || len(one) != 1 {
		t.Errorf("one file: %v, %v", one, err)
	}
	if none, err := registration.ReadPath(filepath.Join(folder, "sub.yaml"), domain); err != nil || len(none) != 0 {
		t.Errorf("empty folder: %v, %v", none, err)
	}
	if _, err := registration.ReadPath(filepath.Join(folder, "none.yaml"), domain); !fault.Is(err, fault.Invalid) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}

	write("c.yaml", with("more", "name: c")+"---\n"+with("more", "name: b"))
	write("d.yaml", with("match", "match: []"))
	entries, err = registration.ReadPath(folder, domain)
	var refused *fault.Error
	if !errors.As(err, &refused) || entries != nil || len(refused.Why) != 2 {
		t.Fatalf("got %v, %v", entries, err)
	}
	for i, want := range []string{filepath.Join(folder, "c.yaml") + ":9:1: ", filepath.Join(folder, "d.yaml") + ":3:1: "} {
		if !strings.HasPrefix(refused.Why[i], want) {
			t.Errorf("got %q, want %q", refused.Why[i], want)
		}
	}
}

func TestRead(t *testing.T) {
	if entries, err := registration.Read("standard input", strings.NewReader(whole), domain); err != nil || len(entries) != 1 {
		t.Errorf("got %v, %v", entries, err)
	}
	if _, err := registration.Read("standard input", strings.NewReader("x: y\n"), domain); err == nil || !strings.Contains(err.Error(), "standard input:1:1: ") {
		t.Errorf("got %v", err)
	}
}

func TestCheck(t *testing.T) {
	limits := registration.Limits{TrustDomain: domain, MaxTTL: 12 * time.Hour}
	for _, row := range []struct {
		name  string
		spoil func(*registration.Entry)
		want  string // empty: taken
	}{
		{"an entry with everything", func(*registration.Entry) {}, ""},
		{"ttl of exactly half", func(e *registration.Entry) { e.TTL = 12 * time.Hour }, ""},
		{"ttl over half of the authority's", func(e *registration.Entry) { e.TTL = 12*time.Hour + 1 }, "half of the ttl"},
		{"the default ttl", func(e *registration.Entry) { e.TTL = 0 }, ""},
		{"foreign trust domain", func(e *registration.Entry) { e.ID = id("spiffe://other.org/orders") }, "is not of trust domain"},
		{"no ID", func(e *registration.Entry) { e.ID = spiffeid.ID{} }, "neither id nor path"},
		{"reserved path", func(e *registration.Entry) { e.ID = id("spiffe://example.org/writ/agent/x") }, "reserved"},
		{"no name", func(e *registration.Entry) { e.Name = "" }, "name"},
		{"a selector that can never match", func(e *registration.Entry) { e.Match = selectors(t, "unix:uid:abc") }, "can never match"},
		{"a node selector that can never match", func(e *registration.Entry) { e.Where = selectors(t, "x509pop:ca:1") }, "can never match"},
	} {
		t.Run(row.name, func(t *testing.T) {
			e := orders(t)
			row.spoil(&e)
			err := e.Check(limits)
			if row.want == "" && err != nil || row.want != "" && (!fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("got %v, want %q", err, row.want)
			}
		})
	}
	if e := orders(t); e.Check(registration.Limits{}) == nil {
		t.Error("an authority of no trust domain serves an entry")
	}
}

func TestWarnings(t *testing.T) {
	for _, row := range []struct {
		name  string
		match []string
		want  int
	}{
		{"path alone", []string{"unix:path:/usr/bin/orders"}, 1},
		{"digest alone", []string{"unix:sha256:9f"}, 1},
		{"path and digest", []string{"unix:path:/usr/bin/orders", "unix:sha256:9f"}, 1},
		{"path and user", []string{"unix:path:/usr/bin/orders", "unix:uid:1000"}, 0},
		{"user alone", []string{"unix:uid:1000"}, 0},
		{"path of another method, which is not there", []string{"container:path:/a"}, 1},
		{"a key that is not there", []string{"unix:uid:1", "unix:nope:1"}, 1},
		{"what only nodes have", []string{"join_token:name:a"}, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := named(t, "e", row.match...).Warnings(time.Time{}); len(got) != row.want {
				t.Errorf("got %q", got)
			}
		})
	}
	e := named(t, "e", "unix:uid:1")
	e.Any, e.Where = false, selectors(t, "unix:uid:1")
	if len(e.Warnings(time.Time{})) != 1 {
		t.Error("a workload's selector under where goes unnoticed")
	}
}

func TestWarningOfWhatIsOver(t *testing.T) {
	e := named(t, "e", "unix:uid:1")
	e.Expires = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	if got := e.Warnings(e.Expires.Add(-1)); len(got) > 0 {
		t.Errorf("before its end: %q", got)
	}
	if got := e.Warnings(e.Expires); len(got) != 1 || !strings.Contains(got[0], "expired at 2026-01-01T00:00:00Z") {
		t.Errorf("at its end: %q", got)
	}
}

func TestWireKeepsEverything(t *testing.T) {
	want := orders(t)
	got, err := registration.FromWire(registration.ToWire(want))
	if err != nil || !got.Equal(want) || got.Revision != want.Revision {
		t.Errorf("got %+v, %v", got, err)
	}
}

// An entry that an older version took is served on: agents and servers read it every day.
func TestFromWireTakesWhatCanNeverMatch(t *testing.T) {
	want := orders(t)
	want.Match = selectors(t, "unix:uid:abc")
	if got, err := registration.FromWire(registration.ToWire(want)); err != nil || !got.Equal(want) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestFromWireRefuses(t *testing.T) {
	for _, row := range []struct {
		name  string
		spoil func(*registrationv1.Entry)
	}{
		{"malformed ID", func(w *registrationv1.Entry) { w.SpiffeId = "spiffe://example.org/a/../b" }},
		{"no ID", func(w *registrationv1.Entry) { w.SpiffeId = "" }},
		{"no match selectors", func(w *registrationv1.Entry) { w.Match = nil }},
		{"neither where nor any", func(w *registrationv1.Entry) { w.Where = nil }},
		{"where and any", func(w *registrationv1.Entry) { w.Any = true }},
		{"malformed selector", func(w *registrationv1.Entry) { w.Match = []string{"uid"} }},
		{"empty selector", func(w *registrationv1.Entry) { w.Where = []string{""} }},
		{"ttl of zero", func(w *registrationv1.Entry) { w.Ttl = &durationpb.Duration{} }},
		{"ttl out of range", func(w *registrationv1.Entry) { w.Ttl = &durationpb.Duration{Seconds: 1 << 62} }},
		{"ttl that Go would cut", func(w *registrationv1.Entry) { w.Ttl = &durationpb.Duration{Seconds: 300_000_000_000} }},
		{"expires at the zero time", func(w *registrationv1.Entry) { w.Expires = timestamppb.New(time.Time{}) }},
		{"expires out of range", func(w *registrationv1.Entry) { w.Expires = &timestamppb.Timestamp{Seconds: 1 << 62} }},
		{"foreign trust domain by ID", func(w *registrationv1.Entry) { w.FederatesWith = []string{"spiffe://partner.org"} }},
		{"reserved path", func(w *registrationv1.Entry) { w.SpiffeId = "spiffe://example.org/writ/server/a" }},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := registration.ToWire(orders(t))
			row.spoil(w)
			if e, err := registration.FromWire(w); !fault.Is(err, fault.Invalid) {
				t.Errorf("got %+v, %v", e, err)
			}
		})
	}
	if _, err := registration.FromWire(nil); err == nil {
		t.Error("nothing is taken for an entry")
	}
}

func TestYAMLReadsBack(t *testing.T) {
	got, err := registration.YAML(orders(t))
	if err != nil {
		t.Fatal(err)
	}
	const want = `name: orders
id: spiffe://example.org/orders
where: ["x509pop:subject:web-1"]
match: ["unix:path:/usr/bin/orders", "unix:uid:1000"]
ttl: 1h
jwt_ttl: 5m
dns: ["orders.internal"]
hint: primary
federates_with: ["partner.org"]
expires: 2027-01-01T00:00:00Z
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	texts := rapid.OneOf(rapid.StringMatching(`[a-z0-9~:#'"\\{}\[\],&*!|>%@=?. -]{1,12}`), rapid.String(), rapid.SampledFrom([]string{"null", "true", "~", "0x10", "---", "- a", "a: b", "1e3", "\u00e9\U0001f511"}))
	rapid.Check(t, func(t *rapid.T) {
		w := &registrationv1.Entry{
			Name: texts.Draw(t, "name"), SpiffeId: "spiffe://example.org/" + rapid.StringMatching(`[A-Za-z0-9_-]{1,9}`).Draw(t, "path"),
			Any: true, Match: []string{"unix:user:" + texts.Draw(t, "selector")}, Hint: texts.Draw(t, "hint"),
			Ttl:     durationpb.New(time.Duration(rapid.Int64Range(int64(5*time.Second), int64(1e6*time.Hour)).Draw(t, "ttl"))),
			Expires: &timestamppb.Timestamp{Seconds: rapid.Int64Range(0, 1<<33).Draw(t, "expires"), Nanos: rapid.Int32Range(0, 999_999_999).Draw(t, "nanos")},
		}
		e, err := registration.FromWire(w)
		if err != nil {
			return // not an entry
		}
		checkRoundTrips(t, e)
	})
}

// checkRoundTrips: an entry is the same through YAML and through the wire.
func checkRoundTrips(t interface{ Fatalf(string, ...any) }, e registration.Entry) {
	text, err := registration.YAML(e)
	if err != nil {
		t.Fatalf("YAML of %+v: %v", e, err)
	}
	again, err := registration.Parse("again", text, e.ID.TrustDomain())
	if err != nil || len(again) != 1 || !again[0].Equal(e) {
		t.Fatalf("%+v\nbecomes %+v, %v\nthrough %s", e, again, err, text)
	}
	wired, err := registration.FromWire(registration.ToWire(e))
	if err != nil || !wired.Equal(e) || wired.Revision != e.Revision {
		t.Fatalf("%+v\nbecomes %+v, %v on the wire", e, wired, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{whole, with("id", "path: /web"), with("where", "any: true"), "---\n# x\n---\n" + whole, with("more", `hint: "\u00e9"`)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		entries, err := registration.Parse("f", []byte(s), domain)
		if err != nil {
			return
		}
		for _, e := range entries {
			if err := e.Check(registration.Limits{TrustDomain: domain}); err != nil {
				t.Fatalf("Parse takes what Check refuses: %v", err)
			}
			checkRoundTrips(t, e)
		}
	})
}

func FuzzFromWire(f *testing.F) {
	seed, err := proto.Marshal(registration.ToWire(orders(f)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		var w registrationv1.Entry
		if proto.Unmarshal(data, &w) != nil {
			return
		}
		e, err := registration.FromWire(&w)
		if err != nil {
			return
		}
		if len(e.Match) == 0 || e.ID.Path() == "" || e.Any == (len(e.Where) > 0) {
			t.Fatalf("taken: %+v", e)
		}
		if e.Check(registration.Limits{TrustDomain: e.ID.TrustDomain()}) == nil { // else apply refuses it today, and took it once
			checkRoundTrips(t, e)
		}
	})
}
