package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/internal/fault"
)

func newExplainErrorCommand() *cobra.Command {
	var p printed
	cmd := &cobra.Command{
		Use:   "error [CODE]",
		Short: "Explain an error code; without one, list them all",
		Long:  "Says what a code means, what commonly causes it and what to do. It asks nobody and works without a server or agent.",
		Args:  checked(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return printCodes(cmd.OutOrStdout(), p)
			}
			page, err := findPage(args[0])
			if err != nil {
				return err
			}
			if p.form != "text" {
				return p.document(cmd.OutOrStdout(), "ErrorPage", pageDocument(page))
			}
			printPage(cmd.OutOrStdout(), page)
			return nil
		},
	}
	for _, page := range fault.Pages() {
		cmd.ValidArgs = append(cmd.ValidArgs, string(page.Code))
	}
	p.flag(cmd, "text", "json", "yaml")
	return cmd
}

// findPage takes a code as people type it: in lower case, or without its P.
func findPage(text string) (fault.Page, error) {
	code := strings.ToUpper(strings.TrimSpace(text))
	if code != "" && strings.Trim(code, "0123456789") == "" {
		code = "P" + code
	}
	if page, there := fault.PageOf(fault.Code(code)); there {
		return page, nil
	}
	unknown := fault.New(fault.NotFound, nil, fmt.Sprintf("no error has the code %q", text)).With("", "writ explain error   lists all codes")
	if near := nearCodes(code); len(near) > 0 {
		unknown.Because("near it: " + strings.Join(near, ", "))
	}
	return fault.Page{}, unknown
}

// nearCodes are those that differ in one character, or else those of the same thousand.
func nearCodes(code string) []string {
	var near, kin []string
	for _, page := range fault.Pages() {
		known := string(page.Code)
		if len(code) == len(known) && differences(code, known) == 1 {
			near = append(near, known)
		}
		if len(code) > 1 && strings.HasPrefix(known, code[:2]) {
			kin = append(kin, known)
		}
	}
	if len(near) > 0 {
		return near
	}
	return kin
}

// differences counts the places in which two texts of one length differ.
func differences(a, b string) (n int) {
	for i := range len(a) {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

func printCodes(w io.Writer, p printed) error {
	var rows [][]string
	items := []map[string]any{}
	for _, page := range fault.Pages() {
		rows = append(rows, []string{string(page.Code), page.What})
		items = append(items, pageDocument(page))
	}
	if p.form != "text" {
		return p.document(w, "ErrorPageList", map[string]any{"items": items})
	}
	table(w, "CODE WHAT", rows)
	return nil
}

func pageDocument(page fault.Page) map[string]any {
	return map[string]any{"code": page.Code, "what": page.What, "means": page.Means, "causes": page.Causes, "do": page.Do}
}

// pageWidth is how wide a page is printed.
const pageWidth = 100

func printPage(w io.Writer, page fault.Page) {
	fmt.Fprintf(w, "%s: %s\n\n%s\n", page.Code, page.What, wrapped(page.Means, ""))
	for _, part := range []struct {
		head  string
		lines []string
	}{{"common causes", page.Causes}, {"what to do", page.Do}} {
		fmt.Fprintf(w, "\n%s\n", part.head)
		for _, line := range part.lines {
			fmt.Fprintf(w, "  - %s\n", wrapped(line, "    "))
		}
	}
}

// wrapped breaks a text between words; lines after the first begin with indent.
func wrapped(text, indent string) string {
	var out strings.Builder
	column := len(indent)
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
		case column+1+len(word) > pageWidth:
			out.WriteString("\n" + indent)
			column = len(indent)
		default:
			out.WriteByte(' ')
			column++
		}
		out.WriteString(word)
		column += len(word)
	}
	return out.String()
}
