package strictyaml_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/internal/strictyaml"
)

type inner struct {
	Level string `yaml:"level"`
	Deep  struct {
		Count int `yaml:"count"`
	} `yaml:"deep"`
}

type target struct {
	Name    string           `yaml:"name"`
	TTL     time.Duration    `yaml:"ttl"`
	Any     bool             `yaml:"any"`
	List    []string         `yaml:"list"`
	Inner   inner            `yaml:"inner"`
	Pointer *inner           `yaml:"pointer"`
	Empty   *struct{}        `yaml:"empty"`
	Free    map[string]any   `yaml:"free"`
	Inners  map[string]inner `yaml:"inners"`
	Number  uint16           `yaml:"number"`
	Ratio   float64          `yaml:"ratio"`
	Address netip.Addr       `yaml:"address"`
	When    time.Time        `yaml:"when"`
	Plain   string
	Hidden  string `yaml:"-"`
}

func lines(s ...string) string { return strings.Join(s, "\n") + "\n" }

func TestDecode(t *testing.T) {
	got := target{Name: "default", Plain: "default"}
	err := strictyaml.Decode("f.yaml", []byte(lines(
		"# a comment", "---",
		"ttl: 1h30m", "any: true", "list: [a, 'b: c', 0x10]",
		"inner:", "  level: |", "    ---", "    ...", "  deep: {count: 3}",
		"pointer: {level: info}", "empty: {}", "free: {a: [1, {b: c}]}", "inners:", "  x: {level: y}",
		"number: 8443", "ratio: 0.5", "address: 127.0.0.1", "when: 2027-01-01T00:00:00Z", "plain:", "")), &got)
	if err != nil {
		t.Fatal(err)
	}
	want := target{Name: "default", TTL: 90 * time.Minute, Any: true, List: []string{"a", "b: c", "0x10"},
		Pointer: &inner{Level: "info"}, Empty: &struct{}{}, Free: map[string]any{"a": []any{uint64(1), map[string]any{"b": "c"}}},
		Inners: map[string]inner{"x": {Level: "y"}}, Number: 8443, Ratio: 0.5, Address: netip.MustParseAddr("127.0.0.1"),
		When: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC), Plain: "default"}
	want.Inner.Level, want.Inner.Deep.Count = "---\n...\n", 3
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestDecodeTextIsTakenAsWritten(t *testing.T) {
	for _, text := range []string{"yes", "0x10", "1_000", "007", "1e3", "true", "2027-01-01", "12:30:45", "a:b", "x#y", "10.0.0.1", "-5"} {
		var got struct {
			V string `yaml:"v"`
		}
		if err := strictyaml.Decode("f", []byte("v: "+text+"\n"), &got); err != nil || got.V != text {
			t.Errorf("%s becomes %q, %v", text, got.V, err)
		}
	}
}

func TestDecodeMistakes(t *testing.T) {
	for _, row := range []struct {
		name, text string
		want       []string
	}{
		{"unknown key", "name: a\nnmae: b\n", []string{`f:2:1: unknown key "nmae"; known here: address, any,`}},
		{"unknown key of an inner struct", "inner:\n  level: x\n  levle: y\n", []string{`f:3:3: unknown key "levle"; known here: deep, level`}},
		{"unknown key behind a pointer", "pointer: {levle: y}\n", []string{`f:1:11: unknown key "levle"`}},
		{"unknown key in a map of structs", "inners: {a: {levle: y}}\n", []string{`f:1:14: unknown key "levle"`}},
		{"a field that is no key", "hidden: x\n", []string{`f:1:1: unknown key "hidden"`}},
		{"key in another case", "Name: x\n", []string{`f:1:1: unknown key "Name"`}},
		{"repeated key", "name: a\nany: true\nname: b\n", []string{`f:3:1: key "name" is given twice, first in line 1`}},
		{"repeated key, once in quotes", "name: a\n\"name\": b\n", []string{`f:2:1: key "name" is given twice`}},
		{"repeated key in what goes undecoded", "free: {a: [{b: 1, b: 2}]}\n", []string{`f:1:19: key "b" is given twice`}},
		{"several at once", "nmae: a\nttl: soon\nany: yes\nlist: x\ninner: [a]\nnumber: 70000\naddress: here\n", []string{
			`f:1:1: unknown key "nmae"`, `f:2:6: "soon" is no duration`, `f:3:6: "yes" is neither true nor false`, `f:4:7: a list must stand here`,
			`f:5:8: keys with values must stand here`, `f:6:9: a value of type uint16`, `f:7:10: `}},
		{"a number without unit for a duration", "ttl: 3600\n", []string{`f:1:6: "3600" is no duration`}},
		{"a list where text must stand", "name: [a]\n", []string{`f:1:7: a single value must stand here`}},
		{"an empty element", "list:\n- a\n-\n", []string{`f:3:3: element 2 of the list is empty`}},
		{"anchor and alias", "name: &a x\nplain: *a\n", []string{`f:1:7: anchors`, `f:2:8: anchors`}},
		{"tag", "name: !!binary aGk=\n", []string{`f:1:7: tags`}},
		{"merge key", "<<: {name: x}\n", []string{`f:1:1: merge keys`}},
		{"complex key", "? name\n: x\n", []string{`f:1:1: complex keys`}},
		{"directive", "%YAML 1.2\n---\nname: x\n", []string{`f:1:1: directives`}},
		{"open quote", "name: \"x\n", []string{`f:1:7: `}},
		{"tab as indentation", "inner:\n\tlevel: x\n", []string{`f:2:1: `}},
		{"colon in a plain value", "name: b: c\n", []string{`f:1:`}},
		{"two documents", "name: a\n---\nname: b\n", []string{`f:2:1: the file holds 2 documents, not one`}},
		{"text after the end of a document", "name: a\n... name: b\n", []string{`f:2:1: nothing but a comment`}},
		{"not UTF-8", "name: a\nplain: \xff\n", []string{`f:2:8: text is not UTF-8`}},
		{"terminal escape", "name: \x1b[2J\n", []string{`f:1:7: character U+001B`}},
		{"a lone carriage return, which hides text in a terminal", "name: a\rany: true\n", []string{`f:1:8: character U+000D`}},
		{"not a mapping", "- a\n", []string{`f:1:1: keys with values`}},
		{"nested deeper than anybody writes", "free: " + strings.Repeat("[", 200) + "\n", []string{`f:1:107: nested deeper`}},
		{"lists within lists without end", strings.Repeat("- ", 200) + "\n", []string{`f:1:201: nested deeper`}},
	} {
		t.Run(row.name, func(t *testing.T) {
			var into target
			err := strictyaml.Decode("f", []byte(row.text), &into)
			var mistakes strictyaml.Mistakes
			if !errors.As(err, &mistakes) {
				t.Fatalf("got %v", err)
			}
			if len(mistakes) != len(row.want) {
				t.Fatalf("got %d mistakes, want %d:\n%v", len(mistakes), len(row.want), err)
			}
			for i, m := range mistakes {
				if !strings.HasPrefix(m.Error(), row.want[i]) {
					t.Errorf("got  %s\nwant %s", m, row.want[i])
				}
			}
		})
	}
}

func TestDecodeOfNoDocumentKeepsDefaults(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing\n", "---\n", "--- # nothing\n...\n", "\ufeff# nothing"} {
		got := target{Name: "default"}
		if err := strictyaml.Decode("f", []byte(text), &got); err != nil || got.Name != "default" {
			t.Errorf("%q: %q, %v", text, got.Name, err)
		}
	}
}

func TestDecodeIntoNoPointer(t *testing.T) {
	for _, into := range []any{nil, target{}, (*target)(nil)} {
		if strictyaml.Decode("f", []byte("name: x\n"), into) == nil {
			t.Errorf("%T is decoded into", into)
		}
	}
}

func TestDocuments(t *testing.T) {
	for _, row := range []struct {
		name, text string
		want       []string // LINE NAME of each
	}{
		{"one without marker", "name: a\n", []string{"1 a"}},
		{"one without a line's end", "name: a", []string{"1 a"}},
		{"two", "name: a\n---\nname: b\n", []string{"1 a", "2 b"}},
		{"empty first", "---\n---\nname: b\n", []string{"2 b"}},
		{"empty in the middle", "name: a\n---\n---\nname: b\n", []string{"1 a", "3 b"}},
		{"only a comment in the middle", "name: a\n---\n# nothing here\n---\nname: b\n", []string{"1 a", "4 b"}},
		{"comment after the marker", "--- # first\nname: a\n--- # second\n\n--- # third\nname: b\n", []string{"1 a", "5 b"}},
		{"ended by dots", "name: a\n...\n---\nname: b\n...\n", []string{"1 a", "3 b"}},
		{"ended by dots, next without marker", "name: a\n... # end\nname: b\n", []string{"1 a", "3 b"}},
		{"marker and value in one line", "--- {name: a}\n--- {name: b}\n", []string{"1 a", "2 b"}},
		{"marker inside a block scalar is text", "name: a\nplain: |\n  ---\n  name: c\n  ...\n---\nname: b\n", []string{"1 a", "6 b"}},
		{"marker as a value", "name: a\nplain: ---\n---\nname: b\n", []string{"1 a", "3 b"}},
		{"longer than a marker", "name: a\nplain:\n ----\n---\nname: b\n", []string{"1 a", "4 b"}},
		{"lines that end as on Windows", "name: a\r\n---\r\n# x\r\n---\r\nname: b\r\n", []string{"1 a", "4 b"}},
		{"comment before the first marker", "# about\n\n---\nname: a\n", []string{"3 a"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			documents, err := strictyaml.Documents("f", []byte(row.text))
			if err != nil {
				t.Fatal(err)
			}
			got := []string{}
			for _, d := range documents {
				var into target
				if err := d.Decode(&into); err != nil {
					t.Fatal(err)
				}
				got = append(got, fmt.Sprintf("%d %s", d.Line, into.Name))
			}
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDocumentsNameLinesOfTheFile(t *testing.T) {
	documents, err := strictyaml.Documents("f", []byte("# about\n---\nname: a\n---\n# nothing\n---\ninner:\n  level: x\nnmae: b\n"))
	if err != nil || len(documents) != 2 {
		t.Fatalf("%d documents, %v", len(documents), err)
	}
	var into target
	if err := documents[1].Decode(&into); err == nil || !strings.HasPrefix(err.Error(), "f:9:1: unknown key") {
		t.Errorf("got %v", err)
	}
	for key, want := range map[string]string{"nmae": "f:9:1", "inner": "f:7:1", "inner.level": "f:8:3", "inner.none": "f:7:1", "none": "f:7:1"} {
		if got := documents[1].At(key); got != want {
			t.Errorf("At(%s) is %s, want %s", key, got, want)
		}
	}
}

func TestAnchorOfAnotherDocumentIsNoValue(t *testing.T) {
	documents, err := strictyaml.Documents("f", []byte("name: &a x\n---\nname: *a\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range documents {
		if err := d.Decode(&target{}); err == nil {
			t.Errorf("line %d: taken", d.Line)
		}
	}
}

func TestDocumentOfMoreThanAMegabyte(t *testing.T) {
	big := "plain: " + strings.Repeat("x", 1<<20) + "\n"
	if _, err := strictyaml.Documents("f", []byte("name: a\n---\n"+big)); err == nil || !strings.HasPrefix(err.Error(), "f:2:1: ") {
		t.Errorf("got %.100v", err)
	}
	many := strings.Repeat("---\nname: a\n", 200_000)
	if documents, err := strictyaml.Documents("f", []byte(many)); err != nil || len(documents) != 200_000 {
		t.Errorf("%d small ones, %v", len(documents), err)
	}
}

// FuzzDocuments: nothing that carries content is lost between documents, and decoding answers for any bytes.
func FuzzDocuments(f *testing.F) {
	for _, s := range []string{"name: a\n---\n# x\n---\nname: b\n", "a: |\n  ---\n", "...\n...", "--- >\n x\n", "a: [\n - b\n", "inner: {deep: {count: 1}}\n", "a: &x [*x]\n", "-\n-", "? a\n", "'", "{}", "a:\n  - b:\n    - c\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		documents, err := strictyaml.Documents("f", []byte(s))
		if err != nil {
			return
		}
		kept := 0
		for _, d := range documents {
			kept += len(d.Data)
			if at := strings.Split(strings.TrimPrefix(strings.ReplaceAll(s, "\r\n", "\n"), "\ufeff"), "\n")[d.Line-1]; !strings.HasPrefix(string(d.Data), at) {
				t.Fatalf("document of line %d begins with %q, the line is %q", d.Line, d.Data, at)
			}
			var free map[string]any
			var into target
			d.Decode(&free)
			if err := d.Decode(&into); err != nil && !errors.As(err, new(strictyaml.Mistakes)) {
				t.Fatal(err)
			}
			d.At("inner.level")
		}
		contents := 0
		for line := range strings.Lines(strings.TrimPrefix(strings.ReplaceAll(s, "\r\n", "\n"), "\ufeff")) {
			word := strings.TrimSpace(line)
			marker := strings.HasPrefix(line, "...") || strings.HasPrefix(line, "---")
			if word != "" && word[0] != '#' && !marker {
				contents += len(line)
			}
		}
		if contents > kept {
			t.Fatalf("%d bytes of content, %d kept", contents, kept)
		}
	})
}

// short is a struct with a form in one value.
type short struct {
	Name string `yaml:"name"`
	Size int    `yaml:"size"`
}

func (s *short) UnmarshalText(text []byte) error { s.Name = string(text); return nil }

func TestStructWithAShortFormTakesBoth(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want short
		err  string
	}{
		"one value":         {"it: a", short{Name: "a"}, ""},
		"its keys":          {"it: {name: a, size: 2}", short{"a", 2}, ""},
		"a key that is not": {"it: {name: a, sise: 2}", short{Name: "a"}, `f:1:15: unknown key "sise"`},
		"a list":            {"it: [a]", short{}, "single value"},
	} {
		t.Run(name, func(t *testing.T) {
			var into struct {
				It short `yaml:"it"`
			}
			err := strictyaml.Decode("f", []byte(test.text), &into)
			if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("error %v, want %q", err, test.err)
			}
			if diff := cmp.Diff(test.want, into.It); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
