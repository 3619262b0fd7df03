package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

func TestRows(t *testing.T) {
	documents, err := parseRows(rowsText)
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, d := range documents {
		count += len(d.rows)
	}
	if len(documents) != 10 || count != 298 {
		t.Errorf("%d documents with %d rows, want 10 with 298: a row is never taken away", len(documents), count)
	}
	const good = "## A\nID-01 | MUST | 2 | text\n"
	for name, text := range map[string]string{
		"a row twice":          good + "ID-01 | MUST | 2 | text\n",
		"a row of no document": "ID-01 | MUST | 2 | text\n",
		"a field too few":      "## A\nID-01 | MUST | 2\n",
		"an id that is none":   "## A\nFOO-01 | MUST | 2 | text\n",
	} {
		if _, err := parseRows(text); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestIDsIn(t *testing.T) {
	for name, want := range map[string][]string{
		"TestX509_06_LeafWithoutPath":            {"X509-06"},
		"TestWEP_06_WEP_07_HeaderIsAskedFor":     {"WEP-06", "WEP-07"},
		"TestCheckLeaf/X509-06/no_path":          {"X509-06"},
		"TestVerify/X509-22,_X509-26:_no_usage":  {"X509-22", "X509-26"},
		"TestParse/ID-08":                        {"ID-08"},
		"TestParse/ID-081":                       nil,
		"TestValid_07":                           nil,
		"TestUUID-01":                            nil,
		"TestParseUnderFIDs/a_GRID_08_is_no_row": nil,
		"TestSDS":                                nil,
	} {
		if got := idsIn(name); !slices.Equal(got, want) {
			t.Errorf("idsIn(%q) = %v, want %v", name, got, want)
		}
	}
}

// ran is what go test -json says of one test.
func ran(action, test string) string {
	return `{"Action":"output","Package":"p","Test":"` + test + `","Output":"printed by ` + test + `\n"}` + "\n" +
		`{"Action":"` + action + `","Package":"p","Test":"` + test + `"}` + "\n"
}

func TestRun(t *testing.T) {
	documents, err := parseRows(rowsText)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, d := range documents {
		for _, r := range d.rows {
			all.WriteString(ran("pass", "TestRow/"+r.id))
		}
	}
	but := func(id, instead string) string {
		return strings.Replace(all.String(), ran("pass", "TestRow/"+id), instead, 1)
	}
	for name, row := range map[string]struct {
		in     string
		report bool
		fails  string // what the error says; empty: none
		shows  []string
		hides  []string
	}{
		"every row passes":     {in: all.String(), shows: []string{"X509-SVID.md                       50    50       50"}, hides: []string{"printed by", "X509-06"}},
		"a row without a test": {in: but("X509-06", ""), fails: "1 rows have no test", shows: []string{"Without a test:\n  X509-06  MUST"}},
		"and that is reported": {in: but("X509-06", ""), report: true, shows: []string{"Without a test:\n  X509-06"}},
		"a row that is skipped": {in: but("X509-06", ran("skip", "TestX509_06_Skipped")), fails: "1 rows have no test",
			shows: []string{"Without a test:\n  X509-06"}},
		"a row that fails once and passes once": {in: all.String() + ran("fail", "TestX509_06_Fails"), report: true, fails: "1 tests or packages failed",
			shows: []string{"Failed:\n  X509-06", "printed by TestX509_06_Fails"}},
		"a test that carries no row fails": {in: all.String() + ran("fail", "TestOther"), fails: "1 tests or packages failed", shows: []string{"printed by TestOther"}},
		"a package that does not build": {in: all.String() + `{"ImportPath":"p","Action":"build-output","Output":"p.go:1: no\n"}` + "\n" +
			`{"Action":"output","Package":"p","Output":"FAIL\tp [build failed]\n"}` + "\n" + `{"Action":"fail","Package":"p"}` + "\n",
			fails: "1 tests or packages failed", shows: []string{"p.go:1: no", "FAIL\tp [build failed]"}},
		"a test that never ended": {in: all.String() + `{"Action":"output","Package":"q","Test":"TestHangs","Output":"panic: test timed out\n"}` + "\n" +
			`{"Action":"fail","Package":"q"}` + "\n", fails: "1 tests or packages failed", shows: []string{"panic: test timed out"}},
		"a row that there is not": {in: all.String() + ran("pass", "TestX509_99"), report: true, fails: "1 row IDs", shows: []string{"no row: [X509-99]"}},
		"nothing":                 {in: "", report: true, fails: "no test ran"},
		"no JSON":                 {in: "go: no such tool\n", report: true, fails: "no test ran", shows: []string{"go: no such tool"}},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			err := run(strings.NewReader(row.in), &out, row.report)
			switch {
			case row.fails == "" && err != nil, row.fails != "" && (err == nil || !strings.Contains(err.Error(), row.fails)):
				t.Errorf("it ends with %v, want %q", err, row.fails)
			}
			for _, s := range row.shows {
				if !strings.Contains(out.String(), s) {
					t.Errorf("it does not show %q", s)
				}
			}
			for _, s := range row.hides {
				if strings.Contains(out.String(), s) {
					t.Errorf("it shows %q", s)
				}
			}
			if t.Failed() {
				t.Log(out.String())
			}
		})
	}
}
