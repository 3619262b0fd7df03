package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"
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
)

// jsonValue takes one document and nothing after it. A key that stands twice in an object is refused: some readers take the first,
// some the last (RFC 8259 section 4), and so are bytes that are not UTF-8, which readers replace in ways of their own.
func jsonValue(raw []byte) (ast.Value, error) {
	if !utf8.Valid(raw) {
		return nil, errNoJSON
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	v, err := readJSON(d, maxNested)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("the body has more than one JSON document")
	}
	return v, nil
}

func readJSON(d *json.Decoder, depth int) (ast.Value, error) {
	token, err := d.Token()
	if err != nil {
		return nil, errNoJSON
	}
	switch token := token.(type) {
	case json.Delim:
		if depth == 0 {
			return nil, errors.New("the body's JSON is nested too deep")
		}
		if token == '{' {
			return readObject(d, depth-1)
		}
		return readArray(d, depth-1)
	case string:
		return ast.String(token), nil
	case json.Number:
		return readNumber(string(token))
	case bool:
		return ast.Boolean(token), nil
	}
	return ast.Null{}, nil
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

func readObject(d *json.Decoder, depth int) (ast.Value, error) {
	object := ast.NewObject()
	for n := 1; d.More(); n++ {
		key, err := readJSON(d, 1)
		if err != nil {
			return nil, err
		}
		value, err := readJSON(d, depth)
		if err != nil {
			return nil, err
		}
		if object.Insert(ast.NewTerm(key), ast.NewTerm(value)); object.Len() != n {
			return nil, errors.New("a key stands twice in the body's JSON")
		}
	}
	return object, closing(d)
}

func readArray(d *json.Decoder, depth int) (ast.Value, error) {
	var terms []*ast.Term
	for d.More() {
		value, err := readJSON(d, depth)
		if err != nil {
			return nil, err
		}
		terms = append(terms, ast.NewTerm(value))
	}
	return ast.NewArray(terms...), closing(d)
}

// closing takes the bracket that ends an object or a list.
func closing(d *json.Decoder) error {
	if _, err := d.Token(); err != nil {
		return errNoJSON
	}
	return nil
}
