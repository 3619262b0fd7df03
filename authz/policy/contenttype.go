package policy

import (
	"bytes"
	"errors"
	"strings"
	"unicode/utf8"
)

var (
	errTypes   = errors.New("content-type names more than one type")
	errCharset = errors.New("content-type has a charset that is not read")
	errNotUTF8 = errors.New("not UTF-8")
)

// bodyKind is what a content type says of a body. The order is that of the questions: a type that names two kinds is the first.
type bodyKind uint8

const (
	otherBody bodyKind = iota
	jsonBody
	grpcBody
	formBody
	multipartBody
)

// kindOf does not look at the case of the letters: whoever serves the request does not either (RFC 9110 section 8.3.1).
func kindOf(contentType string) bodyKind {
	contentType = strings.ToLower(contentType)
	for i, part := range [...]string{"application/json", "application/grpc", "application/x-www-form-urlencoded", "multipart/form-data"} {
		if strings.Contains(contentType, part) {
			return bodyKind(i + 1)
		}
	}
	return otherBody
}

// oneType says that a content type is of its kind for every reader: also for one that takes the first or the last of several lines, which
// proxies join by commas, and for one that leaves out parameters. A body can be valid JSON and a form.
func oneType(contentType string, kind bodyKind) bool {
	if kind == multipartBody {
		return true // multipartValue is stricter
	}
	var only string
	for i, line := range strings.Split(strings.ToLower(contentType), ",") {
		name, _, _ := strings.Cut(line, ";")
		if name = strings.TrimSpace(name); i > 0 && name != only || kindOf(name) != kind {
			return false
		}
		only = name
	}
	return true
}

// A charset is what a content type says of how bytes are letters.
type charset uint8

const (
	utf8Charset  charset = iota // UTF-8, as where it says nothing
	asciiCharset                // ASCII is what it is in UTF-8
	otherCharset                // anything may be anything: +AGE- is a in UTF-7
)

// charsetOf takes any mention of a charset for one that a reader may heed.
func charsetOf(contentType string) (c charset) {
	_, rest, more := strings.Cut(strings.ToLower(contentType), "charset")
	for more {
		value, named := strings.CutPrefix(strings.TrimLeft(rest, " "), "=")
		value = strings.TrimLeft(value, ` "`)
		if n := strings.IndexAny(value, ` ",;`); n >= 0 {
			value = value[:n]
		}
		switch {
		case named && (value == "utf-8" || value == "utf8"):
		case named && (value == "" || value == "us-ascii" || value == "ascii" || value == "iso-8859-1" || value == "windows-1252"):
			c = max(c, asciiCharset)
		default:
			return otherCharset
		}
		_, rest, more = strings.Cut(rest, "charset")
	}
	return c
}

// fits says that a text is the same text for a reader who heeds the charset and for one who does not.
func (c charset) fits(text []byte) bool {
	return c == utf8Charset || c == asciiCharset && !bytes.ContainsFunc(text, func(r rune) bool { return r > 0x7f })
}

// check wants that of texts, and that they are UTF-8.
func (c charset) check(texts ...string) error {
	for _, text := range texts {
		if c != utf8Charset && !c.fits([]byte(text)) {
			return errCharset
		}
		if !utf8.ValidString(text) {
			return errNotUTF8
		}
	}
	return nil
}
