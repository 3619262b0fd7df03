package policy

import (
	"encoding/json"
	"errors"
	"io"
	"net/url"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// parsedQuery is a query as keys with all their values. ParseTarget refused what does not parse.
func parsedQuery(query string) ast.Value {
	values, _ := url.ParseQuery(query)
	return valuesObject(values)
}

func valuesObject(values url.Values) ast.Value {
	pairs := make([][2]*ast.Term, 0, len(values))
	for key, list := range values {
		pairs = append(pairs, [2]*ast.Term{ast.StringTerm(key), ast.NewTerm(stringArray(list))})
	}
	return ast.NewObject(pairs...)
}

// parsedBody reads JSON and form bodies; null is a body of another type, an empty one, or one that the proxy cut short. An error
// is a body that is not what its content type says.
func (g *glance) parsedBody(wanted bool) (body ast.Value, truncated bool, err error) {
	raw := g.body
	if len(raw) == 0 {
		raw = g.rawBody
	}
	kind := g.header("content-type")
	isJSON, isForm := strings.Contains(kind, "application/json"), strings.Contains(kind, "application/x-www-form-urlencoded")
	if len(raw) == 0 || !isJSON && !isForm {
		return ast.Null{}, false, nil
	}
	truncated, err = g.truncated(len(raw))
	if err != nil || truncated || !wanted {
		return ast.Null{}, truncated, err
	}
	if isForm {
		values, err := url.ParseQuery(string(raw))
		if err != nil {
			return nil, false, errors.New("the body is no form")
		}
		return valuesObject(values), false, nil
	}
	body, err = jsonValue(raw)
	return body, false, err
}

func (g *glance) truncated(size int) (bool, error) {
	if g.header("x-envoy-auth-partial-body") == "true" {
		return true, nil
	}
	length := g.header("content-length")
	if length == "" {
		return false, nil
	}
	n, err := strconv.ParseInt(length, 10, 64)
	if err != nil {
		return false, errors.New("content-length is no number")
	}
	return n > int64(size), nil
}

// jsonValue takes one document and nothing after it.
func jsonValue(raw []byte) (ast.Value, error) {
	var v any
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, errors.New("the body is no JSON")
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("the body has more than one JSON document")
	}
	return ast.InterfaceToValue(v)
}
