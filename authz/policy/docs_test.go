package policy_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestEveryLineOfThePageHasACase holds docs/opa-envoy-plugin.md to the cases: each line of its tables names those that show it.
func TestEveryLineOfThePageHasACase(t *testing.T) {
	known := map[string]bool{}
	differs := map[string]bool{}
	cases(t, func(name string, _ int, c testCase, _ map[string]string) {
		known[name] = true
		differs[name] = c.Plugin != nil
	})
	text, err := os.ReadFile("../../docs/opa-envoy-plugin.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`([^`]+)`")
	lines := 0
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		if !strings.HasPrefix(line, "| ") || len(cells) < 4 || strings.HasPrefix(line, "| Key ") {
			continue
		}
		lines++
		names := named.FindAllStringSubmatch(cells[len(cells)-1], -1)
		if len(names) == 0 {
			t.Error("no case in", line)
		}
		for _, name := range names {
			if !known[name[1]] {
				t.Errorf("no case %q, named by %s", name[1], line)
			}
			if differs[name[1]] && strings.TrimSpace(cells[2]) == "the same" {
				t.Errorf("case %q declares a difference, and the page says that there is none: %s", name[1], line)
			}
		}
	}
	if lines < 60 {
		t.Errorf("only %d lines", lines)
	}
}
