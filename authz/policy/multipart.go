package policy

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
)

// maxParts is how many parts a multipart body may have.
const maxParts = 1000

var errNoMultipart = errors.New("the body is no multipart form")

// multipartValue reads each named part's values: JSON where the part says so, otherwise its text. Without a boundary nobody can
// read the body; that is null.
func multipartValue(contentType string, raw []byte) (ast.Value, error) {
	_, parameters, err := mime.ParseMediaType(contentType)
	if err != nil {
		return nil, errors.New("content-type is no media type")
	}
	boundary, ok := parameters["boundary"]
	if !ok {
		return ast.Null{}, nil
	}
	values := map[string][]*ast.Term{}
	left := maxBodyValues
	r := multipart.NewReader(bytes.NewReader(raw), boundary)
	for n := 0; ; n++ {
		part, err := r.NextPart()
		switch {
		case err == io.EOF:
			return termsObject(values), nil
		case err != nil:
			return nil, errNoMultipart
		case n == maxParts:
			return nil, errors.New("the multipart form has too many parts")
		}
		name := part.FormName()
		if name == "" {
			continue
		}
		value, err := partValue(part, &left)
		if err != nil {
			return nil, err
		}
		values[name] = append(values[name], ast.NewTerm(value))
	}
}

// partValue takes the values of a JSON part off what is left for all of them.
func partValue(part *multipart.Part, left *int) (ast.Value, error) {
	text, err := io.ReadAll(part)
	if err != nil {
		return nil, errNoMultipart
	}
	if kindOf(part.Header.Get("Content-Type")) == jsonBody {
		if *left -= countJSON(text); *left < 0 {
			return nil, errBodyValues
		}
		return jsonValue(text)
	}
	return ast.String(text), nil
}

func termsObject(values map[string][]*ast.Term) ast.Value {
	pairs := make([][2]*ast.Term, 0, len(values))
	for name, list := range values {
		pairs = append(pairs, [2]*ast.Term{ast.StringTerm(name), ast.ArrayTerm(slices.Clip(list)...)})
	}
	return ast.NewObject(pairs...)
}
