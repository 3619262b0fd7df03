package policy

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"
)

const (
	maxParts    = 1000 // of a multipart body
	maxOfHeader = 16   // parameters: each is compared with those before it
)

var (
	errNoMultipart = errors.New("the body is no multipart form")
	errPartHead    = errors.New("a part of the multipart form has a head that is read in two ways")
	errPartName    = errors.New("a part of the multipart form has a name that is read in two ways")
	errPartText    = errors.New("a part of the multipart form has a text that is read in two ways")
)

// multipartValue reads each part's values: JSON where the part says so, otherwise its text. Without a boundary nobody can read the body;
// that is null. It takes forms as clients write them (RFC 7578) and nothing else: servers read all else in ways of their own, as to where
// a part ends and what its name is.
func multipartValue(contentType string, raw []byte) (ast.Value, error) {
	kind, all, ok := parseParameters(strings.TrimRight(contentType, "; "))
	if !ok || kind != "multipart/form-data" {
		return nil, errors.New("content-type is no media type")
	}
	at := slices.IndexFunc(all, func(p parameter) bool { return p.name == "boundary" })
	if at < 0 {
		return ast.Null{}, nil
	}
	of := charsetOf(contentType)
	if of == otherCharset {
		return nil, errCharset
	}
	parts, err := splitParts(raw, all[at].value)
	if err != nil {
		return nil, err
	}
	values := map[string][]*ast.Term{}
	left := maxBodyValues
	for _, text := range parts {
		p, err := readPart(text)
		if err != nil {
			return nil, err
		}
		value, err := p.value(&left, of)
		if err != nil {
			return nil, err
		}
		values[p.name] = append(values[p.name], ast.NewTerm(value))
	}
	return termsObject(values), nil
}

// splitParts cuts a body at its delimiters (RFC 2046 section 5.1.1). Wherever the bytes of one occur, one must stand, in a line of its own
// that ends with CR LF: readers also take those after LF, after CR or in the middle of a line, or those that go on, or are padded.
func splitParts(raw []byte, boundary string) (parts [][]byte, err error) {
	const most = 70
	if boundary == "" || len(boundary) > most || strings.TrimFunc(boundary, inBoundary) != "" {
		return nil, errNoMultipart
	}
	delimiter, line := []byte("--"+boundary), []byte("\r\n")
	before, rest, found := bytes.Cut(raw, delimiter)
	if !found || len(before) > 0 && !bytes.HasSuffix(before, line) {
		return nil, errNoMultipart
	}
	for bytes.HasPrefix(rest, line) {
		if before, rest, found = bytes.Cut(rest[len(line):], delimiter); !found || !bytes.HasSuffix(before, line) {
			return nil, errNoMultipart
		}
		if parts = append(parts, before[:len(before)-len(line)]); len(parts) > maxParts {
			return nil, errors.New("the multipart form has too many parts")
		}
	}
	end, ended := bytes.CutPrefix(rest, []byte("--"))
	if !ended || len(end) > 0 && !bytes.HasPrefix(end, line) || bytes.Contains(end, delimiter) {
		return nil, errNoMultipart
	}
	return parts, nil
}

// inBoundary are the bytes of RFC 2046 section 5.1.1 but the space, which some readers trim.
func inBoundary(r rune) bool { return isLetter(r) || strings.ContainsRune("'()+_,-./:=?", r) }

func isLetter(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
}

// part is one of a form.
type part struct {
	name        string
	file        bool // it has a file's name
	contentType string
	content     []byte
}

// readPart wants one name, said once and first, in the one spelling that all readers undo alike.
func readPart(text []byte) (*part, error) {
	head, content, found := bytes.Cut(text, []byte("\r\n\r\n"))
	headers, ok := parseHead(string(head))
	if !found || !ok {
		return nil, errPartHead
	}
	kind, all, ok := parseParameters(headers["content-disposition"])
	if !ok || kind != "form-data" || len(all) == 0 || all[0].name != "name" || !plainName(all[0].value) {
		return nil, errPartName
	}
	file := slices.ContainsFunc(all[1:], func(p parameter) bool { return strings.HasPrefix(p.name, "filename") && p.value != "" })
	return &part{all[0].value, file, headers["content-type"], content}, nil
}

// parseHead reads the lines of a part's head, none of them folded and none twice. Some readers undo transfer encodings, which no client
// uses (RFC 7578 section 4.7), and some look for parts in parts.
func parseHead(head string) (headers map[string]string, ok bool) {
	headers = map[string]string{}
	for line := range strings.SplitSeq(head, "\r\n") {
		name, value, found := strings.Cut(line, ":")
		name = strings.ToLower(name)
		if _, again := headers[name]; !found || again || !isPlain(name, "-_") || strings.ContainsFunc(value, isControl) {
			return nil, false
		}
		headers[name] = strings.Trim(value, " ")
	}
	encodings := []string{"", "7bit", "8bit", "binary"}
	return headers, utf8.ValidString(head) && slices.Contains(encodings, strings.ToLower(headers["content-transfer-encoding"])) &&
		!strings.Contains(strings.ToLower(headers["content-type"]), "multipart/")
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

// isPlain says that a text has letters, digits and the others only, at least one.
func isPlain(text, others string) bool {
	return text != "" && !strings.ContainsFunc(text, func(r rune) bool { return !isLetter(r) && !strings.ContainsRune(others, r) })
}

// plainName refuses what some readers undo and others do not: backslashes, the escapes of the HTML standard, encoded words.
func plainName(name string) bool {
	low := strings.ToLower(name)
	return name != "" && !slices.ContainsFunc([]string{`\`, "%22", "%0a", "%0d", "=?"}, func(s string) bool { return strings.Contains(low, s) })
}

// A parameter is one of a header such as `form-data; name="a"`.
type parameter struct{ name, value string }

// parseParameters takes what all readers take: each name once, texts in double quotes of which no backslash hides the end. Names with a
// star (RFC 8187) are for some readers the same as those without; clients write one of them, behind a file's plain name.
func parseParameters(text string) (kind string, all []parameter, ok bool) {
	kind, rest, more := strings.Cut(text, ";")
	for more && len(all) < maxOfHeader {
		var p parameter
		p.name, rest, ok = strings.Cut(strings.TrimLeft(rest, " "), "=")
		p.name = strings.ToLower(p.name)
		extended := p.name == "filename*"
		if again := slices.ContainsFunc(all, func(before parameter) bool { return before.name == p.name }); !ok || again || !extended && !isPlain(p.name, "-_") {
			return "", nil, false
		}
		if strings.HasPrefix(rest, `"`) {
			p.value, rest, ok = strings.Cut(rest[1:], `"`)
			rest = strings.TrimLeft(rest, " ")
			if ok = ok && !strings.HasSuffix(p.value, `\`) && (rest == "" || rest[0] == ';'); !ok {
				return "", nil, false
			}
			_, rest, more = strings.Cut(rest, ";")
		} else {
			p.value, rest, more = strings.Cut(rest, ";")
			p.value = strings.TrimRight(p.value, " ")
			if !isPlain(p.value, "-_.+") && !(extended && isPlain(p.value, "-_.+'%~!#$&^`|")) {
				return "", nil, false
			}
		}
		all = append(all, p)
	}
	return strings.ToLower(strings.TrimRight(kind, " ")), all, !more
}

// value takes the values of a JSON part off what is left for all of them.
func (p *part) value(left *int, of charset) (ast.Value, error) {
	if !p.file && !max(of, charsetOf(p.contentType)).fits(p.content) || !of.fits([]byte(p.name)) {
		return nil, errPartText
	}
	if kindOf(p.contentType) == jsonBody {
		if *left -= countJSON(p.content); *left < 0 {
			return nil, errBodyValues
		}
		return jsonValue(p.content)
	}
	if !p.file && isText(p.contentType) && !utf8.Valid(p.content) {
		return nil, errPartText
	}
	return ast.String(p.content), nil
}

// isText says that a part's bytes are a text, as they are where it does not say what they are (RFC 7578 section 4.4).
func isText(contentType string) bool {
	return contentType == "" || strings.HasPrefix(strings.ToLower(contentType), "text/")
}

func termsObject(values map[string][]*ast.Term) ast.Value {
	pairs := make([][2]*ast.Term, 0, len(values))
	for name, list := range values {
		pairs = append(pairs, [2]*ast.Term{ast.StringTerm(name), ast.ArrayTerm(slices.Clip(list)...)})
	}
	return ast.NewObject(pairs...)
}
