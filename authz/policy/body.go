package policy

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

var errParameters = fmt.Errorf("more than %d parameters", maxParameters)

// parameters reads a query or a form. Beside an error url.ParseQuery gives what it could read: nobody may judge by a part.
func parameters(text string, c charset) (url.Values, error) {
	if strings.Count(text, "&") >= maxParameters {
		return nil, errParameters
	}
	values, err := url.ParseQuery(text)
	if err != nil {
		return nil, err
	}
	for key, list := range values {
		if err := errors.Join(c.check(key), c.check(list...)); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// queryCharset is what some readers decode a query by too.
func (g *glance) queryCharset(query string) charset {
	if query == "" {
		return utf8Charset
	}
	return charsetOf(g.header("content-type"))
}

// parsedQuery is a query as keys with all their values. Bytes that are not UTF-8 are kept by some readers, replaced or dropped by others;
// what a # begins is read by some and no part of the query to others.
func parsedQuery(query string, c charset) (ast.Value, error) {
	values, err := parameters(query, c)
	switch {
	case errors.Is(err, errCharset):
		return nil, errCharset
	case strings.IndexByte(query, '#') >= 0:
		return nil, errors.New("fragment in the query")
	case err == errParameters:
		return nil, fmt.Errorf("the query has %w", err)
	case errors.Is(err, errNotUTF8):
		return nil, errors.New("escaped bytes in the query are not UTF-8")
	case err != nil:
		return nil, errors.New("the query does not parse")
	}
	return valuesObject(values), nil
}

func valuesObject(values url.Values) ast.Value {
	pairs := make([][2]*ast.Term, 0, len(values))
	for key, list := range values {
		pairs = append(pairs, [2]*ast.Term{ast.StringTerm(key), ast.NewTerm(stringArray(list))})
	}
	return ast.NewObject(pairs...)
}

// parsedBody reads JSON, gRPC, form and multipart bodies; null is a body of another type, an empty one, or one that the proxy cut
// short. An error is a body that is not what its content type says, or that two readers may read differently.
func (g *glance) parsedBody(wanted bool, path string, s *services, most int) (body ast.Value, truncated bool, err error) {
	contentType := g.header("content-type")
	kind := kindOf(contentType)
	raw := g.body
	if len(raw) == 0 || kind == grpcBody {
		raw = g.rawBody
	}
	if kind == otherBody || len(raw) == 0 {
		return ast.Null{}, g.partial(), nil
	}
	if kind == grpcBody {
		return g.grpcBody(wanted, raw, path, s, most)
	}
	truncated, err = g.truncated(len(raw))
	if err != nil || truncated || !wanted {
		return ast.Null{}, truncated, err
	}
	if raw, err = unpack(g.header("content-encoding"), raw, most); err != nil {
		return nil, false, err
	}
	if !oneType(contentType, kind) {
		return nil, false, errTypes
	}
	switch kind {
	case jsonBody:
		if body, err = jsonValue(raw); err == nil && !charsetOf(contentType).fits(raw) {
			err = errCharset
		}
	case formBody:
		body, err = formValue(raw, charsetOf(contentType))
	default:
		body, err = multipartValue(contentType, raw)
	}
	return body, false, err
}

// partial is what the proxy says: it lets no client send this header.
func (g *glance) partial() bool { return g.header("x-envoy-auth-partial-body") == "true" }

func (g *glance) truncated(size int) (bool, error) {
	if g.partial() {
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

// errBodySize is a body over what its set takes.
var errBodySize = errors.New("the body is too large")

var errBodyValues = fmt.Errorf("%w: it has more than %d values", errBodySize, maxBodyValues)

// unpack undoes the content encoding that every server knows, up to a size of most bytes. A policy must not take for no body what the upstream can read.
func unpack(encoding string, raw []byte, most int) ([]byte, error) {
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "", "identity":
		if len(raw) > most {
			return nil, errBodySize
		}
		return raw, nil
	case "gzip", "x-gzip":
		return gunzip(raw, most)
	}
	return nil, errors.New("the body has a content-encoding that is not read")
}

// gunzip takes one member and nothing behind it: of several some readers take the first.
func gunzip(raw []byte, most int) ([]byte, error) {
	packed := bytes.NewReader(raw)
	z, err := gzip.NewReader(packed)
	if err != nil {
		return nil, errors.New("the body is not gzip")
	}
	z.Multistream(false)
	plain, err := io.ReadAll(io.LimitReader(z, int64(most)+1))
	switch {
	case err != nil:
		return nil, errors.New("the body is not gzip")
	case len(plain) > most:
		return nil, errBodySize
	case packed.Len() > 0:
		return nil, errors.New("the body is more than one gzip member")
	}
	return plain, nil
}

func formValue(raw []byte, c charset) (ast.Value, error) {
	values, err := parameters(string(raw), c)
	switch {
	case errors.Is(err, errCharset):
		return nil, errCharset
	case err == errParameters:
		return nil, fmt.Errorf("%w: it has %w", errBodySize, err)
	case errors.Is(err, errNotUTF8):
		return nil, errors.New("the body is no form in UTF-8")
	case err != nil:
		return nil, errors.New("the body is no form")
	}
	return valuesObject(values), nil
}
