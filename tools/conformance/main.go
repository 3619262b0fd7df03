// Command conformance says which rows of rows.txt, the SPIFFE requirements that writ keeps, the tests cover. A test covers a row by
// its name: TestX509_06_LeafWithoutPath, or a subtest "X509-06, X509-22: ...". Standard input is what `go test -json` prints; it is
// shown as plain `go test` would, then the table follows.
//
// It ends with 1 when a test failed, and, but for -report, when a row has no test that passed.
package main

import (
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
)

//go:embed rows.txt
var rowsText string

func main() {
	report := flag.Bool("report", false, "rows without a test are no failure")
	flag.Parse()
	if err := run(os.Stdin, os.Stdout, *report); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer, report bool) error {
	documents, err := parseRows(rowsText)
	if err != nil {
		return err
	}
	results, err := readResults(in, out)
	if err != nil {
		return err
	}
	gaps, unknown := printTable(out, documents, results.rows)
	switch {
	case results.failed > 0:
		return fmt.Errorf("%d tests or packages failed", results.failed)
	case unknown > 0:
		return fmt.Errorf("%d row IDs in names of tests are not in rows.txt", unknown)
	case results.tests == 0:
		return errors.New("no test ran: is it fed by go test -json?")
	case gaps > 0 && !report:
		return fmt.Errorf("%d rows have no test that passed", gaps)
	}
	return nil
}
