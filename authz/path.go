package authz

import (
	"errors"
	"net/url"
	"strings"
	"unicode/utf8"
)

// Target is a request's path and query as a policy may rely on them.
type Target struct {
	Path  string // unescaped once
	Query string // raw
}

// ParseTarget is the path rule. A path that two readers may take for two resources is an error, so that no policy judges another
// resource than the upstream serves: empty and dot segments in every spelling, separators and NUL in disguise, broken escapes.
// Escapes are undone once, as upstreams do; %2561 is the plain text %61. Lenient lets ambiguous paths through, never broken ones.
func ParseTarget(raw string, lenient bool) (Target, error) {
	path, query, _ := strings.Cut(raw, "?")
	if err := checkQuery(query); err != nil {
		return Target{}, err
	}
	if strings.ContainsFunc(path, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		return Target{}, errors.New("control character in the path")
	}
	plain, err := unescape(path)
	if err != nil {
		return Target{}, errors.New("invalid escape in the path")
	}
	if lenient {
		return Target{plain, query}, nil
	}
	return Target{plain, query}, checkPath(path, plain)
}

func unescape(s string) (string, error) {
	if strings.IndexByte(s, '%') < 0 {
		return s, nil
	}
	return url.PathUnescape(s)
}

// checkQuery refuses what decoders are known to split differently.
func checkQuery(query string) error {
	if strings.IndexByte(query, ';') >= 0 {
		return errors.New("semicolon in the query")
	}
	if strings.IndexByte(query, '%') < 0 {
		return nil
	}
	if _, err := url.QueryUnescape(query); err != nil {
		return errors.New("invalid escape in the query")
	}
	return nil
}

func checkPath(path, plain string) error {
	switch {
	case strings.Contains(path, "//"):
		return errors.New("empty segment in the path")
	case strings.IndexByte(plain, '\\') >= 0:
		return errors.New("backslash in the path")
	case strings.IndexByte(path, '#') >= 0:
		return errors.New("fragment in the path")
	case len(path) != len(plain) && strings.Count(path, "/") != strings.Count(plain, "/"):
		return errors.New("escaped slash in the path")
	case strings.IndexByte(plain, 0) >= 0:
		return errors.New("escaped NUL in the path")
	case !utf8.ValidString(plain):
		return errors.New("escaped bytes in the path are not UTF-8")
	}
	return checkSegments(plain)
}

// checkSegments looks at each segment as an upstream may that drops path parameters: what a semicolon begins.
func checkSegments(plain string) error {
	if strings.IndexByte(plain, ';') < 0 && !strings.Contains(plain, "/.") && !strings.HasPrefix(plain, ".") {
		return nil
	}
	rest, more := strings.TrimPrefix(plain, "/"), true
	for more {
		var segment string
		segment, rest, more = strings.Cut(rest, "/")
		name, _, parameters := strings.Cut(segment, ";")
		switch {
		case name == "." || name == "..":
			return errors.New("dot segment in the path")
		case name == "" && parameters && more:
			return errors.New("empty segment in the path")
		}
	}
	return nil
}
