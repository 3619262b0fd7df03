package authz

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"
)

// What one answer may change of a request or a response. Proxies have bounds of their own, and what they do beyond them differs.
const (
	maxMutations = 1000 // header lines and parameters in all
	maxName      = 256
	maxValue     = 16 << 10 // what Envoy's rules for a HeaderValue have; not all who speak ext_authz are as lenient as Envoy
	maxAnswer    = 1 << 20
)

// usable refuses what a proxy or whoever stands behind it may read as something else.
func usable(d Decision) error {
	if d.Outcome != Allowed && d.Outcome != Denied {
		return nil // nothing of the policy is sent
	}
	if len(d.Headers)+len(d.ResponseHeaders)+len(d.RemoveHeaders)+len(d.SetQuery)+len(d.RemoveQuery) > maxMutations {
		return fmt.Errorf("more than %d headers and parameters", maxMutations)
	}
	if err := checkMetadata(d.Metadata); err != nil {
		return err
	}
	if err := checkHeaders(d.Headers); err != nil {
		return err
	}
	if d.Outcome == Denied {
		return checkDenial(d)
	}
	if err := checkHeaders(d.ResponseHeaders); err != nil {
		return err
	}
	for _, name := range d.RemoveHeaders {
		if err := checkName(name); err != nil {
			return err
		}
	}
	return checkMutatedQuery(d)
}

// checkMutatedQuery takes any text as a parameter: it is escaped when it is written.
func checkMutatedQuery(d Decision) error {
	check := func(name, value string) error {
		if name == "" || len(name) > maxName || len(value) > maxValue || hasControl(name) || hasControl(value) ||
			!utf8.ValidString(name) || !utf8.ValidString(value) {
			return fmt.Errorf("query parameter %.40q is unusable", name)
		}
		return nil
	}
	for _, p := range d.SetQuery {
		if err := check(p.Name, p.Value); err != nil {
			return err
		}
	}
	for _, name := range d.RemoveQuery {
		if err := check(name, ""); err != nil {
			return err
		}
	}
	return nil
}

// checkDenial takes every final status, RFC 9110 section 15, though the enum of Envoy's protos lacks most of them: Envoy answers with
// the number, also with 100, after which clients wait for another answer.
func checkDenial(d Decision) error {
	if d.Status != 0 && d.Status < 200 || d.Status > 599 {
		return fmt.Errorf("http_status %d is unusable", d.Status)
	}
	if !utf8.ValidString(d.Body) {
		return errors.New("body is not UTF-8")
	}
	return nil
}

func checkHeaders(headers []Header) error {
	for _, h := range headers {
		if err := checkName(h.Name); err != nil {
			return err
		}
		if len(h.Value) > maxValue || hasControl(h.Value) || !utf8.ValidString(h.Value) {
			return fmt.Errorf("value of header %q is unusable", h.Name)
		}
	}
	return nil
}

// checkName leaves framing to the proxy: these two say where a message ends, and who believes another end reads another request.
func checkName(name string) error {
	if !token(name) || len(name) > maxName || strings.EqualFold(name, "content-length") || strings.EqualFold(name, "transfer-encoding") {
		return fmt.Errorf("header name %.40q is unusable", name)
	}
	return nil
}

// hasControl finds what RFC 9110 section 5.5 keeps out of a field's value: control characters but the tab.
func hasControl(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 && s[i] != '\t' || s[i] == 0x7f {
			return true
		}
	}
	return false
}

// token is RFC 9110 section 5.6.2; it leaves out pseudo headers.
func token(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

// escapeQuery keeps a text one part of a query, for proxies write it as it comes: what would end it is escaped, and what is escaped
// already stays as it is.
func escapeQuery(s, alsoEscape string) string {
	var b strings.Builder
	done := 0
	for i := range len(s) {
		c := s[i]
		plain := c > ' ' && c < 0x7f && strings.IndexByte("\"#&;<>\\^`{|}", c) < 0 && strings.IndexByte(alsoEscape, c) < 0
		if plain && (c != '%' || i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2])) {
			continue
		}
		b.WriteString(s[done:i])
		fmt.Fprintf(&b, "%%%02X", c)
		done = i + 1
	}
	if done == 0 {
		return s
	}
	return b.String() + s[done:]
}

func isHex(c byte) bool { return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f' }

// removedQuery is what to remove of a request's query: the names as they are given, and those of the request that mean the same as
// one of them, or as one that is set, in another spelling. Proxies compare bytes; the upstream reads what they mean.
func removedQuery(d Decision) (names []string) {
	if len(d.SetQuery)+len(d.RemoveQuery) == 0 {
		return nil
	}
	written, meant := map[string]bool{}, map[string]bool{}
	mean := func(name string) string {
		name = escapeQuery(name, "=")
		written[name] = true
		if plain, err := url.QueryUnescape(name); err == nil {
			meant[plain] = true
		}
		return name
	}
	for _, name := range d.RemoveQuery {
		names = append(names, mean(name))
	}
	for _, p := range d.SetQuery {
		mean(p.Name)
	}
	_, query, _ := strings.Cut(d.Request.Path, "?")
	for part := range strings.SplitSeq(query, "&") {
		name, _, _ := strings.Cut(part, "=")
		plain, err := url.QueryUnescape(name)
		if err == nil && meant[plain] && !written[name] && !hasControl(name) {
			written[name] = true
			names = append(names, name)
		}
	}
	return names
}
