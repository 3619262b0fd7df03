package attest

import (
	"fmt"
	"slices"
	"strings"
)

// Selector is one attested fact, written method:key:value. It is comparable.
type Selector struct{ Method, Key, Value string }

// ParseSelector reads method:key:value; the value may hold further colons. Each part must be there.
func ParseSelector(s string) (Selector, error) {
	parts := strings.SplitN(s, ":", 3)
	if len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" {
		return Selector{}, fmt.Errorf("selector %q is not method:key:value", s)
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		return Selector{}, fmt.Errorf("selector %q holds a control character", s)
	}
	return Selector{parts[0], parts[1], parts[2]}, nil
}

// String is method:key:value.
func (s Selector) String() string { return s.Method + ":" + s.Key + ":" + s.Value }

// Compare orders selectors by their text.
func (s Selector) Compare(t Selector) int { return strings.Compare(s.String(), t.String()) }

// Of puts a method's name before what its verifier found, sorted and without repeats.
func Of(method string, found []KeyValue) []Selector {
	out := make([]Selector, 0, len(found))
	for _, kv := range found {
		out = append(out, Selector{method, kv.Key, kv.Value})
	}
	slices.SortFunc(out, Selector.Compare)
	return slices.Compact(out)
}
