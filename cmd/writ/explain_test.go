package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/internal/fault"
)

var quoted = regexp.MustCompile("`([^`]+)`")

// A page that names a command which is not there sends people astray.
func TestPagesNameCommandsThatAreThere(t *testing.T) {
	found := 0
	for _, page := range fault.Pages() {
		for _, text := range append(append([]string{page.Means}, page.Causes...), page.Do...) {
			for _, m := range quoted.FindAllStringSubmatch(text, -1) {
				if args, ours := strings.CutPrefix(m[1], "writ "); ours {
					found++
					checkCommand(t, string(page.Code), strings.Fields(args))
				}
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d commands are found", found)
	}
}

// checkCommand wants a command that does something, and flags that it has.
func checkCommand(t *testing.T, where string, args []string) {
	t.Helper()
	cmd, rest, err := newCommand().Find(args)
	if err != nil || cmd.HasSubCommands() {
		t.Errorf("%s names `writ %s`, which is no command (%v)", where, strings.Join(args, " "), err)
		return
	}
	for _, arg := range rest {
		name, isFlag := strings.CutPrefix(arg, "--")
		if isFlag && !hasFlag(cmd, name) {
			t.Errorf("%s names --%s, which `%s` does not have", where, name, cmd.CommandPath())
		}
	}
}

func hasFlag(cmd *cobra.Command, name string) bool {
	return cmd.Flags().Lookup(name) != nil || cmd.InheritedFlags().Lookup(name) != nil
}

var called = regexp.MustCompile(`\bwrit ([a-z]+)`)

// What an error tells people to type must be there to be typed.
func TestFixesNameCommandsThatAreThere(t *testing.T) {
	found := 0
	err := filepath.WalkDir("../..", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			for _, m := range called.FindAllStringSubmatch(fixOf(n), -1) {
				found++
				if cmd, _, err := newCommand().Find(m[1:]); err != nil || !cmd.HasParent() {
					t.Errorf("a fix in %s names `writ %s`, which is no command", path, m[1])
				}
			}
			return true
		})
		return nil
	})
	if err != nil || found < 20 {
		t.Errorf("%d fixes are found: %v", found, err)
	}
}

// fixOf is the text that a call of With gives for the fix, as far as it stands in the source.
func fixOf(n ast.Node) string {
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) != 2 {
		return ""
	}
	if with, ok := call.Fun.(*ast.SelectorExpr); !ok || with.Sel.Name != "With" {
		return ""
	}
	var text string
	ast.Inspect(call.Args[1], func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			part, _ := strconv.Unquote(lit.Value)
			text += part
		}
		return true
	})
	return text
}

// The README says which commands are still to come; one that has come is no longer among them.
func TestReadmeNamesCommandsThatAreMissing(t *testing.T) {
	page, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, list, found := strings.Cut(string(page), "Commands that are not there yet: ")
	list, _, ended := strings.Cut(list, "\n- ")
	if !found || !ended {
		t.Fatal("the list is not found")
	}
	for _, m := range quoted.FindAllStringSubmatch(list, -1) {
		words := strings.Fields(m[1])
		for _, last := range strings.Split(words[len(words)-1], "|") {
			args := append(slices.Clone(words[:len(words)-1]), last)
			if cmd, rest, err := newCommand().Find(args); err == nil && len(rest) == 0 {
				t.Errorf("`%s` is there", cmd.CommandPath())
			}
		}
	}
}

var codeRow = regexp.MustCompile(`(?m)^\| (P[0-9]{4}) \| (.*) \|$`)

func TestCodesAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, m := range codeRow.FindAllStringSubmatch(string(page), -1) {
		got = append(got, m[1]+" "+m[2])
	}
	for _, p := range fault.Pages() {
		want = append(want, string(p.Code)+" "+p.What)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("codes and their rows in docs/operations.md (-codes +rows):\n%s", diff)
	}
}
