package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// An event is one line of `go test -json`, see `go doc test2json`.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build output, in place of Package
	Test        string
	Output      string
	FailedBuild string
}

// A tally counts the tests that carry one row.
type tally struct{ passed, failed int }

type results struct {
	tests, failed int
	rows          map[string]tally
}

// readResults reads events to the end of in and shows what a person wants to see of them: a line for each package, and all that a
// failed test printed. A skipped test covers nothing.
func readResults(in io.Reader, out io.Writer) (results, error) {
	r := results{rows: map[string]tally{}}
	printed := map[string][]string{} // by package and test, until it has ended
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.Action == "" {
			fmt.Fprintln(out, lines.Text()) // go says something that is not about a test
			continue
		}
		key := e.Package + " " + e.Test
		switch e.Action {
		case "output":
			printed[key] = append(printed[key], e.Output)
		case "build-output":
			fmt.Fprint(out, e.Output)
		case "pass", "fail", "skip":
			if e.Test == "" && e.Action == "fail" {
				showUnended(out, e.Package, printed)
			}
			r.end(out, e, printed[key])
			delete(printed, key)
		}
	}
	return r, lines.Err()
}

// showUnended shows what tests printed that were running when their package ended: a panic's or a timeout's stack.
func showUnended(out io.Writer, of string, printed map[string][]string) {
	for _, key := range slices.Sorted(maps.Keys(printed)) {
		if test, ours := strings.CutPrefix(key, of+" "); ours && test != "" {
			fmt.Fprint(out, strings.Join(printed[key], ""))
		}
	}
}

// end counts one test or package that has ended.
func (r *results) end(out io.Writer, e event, printed []string) {
	failed := e.Action == "fail"
	if failed {
		r.failed++
	}
	switch {
	case e.Test != "" && failed:
		fmt.Fprint(out, strings.Join(printed, ""))
	case e.Test == "":
		for _, line := range printed { // a package's own lines: its result, or why it has none
			if failed || strings.HasPrefix(line, "ok ") {
				fmt.Fprint(out, line)
			}
		}
	}
	if e.Test == "" || e.Action == "skip" {
		return
	}
	r.tests++
	ids := idsIn(e.Test)
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		t := r.rows[id]
		if failed {
			t.failed++
		} else {
			t.passed++
		}
		r.rows[id] = t
	}
}
