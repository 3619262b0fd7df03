package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"
)

const (
	maxNested   = 1000 // how deep objects and lists of a body may stand in each other
	maxNumber   = 400  // bytes of a number
	plainNumber = 300  // bytes of a number that fits a double whatever it is, when it has no exponent
)

var (
	errNoJSON = errors.New("the body is no JSON")
	errNumber = errors.New("a number in the body's JSON fits no double")
	errHalf   = errors.New("half a surrogate pair in the body's JSON")
)

// jsonValue takes one document and nothing after it. A key that stands twice in an object is refused: some readers take the first,
// some the last (RFC 8259 section 4), and so are bytes that are not UTF-8 and halves of surrogate pairs (section 8.2), which readers replace
// in ways of their own.
func jsonValue(raw []byte) (ast.Value, error) {
	if len(raw) > maxBodyValues && countJSON(raw) > maxBodyValues {
		return nil, errBodyValues
	}
	if !utf8.Valid(raw) {
		return nil, errNoJSON
	}
	var document json.RawMessage
	d := json.NewDecoder(bytes.NewReader(raw))
	if err := d.Decode(&document); err != nil {
		return nil, errNoJSON
	}
	if len(bytes.TrimLeft(raw[d.InputOffset():], jsonSpace)) > 0 {
		return nil, errors.New("the body has more than one JSON document")
	}
	r := jsonReader{rest: string(document)}
	return r.value(maxNested)
}

// A jsonReader makes values of JSON that was found valid. Its texts are parts of the one string.
type jsonReader struct{ rest string }

const jsonSpace = " \t\r\n"

// next takes white space and gives the byte behind it.
func (r *jsonReader) next() byte {
	r.rest = strings.TrimLeft(r.rest, jsonSpace)
	return r.rest[0]
}

func (r *jsonReader) take(n int) string {
	taken := r.rest[:n]
	r.rest = r.rest[n:]
	return taken
}

func (r *jsonReader) value(depth int) (ast.Value, error) {
	switch c := r.next(); c {
	case '{', '[':
		if depth == 0 {
			return nil, errors.New("the body's JSON is nested too deep")
		}
		r.take(1)
		if c == '{' {
			return r.object(depth - 1)
		}
		return r.array(depth - 1)
	case '"':
		return r.text()
	case 't':
		r.take(len("true"))
		return ast.Boolean(true), nil
	case 'f':
		r.take(len("false"))
		return ast.Boolean(false), nil
	case 'n':
		r.take(len("null"))
		return ast.Null{}, nil
	}
	n := strings.IndexAny(r.rest, ",]}"+jsonSpace)
	if n < 0 {
		n = len(r.rest)
	}
	return readNumber(r.take(n))
}

// text ends at the first quotation mark that no backslash stands before.
func (r *jsonReader) text() (ast.Value, error) {
	end := 1
	for r.rest[end] != '"' {
		if r.rest[end] == '\\' {
			end++
		}
		end++
	}
	quoted := r.take(end + 1)
	if strings.IndexByte(quoted, '\\') < 0 {
		return ast.String(quoted[1:end]), nil
	}
	if halfPair(quoted) {
		return nil, errHalf
	}
	var plain string
	if err := json.Unmarshal([]byte(quoted), &plain); err != nil {
		return nil, errNoJSON
	}
	return ast.String(plain), nil
}

// halfPair finds an escape of half a character. Some readers keep it, others make U+FFFD or nothing of it: two texts may then be one.
func halfPair(quoted string) bool {
	for i := 0; ; {
		n := strings.IndexByte(quoted[i:], '\\')
		if n < 0 {
			return false
		}
		i += n
		first, size := escaped(quoted[i:])
		if i += size; !utf16.IsSurrogate(first) {
			continue
		}
		second, size := escaped(quoted[i:])
		if i += size; utf16.DecodeRune(first, second) == utf8.RuneError {
			return true
		}
	}
}

// escaped is the UTF-16 code that \uXXXX at the start of a text means, and the bytes it takes; another escape takes two and is no code of
// its own.
func escaped(text string) (code rune, size int) {
	if !strings.HasPrefix(text, `\u`) {
		return 0, 2
	}
	n, err := strconv.ParseUint(text[2:6], 16, 16)
	if err != nil {
		return 0, 2 // never: the text was found valid
	}
	return rune(n), 6
}

func (r *jsonReader) object(depth int) (ast.Value, error) {
	object := ast.NewObject()
	for n := 1; r.more('}'); n++ {
		key, err := r.value(0)
		if err != nil {
			return nil, err
		}
		r.next() // the colon
		r.take(1)
		value, err := r.value(depth)
		if err != nil {
			return nil, err
		}
		if object.Insert(ast.NewTerm(key), ast.NewTerm(value)); object.Len() != n {
			return nil, errors.New("a key stands twice in the body's JSON")
		}
	}
	return object, nil
}

func (r *jsonReader) array(depth int) (ast.Value, error) {
	var terms []*ast.Term
	for r.more(']') {
		value, err := r.value(depth)
		if err != nil {
			return nil, err
		}
		terms = append(terms, ast.NewTerm(value))
	}
	return ast.NewArray(terms...), nil
}

// more takes a comma, or the bracket that ends an object or a list.
func (r *jsonReader) more(end byte) bool {
	switch r.next() {
	case end:
		r.take(1)
		return false
	case ',':
		r.take(1)
	}
	return true
}

// readNumber takes what fits a double, as most readers hold numbers (RFC 8259 section 6). OPA panics at exponents that it cannot
// hold, and takes long over long ones.
func readNumber(text string) (ast.Value, error) {
	if len(text) > maxNumber {
		return nil, errNumber
	}
	if len(text) > plainNumber || strings.ContainsAny(text, "eE") {
		f, err := strconv.ParseFloat(text, 64)
		mantissa, _, _ := strings.Cut(strings.ToLower(text), "e")
		if err != nil || f == 0 && strings.ContainsAny(mantissa, "123456789") {
			return nil, errNumber
		}
	}
	return ast.Number(text), nil
}
