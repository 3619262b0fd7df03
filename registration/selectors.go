package registration

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/writ-dev/writ/attest"
)

// A maker is a method whose selectors this version knows: of nodes or of workloads, and what may stand as the value of each key.
type maker struct {
	node bool
	keys map[string]func(value string) error
}

// makers say what the attestors make; a test of cmd/writ holds them against the attestors themselves. What an attestor never makes
// matches nothing, and a mistake in an entry must not look like an entry.
var makers = map[string]maker{
	"unix": {keys: map[string]func(string) error{"uid": number("unix:user"), "gid": number("unix:group"), "supplementary_gid": number(""),
		"user": anything, "group": anything, "path": executable, "container_path": executable, "sha256": digest}},
	"join_token": {node: true, keys: map[string]func(string) error{"name": anything}},
	"x509pop":    {node: true, keys: map[string]func(string) error{"subject": anything, "san": anything, "serial": anything, "ca": digest}},
}

func anything(string) error { return nil }

// number is a uid's or gid's rule; byName is the key that takes a name.
func number(byName string) func(string) error {
	hint := ""
	if byName != "" {
		hint = "; " + byName + " takes a name"
	}
	return func(value string) error {
		n, err := strconv.ParseUint(value, 10, 32)
		switch {
		case err != nil || strconv.FormatUint(n, 10) != value:
			return errors.New("it takes a decimal number from 0 to 4294967295 without leading zeros" + hint)
		case n == overflow:
			return errors.New("65534 names nobody, the kernel shows it for all that have no number on a node; give the workload one of its own")
		}
		return nil
	}
}

// overflow is what attest/unix makes no selector of.
const overflow = 65534

func executable(value string) error {
	if !strings.HasPrefix(value, "/") || path.Clean(value) != value || strings.HasSuffix(value, " (deleted)") {
		return errors.New("it takes the absolute path of a file, without . and .. and without a slash at its end or two together")
	}
	return nil
}

func digest(value string) error {
	if len(value) != 64 || strings.Trim(value, "0123456789abcdef") != "" {
		return errors.New("it takes a SHA-256, 64 hexadecimal digits in lower case")
	}
	return nil
}

// checkValue refuses a selector that no attestor makes, of a method and key that this version knows.
func checkValue(s attest.Selector) error {
	check, there := makers[s.Method].keys[s.Key]
	if !there {
		return nil
	}
	if err := check(s.Value); err != nil {
		return fmt.Errorf("selector %q can never match: %w", s.String(), err)
	}
	return nil
}

// hopeless are the selectors of an entry that can never match. An entry that is stored already is served on in spite of them.
func (e Entry) hopeless() (found []problem) {
	for _, s := range e.Where {
		if err := checkValue(s); err != nil {
			found = append(found, problem{"where", err.Error()})
		}
	}
	for _, s := range e.Match {
		if err := checkValue(s); err != nil {
			found = append(found, problem{"match", err.Error()})
		}
	}
	return found
}

// doubt says what may be wrong with a selector that is asked of a node, or of a workload; empty: nothing. A method or a key that this
// version does not know may come with a newer one.
func doubt(s attest.Selector, ofNode bool) string {
	m, there := makers[s.Method]
	switch {
	case !there:
		return fmt.Sprintf("asks for %s, and this version has no method %q, only %s; nothing matches it before one that has",
			s, s.Method, strings.Join(slices.Sorted(maps.Keys(makers)), ", "))
	case ofNode && !m.node:
		return fmt.Sprintf("asks a node for %s, which only workloads have; it belongs under match", s)
	case !ofNode && m.node:
		return fmt.Sprintf("asks a workload for %s, which only nodes have; it belongs under where", s)
	case m.keys[s.Key] == nil:
		return fmt.Sprintf("asks for %s, and in this version %s has no key %q, only %s; nothing matches it before one that has",
			s, s.Method, s.Key, strings.Join(slices.Sorted(maps.Keys(m.keys)), ", "))
	}
	return ""
}
