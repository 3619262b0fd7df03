package svid_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/svid"
)

// vector is one row of testdata/spiffe-vectors.json.
type vector struct {
	Name        string
	ID          string
	IDBase64    []byte `json:"id_base64"` // counts instead of ID where it is there: not UTF-8
	Valid       bool
	Reason      string
	Rule        string
	TrustDomain string `json:"trust_domain"`
	Path        string
	Leaf        bool
	Issuable    bool
}

func vectors(t testing.TB) []vector {
	t.Helper()
	data, err := os.ReadFile("testdata/spiffe-vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var all []vector
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	for i, v := range all {
		if v.IDBase64 != nil {
			all[i].ID = string(v.IDBase64)
		}
	}
	if len(all) != 231 {
		t.Fatalf("%d vectors, want 231", len(all))
	}
	return all
}

func TestParseIDVectors(t *testing.T) {
	for _, v := range vectors(t) {
		t.Run(v.Rule+"/"+v.Name, func(t *testing.T) {
			id, err := svid.ParseID(v.ID)
			if (err == nil) != v.Valid {
				t.Fatalf("ParseID(%.80q) = %v, want valid %v: %s", v.ID, err, v.Valid, v.Reason)
			}
			if !v.Valid {
				if !id.IsZero() {
					t.Errorf("a refused ID gave %q", id)
				}
				return
			}
			if got := id.TrustDomain().Name(); got != v.TrustDomain {
				t.Errorf("trust domain %q, want %q", got, v.TrustDomain)
			}
			if id.Path() != v.Path || (id.Path() != "") != v.Leaf {
				t.Errorf("path %q, want %q, leaf %v", id.Path(), v.Path, v.Leaf)
			}
			if id.String() != v.ID { // ID-23
				t.Errorf("String gives %q for %q", id, v.ID)
			}
			if fits := len(v.ID) <= svid.MaxIDLength; fits != v.Issuable {
				t.Errorf("%d bytes, issuable %v", len(v.ID), v.Issuable)
			}
		})
	}
}

// What is taken comes back byte for byte, and no two of them are equal.
func TestID_23_ParsingChangesNothing(t *testing.T) {
	seen := map[spiffeid.ID]string{}
	for _, v := range vectors(t) {
		id, err := svid.ParseID(v.ID)
		if err != nil {
			continue
		}
		if id.String() != v.ID {
			t.Errorf("%q comes back as %q", v.ID, id)
		}
		if other, there := seen[id]; there && other != v.ID {
			t.Errorf("%q and %q are one ID", v.ID, other)
		}
		seen[id] = v.ID
	}
	if len(seen) < 40 {
		t.Errorf("only %d IDs were taken", len(seen))
	}
}

func TestID_20_ParseIDCap(t *testing.T) {
	id := "spiffe://example.org/" + strings.Repeat("x", 8<<10)
	if _, err := svid.ParseID(id[:8<<10]); err != nil {
		t.Errorf("ID-20: 8 KiB refused: %v", err)
	}
	if _, err := svid.ParseID(id[:8<<10+1]); err == nil {
		t.Error("ID-20: more than 8 KiB taken")
	} else if len(err.Error()) > 1000 {
		t.Errorf("the error repeats %d bytes of the input", len(err.Error()))
	}
}

func TestParseIDErrorsShowNoControlCharacters(t *testing.T) {
	_, err := svid.ParseID("spiffe://example.org/\x1b[2J\n\xff")
	if err == nil || strings.ContainsAny(err.Error(), "\x1b\n") || strings.Contains(err.Error(), "\xff") {
		t.Errorf("error %q", err)
	}
}

func TestParseIDErrorsQuoteWhatAPersonTyped(t *testing.T) {
	for id, want := range map[string]string{
		"spiffe://example.org/\u00e4":      "path holds '\u00e4';",
		"spiffe://example.org/a\U0001f600": "path holds '\U0001f600';",
		"spiffe://example.org/a%20":        "path holds '%';",
		"spiffe://example.org/a\u202e":     `path holds '\u202e';`,
		"spiffe://example.org/a\xff":       "path holds the byte 0xff;",
		"spiffe://example.org/a\ufffd":     "path holds '\ufffd';",
		"spiffe://\u00e4.example/a":        "trust domain holds '\u00e4';",
		"spiffe://Example.org":             "trust domain holds 'E';",
	} {
		if _, err := svid.ParseID(id); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseID(%q): %v, want %s", id, err, want)
		}
	}
}

// IDs are read for each request: one that is right costs nothing.
func TestParseIDAllocatesNothing(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { _, _ = svid.ParseID("spiffe://example.org/ns/a/sa/b") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestParseTrustDomain(t *testing.T) {
	for _, row := range []struct {
		name, in string
		valid    bool
	}{
		{"ID-06/plain name", "example.org", true},
		{"ID-08/address in dotted form", "127.0.0.1", true},
		{"ID-08/label of 64 bytes", strings.Repeat("a", 64), true},
		{"ID-08/empty labels", "a..b", true},
		{"ID-19/255 bytes", strings.Repeat("a", 255), true},
		{"ID-19/256 bytes", strings.Repeat("a", 256), false},
		{"ID-03/empty", "", false},
		{"ID-24/an ID is no name", "spiffe://example.org", false},
		{"ID-24/a name with slash", "example.org/", false},
		{"ID-05/upper case", "Example.org", false},
		{"ID-04/port", "example.org:443", false},
		{"ID-06/kelvin sign", "\u212aelvin", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			td, err := svid.ParseTrustDomain(row.in)
			if (err == nil) != row.valid {
				t.Fatalf("ParseTrustDomain(%.80q) = %v, want valid %v", row.in, err, row.valid)
			}
			if row.valid && td.Name() != row.in {
				t.Errorf("got %q", td.Name())
			}
		})
	}
}

func TestCheckServable(t *testing.T) {
	for name, want := range map[string]bool{"example.org": true, "127.0.0.1": true, "-a": true, "a.": false, ".a": false, "a..b": false, ".": false} {
		td, err := svid.ParseTrustDomain(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := svid.CheckServable(td); (err == nil) != want {
			t.Errorf("R17: CheckServable(%q) = %v, want servable %v", name, err, want)
		}
	}
}

func TestSegments(t *testing.T) {
	for in, want := range map[string][]string{
		"spiffe://example.org":            {},
		"spiffe://example.org/a":          {"a"},
		"spiffe://example.org/ns/a/sa/b.": {"ns", "a", "sa", "b."},
	} {
		if diff := cmp.Diff(want, svid.Segments(spiffeid.RequireFromString(in))); diff != "" {
			t.Errorf("Segments(%s): %s", in, diff)
		}
	}
}

// FuzzParseID holds ParseID to itself (ID-23) and to go-spiffe. The stated differences: a trust domain over 255 bytes (ID-19) and
// an ID over 8 KiB (ID-20) are refused here only.
func FuzzParseID(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(v.ID)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := svid.ParseID(s)
		theirs, theirErr := spiffeid.FromString(s)
		if err != nil {
			stated := len(s) > 8<<10 || len(theirs.TrustDomain().Name()) > 255
			if theirErr == nil && !stated {
				t.Fatalf("go-spiffe takes %q, we do not: %v", s, err)
			}
			return
		}
		if theirErr != nil || theirs != id {
			t.Fatalf("we take %q, go-spiffe says %v", s, theirErr)
		}
		if again, err := svid.ParseID(id.String()); err != nil || again != id || id.String() != s {
			t.Fatalf("%q -> %q -> %q, %v", s, id, again, err)
		}
		if td, err := svid.ParseTrustDomain(id.TrustDomain().Name()); err != nil || td != id.TrustDomain() {
			t.Fatalf("trust domain of %q: %v", s, err)
		}
		if joined := strings.Join(svid.Segments(id), "/"); id.Path() != "" && "/"+joined != id.Path() {
			t.Fatalf("segments of %q: %q", s, joined)
		}
	})
}
