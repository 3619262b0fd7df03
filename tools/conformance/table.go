package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
)

// printTable prints a line for each document, then the rows that miss something. It gives the number of rows that have no passing
// test and should, and of row IDs that no document has.
func printTable(out io.Writer, documents []document, tests map[string]tally) (gaps, unknown int) {
	var missing, failing, untested []row
	left := maps.Clone(tests)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nDOCUMENT\tROWS\tCOVERED\tPASSED\tNOT TESTED")
	var sum [4]int
	for _, d := range documents {
		var n [4]int // rows, covered, passed, not tested
		for _, r := range d.rows {
			t, covered := tests[r.id]
			delete(left, r.id)
			switch {
			case r.untested != "" && !covered:
				untested = append(untested, r)
				n[3]++
				continue
			case !covered:
				missing = append(missing, r)
			case t.failed > 0:
				failing = append(failing, r)
			default:
				n[2]++
			}
			n[0]++
			if covered {
				n[1]++
			}
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\n", d.name, n[0], n[1], n[2], n[3])
		for i := range n {
			sum[i] += n[i]
		}
	}
	fmt.Fprintf(w, "together\t%d\t%d\t%d\t%d\n", sum[0], sum[1], sum[2], sum[3])
	_ = w.Flush()
	printRows(out, "Not tested:", untested, func(r row) string { return r.untested })
	printRows(out, "Without a test:", missing, what)
	printRows(out, "Failed:", failing, what)
	if names := slices.Sorted(maps.Keys(left)); len(names) > 0 {
		fmt.Fprintf(out, "\nIn names of tests, and no row: %v\n", names)
	}
	return len(missing) + len(failing), len(left)
}

func what(r row) string { return r.level + ": " + r.text }

func printRows(out io.Writer, title string, rows []row, say func(row) string) {
	if len(rows) == 0 {
		return
	}
	fmt.Fprintln(out, "\n"+title)
	for _, r := range rows {
		fmt.Fprintf(out, "  %-8s %s\n", r.id, say(r))
	}
}
