package audit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/audit"
)

func openLines(t *testing.T, path string) *audit.Lines {
	t.Helper()
	l, err := audit.OpenLines(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func row(id uint64, record string) audit.Row {
	return audit.Row{ID: id, Time: time.Unix(1700000000, 0).UTC(), Server: "a", Kind: audit.KindAdmin, Record: json.RawMessage(record)}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFeedingGoesOnWhereACrashLeftIt(t *testing.T) {
	long := `{"principal":"` + strings.Repeat("x", 200<<10) + `"}`
	for name, test := range map[string]struct {
		rows []audit.Row
		torn string
		last uint64
	}{
		"nothing was written yet":             {},
		"only a torn line was written":        {torn: `{"id":1,"ti`},
		"the last line is whole":              {rows: []audit.Row{row(1, `{}`), row(2, `{}`)}, last: 2},
		"the last line is torn":               {rows: []audit.Row{row(1, `{}`), row(2, `{}`)}, torn: `{"id":3`, last: 2},
		"the torn line lacks only its end":    {rows: []audit.Row{row(7, `{}`)}, torn: `{"id":8}`, last: 7},
		"a line is longer than one read":      {rows: []audit.Row{row(1, `{}`), row(2, long)}, last: 2},
		"the torn line is longer than a read": {rows: []audit.Row{row(1, long)}, torn: strings.Repeat("y", 150<<10), last: 1},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "audit.jsonl")
			if err := openLines(t, path).Feed(test.rows); err != nil {
				t.Fatal(err)
			}
			whole := read(t, path)
			if err := os.WriteFile(path, []byte(whole+test.torn), 0o600); err != nil {
				t.Fatal(err)
			}
			again := openLines(t, path)
			if again.Last() != test.last {
				t.Errorf("feeding goes on after %d, want %d", again.Last(), test.last)
			}
			if err := again.Feed([]audit.Row{row(test.last+1, `{"more":true}`)}); err != nil {
				t.Fatal(err)
			}
			if got := read(t, path); !strings.HasPrefix(got, whole) || strings.Count(got, "\n") != len(test.rows)+1 {
				t.Errorf("the file holds %d lines, want the %d whole ones and one more", strings.Count(got, "\n"), len(test.rows))
			}
			if again.Last() != test.last+1 {
				t.Errorf("after feeding Last is %d, want %d", again.Last(), test.last+1)
			}
		})
	}
}

func TestFileIsPrivateWhateverTheUmask(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	folder := t.TempDir()
	for name, before := range map[string]os.FileMode{"a new file": 0, "a file that others could read": 0o666} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(folder, strings.ReplaceAll(name, " ", "-"))
			if before != 0 {
				if err := os.WriteFile(path, nil, before); err != nil {
					t.Fatal(err)
				}
			}
			openLines(t, path)
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != 0o600 {
				t.Errorf("mode %04o, want 0600", info.Mode().Perm())
			}
		})
	}
}

func TestLineCannotSteerATerminal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "decisions.jsonl")
	ring := audit.NewRing(openLines(t, path), audit.RingConfig{Size: 8})
	d := audit.Decision{Path: "/\x1b[2J\r\n\x00\u0085\u009b31m\x7f/é<&>\u2028", Reason: "\xff"}
	ring.Put(&d)
	if err := ring.Close(); err != nil {
		t.Fatal(err)
	}
	line := read(t, path)
	if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
		t.Errorf("one record is not one line: %q", line)
	}
	for _, r := range strings.TrimSuffix(line, "\n") {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			t.Errorf("control character %U stands in the line", r)
		}
	}
	var back audit.Decision
	if err := json.Unmarshal([]byte(line), &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d.Path, back.Path); diff != "" {
		t.Errorf("the path does not read back (-want +got):\n%s", diff)
	}
}

// People read records with less and cat: what turns the direction of text, or cannot be seen, would show them another line.
func TestLineShowsWhatItIs(t *testing.T) {
	hidden := "\u00ad\u034f\u061c\u115f\u180e\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2060\u2064\u2066\u2067\u2068\u2069" +
		"\u206f\u3164\ufe0f\ufeff\uffa0\ufff9\ufffb\U0001d173\U000e0001\U000e0041\U000e007f\U000e0100"
	shown := "/é/日本語/שלום/🙂/\ufffd"
	path := filepath.Join(t.TempDir(), "decisions.jsonl")
	ring := audit.NewRing(openLines(t, path), audit.RingConfig{Size: 8})
	text := shown + hidden + shown
	input := `{"` + hidden + `":"` + shown + hidden + "\x9b" + `\u202e"}` // as a policy's own masking may give it, with a byte that is no UTF-8
	ring.Put(&audit.Decision{Path: text, Source: text, Input: json.RawMessage(input)})
	if err := ring.Close(); err != nil {
		t.Fatal(err)
	}
	line := read(t, path)
	if strings.ContainsAny(line, hidden) || strings.Contains(line, "\x9b") || !utf8.ValidString(line) {
		t.Errorf("the line shows not what it is: %q", line)
	}
	if !strings.Contains(line, shown+`\u00ad`) || !strings.Contains(line, `\u202e`) || !strings.Contains(line, `\udb40\udc41`) {
		t.Errorf("the line does not show the text, or escapes otherwise than JSON: %s", line)
	}
	var want, back any
	got, err := audit.ParseDecision([]byte(line))
	if err == nil {
		err = errors.Join(json.Unmarshal([]byte(input), &want), json.Unmarshal(got.Input.(json.RawMessage), &back))
	}
	if err != nil {
		t.Fatal(err)
	}
	if got.Path != text || got.Source != text || !cmp.Equal(want, back) {
		t.Errorf("the record does not read back: %+v", got)
	}
}

// small gives a folder on a volume of one MiB.
func small(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	if err := syscall.Mount("tmpfs", folder, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("mount (this test needs root): %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(folder, syscall.MNT_DETACH) })
	return folder
}

func TestFullDiskLeavesNoTornLineAndHeals(t *testing.T) {
	folder := small(t)
	path := filepath.Join(folder, "audit.jsonl")
	lines := openLines(t, path)
	if err := lines.Feed([]audit.Row{row(1, `{}`)}); err != nil {
		t.Fatal(err)
	}
	before := read(t, path)
	ballast := filepath.Join(folder, "ballast")
	if err := os.WriteFile(ballast, bytes.Repeat([]byte("b"), 1000<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	big := row(2, `{"principal":"`+strings.Repeat("x", 100<<10)+`"}`)
	if err := lines.Feed([]audit.Row{big}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("feeding a full disk gives %v, want ENOSPC", err)
	}
	if got := read(t, path); got != before || lines.Last() != 1 {
		t.Errorf("a failed feed left %d bytes (want %d) and Last %d (want 1)", len(got), len(before), lines.Last())
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := lines.Feed([]audit.Row{big}); err != nil {
		t.Errorf("space is back and feeding gives %v", err)
	}
}

func TestDigestIsHex(t *testing.T) {
	want := audit.Issuance{Serial: "0a", Draft: audit.Digest{0xab, 31: 0xcd}}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), `"draft":"ab`+strings.Repeat("0", 60)+`cd"`) {
		t.Errorf("the draft's digest is not lower-case hex: %s", text)
	}
	var got audit.Issuance
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("an issuance does not read back (-want +got):\n%s", diff)
	}
	for name, bad := range map[string]string{"short": `"ab"`, "long": `"` + strings.Repeat("a", 66) + `"`, "no hex": `"` + strings.Repeat("g", 64) + `"`} {
		if json.Unmarshal([]byte(bad), new(audit.Digest)) == nil {
			t.Errorf("a %s digest reads", name)
		}
	}
}
