package registration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// YAML writes the entry as one document that Parse reads back as it was, but for the revision, if Check takes it.
func YAML(e Entry) ([]byte, error) {
	var out bytes.Buffer
	line := func(key, value string) { fmt.Fprintf(&out, "%s: %s\n", key, value) }
	if e.Name != e.ID.String() {
		line("name", scalar(e.Name))
	}
	line("id", scalar(e.ID.String()))
	if e.Any {
		line("any", "true")
	} else {
		line("where", list(texts(e.Where)))
	}
	line("match", list(texts(e.Match)))
	if e.TTL != 0 {
		line("ttl", brief(e.TTL))
	}
	if e.JWTTTL != 0 {
		line("jwt_ttl", brief(e.JWTTTL))
	}
	if len(e.DNS) > 0 {
		line("dns", list(e.DNS))
	}
	if e.Hint != "" {
		line("hint", scalar(e.Hint))
	}
	if len(e.FederatesWith) > 0 {
		line("federates_with", list(texts(e.FederatesWith)))
	}
	if !e.Expires.IsZero() {
		line("expires", e.Expires.UTC().Format(time.RFC3339Nano))
	}
	return out.Bytes(), nil
}

var plain = regexp.MustCompile(`^(spiffe://)?[a-z][A-Za-z0-9._/-]*[A-Za-z0-9]$`)

// scalar quotes whatever a reader of YAML, ours or an older one, could take for something else than text.
func scalar(s string) string {
	switch s {
	case "null", "true", "false", "yes", "no", "on", "off":
		return quoted(s)
	}
	if plain.MatchString(s) {
		return s
	}
	return quoted(s)
}

// list quotes every element: selectors hold colons.
func list(values []string) string {
	elements := make([]string, len(values))
	for i, v := range values {
		elements[i] = quoted(v)
	}
	return "[" + strings.Join(elements, ", ") + "]"
}

// quoted is JSON's form, which YAML 1.2 takes for its double quotes.
func quoted(s string) string {
	var out strings.Builder
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(s); err != nil {
		return fmt.Sprintf("%q", s)
	}
	return strings.TrimSuffix(out.String(), "\n")
}
