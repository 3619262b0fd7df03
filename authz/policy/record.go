package policy

import (
	"net/url"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// masked stands where a value was.
const masked = "[masked]"

// plainHeaders are headers whose values every record may show.
func plainHeaders() []string {
	return []string{":authority", ":method", ":scheme", "accept", "content-length", "content-type", "host", "user-agent",
		"x-forwarded-proto", "x-request-id"}
}

// recorded is what a policy read and gave, for the record. It is masked and turned to JSON only when it is written: off the
// request's path.
type recorded struct {
	set    *Set
	input  ast.Value
	result ast.Value // nil: undefined, or none was asked for
	show   recordKeys
}

func (r recorded) mask(input map[string]any) {
	http := tree(tree(tree(input, "attributes"), "request"), "http")
	for _, key := range []string{"path", "query"} {
		if text, ok := http[key].(string); ok {
			http[key] = r.maskTarget(text, key == "query")
		}
	}
	r.maskHeaders(tree(http, "headers"))
	if lines, ok := tree(http, "headerMap")["headers"].([]any); ok {
		for _, line := range lines {
			r.maskLine(line)
		}
	}
	if !r.show.Body {
		hide(http, "body", "rawBody")
		hide(input, "parsed_body")
	}
	for key := range tree(input, "parsed_query") {
		if !slices.Contains(r.show.Query, key) {
			hide(tree(input, "parsed_query"), key)
		}
	}
}

func (r recorded) maskHeaders(headers map[string]any) {
	for name, value := range headers {
		if text, ok := value.(string); ok && name == ":path" {
			headers[name] = r.maskTarget(text, false)
		} else if !r.plain(name) {
			headers[name] = masked
		}
	}
}

func (r recorded) plain(name string) bool {
	name = strings.ToLower(name)
	return slices.Contains(plainHeaders(), name) || slices.Contains(r.show.Headers, name)
}

func (r recorded) maskLine(line any) {
	if pair, ok := line.(map[string]any); ok {
		if name, _ := pair["key"].(string); !r.plain(name) {
			hide(pair, "value", "rawValue")
		}
	}
}

// maskTarget keeps a path and the names in its query.
func (r recorded) maskTarget(text string, isQuery bool) string {
	path, query, found := "", text, true
	if !isQuery {
		path, query, found = strings.Cut(text, "?")
	}
	if !found || query == "" {
		return text
	}
	parts := strings.Split(query, "&")
	for i, part := range parts {
		name, _, _ := strings.Cut(part, "=")
		if plain, err := url.QueryUnescape(name); err != nil || !slices.Contains(r.show.Query, plain) {
			parts[i] = name + "=" + masked
		}
	}
	query = strings.Join(parts, "&")
	if isQuery {
		return query
	}
	return path + "?" + query
}

func tree(m map[string]any, key string) map[string]any {
	below, _ := m[key].(map[string]any)
	return below
}

func hide(m map[string]any, keys ...string) {
	for _, key := range keys {
		if v, there := m[key]; there && v != nil {
			m[key] = masked
		}
	}
}
