package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// The JSON schema library follows references without end, as deep as they go, and any of them may be written by a client. What a
// schema takes is therefore found out before the library sees it: the schema is read as the library reads it, and the instance is
// walked as the library walks it, but nothing is judged, and both stop at a bound.
const (
	maxSchemaValues = 20_000
	maxSchemaDepth  = 200 // of schemas in schemas, references not counted
	maxInstance     = 50_000
	maxSchemaText   = 2 << 20
	maxSchemaSteps  = 5_000 // of schemas that stand in each other or refer to each other, while one value is judged or one schema read
	maxSchemaCost   = 10_000_000

	// Costs, in some ten nanoseconds each.
	costVisit  = 100
	costFault  = 700 // to make a text of, twice
	costByte   = 6   // of a value that is written out
	costNumber = 10_000
	costOp     = 20 // of an operation of a regular expression, to compile
)

var (
	errSchemaLoop = errors.New("the schema refers to itself without end")
	errSchemaCost = errors.New("the schema and what it judges take too long")
	errSchemaDeep = errors.New("the schema is nested too deep")
)

// verifiable is the bound of json.verify_schema, which only reads a schema.
func verifiable(operands []*ast.Term) error {
	_, _, err := readSchema(operands[0].Value)
	return err
}

// matchable is the bound of json.match_schema.
func matchable(operands []*ast.Term) error {
	root, cost, err := readSchema(operands[1].Value)
	if root == nil || err != nil {
		return err
	}
	document, ok, err := plainJSON(operands[0].Value, maxInstance)
	if !ok || err != nil {
		return err
	}
	value, err := newInstance(document, 0)
	if err != nil {
		return err
	}
	walk := schemaWalk{left: maxSchemaCost - cost}
	return walk.visit(root, value, 0)
}

// plainJSON gives a value as the library takes it; false for what the library refuses itself.
func plainJSON(v ast.Value, most int) (document any, ok bool, err error) {
	if spend(v, most) < 0 {
		return nil, false, fmt.Errorf("an operand has more than %d values", most)
	}
	if textSize(v) > maxSchemaText {
		return nil, false, fmt.Errorf("an operand has more than %d bytes", maxSchemaText)
	}
	switch v := v.(type) {
	case ast.String:
		if countJSON([]byte(v)) > most {
			return nil, false, fmt.Errorf("an operand has more than %d values", most)
		}
		if !json.Valid([]byte(v)) {
			return nil, false, nil
		}
		d := json.NewDecoder(strings.NewReader(string(v)))
		d.UseNumber()
		err = d.Decode(&document)
	case ast.Object, *ast.Array:
		document, err = ast.JSON(v)
	default:
		return nil, false, nil
	}
	return document, err == nil, nil
}

// A subschema is what decides how much the library does with one value.
type subschema struct {
	refers     *subschema   // nothing else counts then
	here       []*subschema // that judge the same value
	properties map[string]*subschema
	patterns   []namePattern
	others     *subschema
	names      *subschema
	items      []*subschema
	each       bool // items are one schema for all
	rest       *subschema
	contains   *subschema
	types      []any
	required   []string
	expression int  // operations of pattern
	faults     int  // that may be found beside
	written    int  // bytes of what values are compared with; 0 where they are not
	expresses  bool // format: regex
	format     bool

	state int // of the search for loops
}

type namePattern struct {
	expression int
	schema     *subschema
}

// A schemaReader reads one document as the library does, at most as often.
type schemaReader struct {
	pool  map[string]any        // documents and parts that have a name
	known map[string]*subschema // by reference
	cost  int
}

// readSchema gives nil for what the library refuses itself, and what reading costs.
func readSchema(v ast.Value) (*subschema, int, error) {
	document, ok, err := plainJSON(v, maxSchemaValues)
	if !ok || err != nil {
		return nil, 0, err
	}
	r := schemaReader{pool: map[string]any{}, known: map[string]*subschema{}}
	if err := r.collect(document, &url.URL{}, 0); err != nil {
		return nil, 0, err
	}
	r.pool[""] = document
	s, err := r.read(document, 0, 0)
	if err != nil {
		return nil, 0, err
	}
	return s, r.cost, s.loops()
}

// collect names what has an id and makes references absolute, in all that may be a schema.
func (r *schemaReader) collect(document any, base *url.URL, depth int) error {
	if depth > maxSchemaDepth {
		return errSchemaDeep
	}
	switch m := document.(type) {
	case []any:
		for _, v := range m {
			if err := r.collect(v, base, depth+1); err != nil {
				return err
			}
		}
	case map[string]any:
		key := "$id"
		if _, old := m["id"]; old {
			key = "id"
		}
		if id, ok := m[key].(string); ok {
			if own, err := inherit(base, id); err == nil {
				base = own
				r.pool[own.String()] = document
			}
		}
		if ref, ok := m["$ref"].(string); ok {
			if own, err := inherit(base, ref); err == nil {
				m["$ref"] = own.String()
			}
		}
		for key, v := range m {
			if key == "const" || key == "enum" {
				continue
			}
			below := []any{v}
			if key == "properties" || key == "dependencies" || key == "patternProperties" {
				below = nil
				named, _ := v.(map[string]any)
				for _, v := range named {
					below = append(below, v)
				}
			}
			for _, v := range below {
				if err := r.collect(v, base, depth+1); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func inherit(base *url.URL, text string) (*url.URL, error) {
	child, err := url.Parse(text)
	if err != nil {
		return nil, err
	}
	parent := *base
	parent.Fragment = ""
	return url.Parse(parent.ResolveReference(child).String())
}

// find gives what a reference means within the document.
func (r *schemaReader) find(ref string) (any, error) {
	u, err := url.Parse(ref)
	if err != nil {
		return nil, err
	}
	if found, ok := r.pool[u.String()]; ok {
		return found, nil
	}
	fragment := u.Fragment
	u.Fragment = ""
	found, ok := r.pool[u.String()]
	if !ok {
		return nil, fmt.Errorf("the schema refers to %s, which is not in it", shortened(ref))
	}
	if !strings.HasPrefix(fragment, "/") {
		return found, nil
	}
	for _, token := range strings.Split(fragment[1:], "/") {
		switch v := found.(type) {
		case map[string]any:
			found, ok = v[strings.ReplaceAll(strings.ReplaceAll(token, "~1", "/"), "~0", "~")]
		case []any:
			i, err := strconv.Atoi(token)
			if ok = err == nil && i >= 0 && i < len(v); ok {
				found = v[i]
			}
		default:
			ok = false
		}
		if !ok {
			return nil, fmt.Errorf("the schema refers to %s, which is not in it", shortened(ref))
		}
	}
	return found, nil
}

func shortened(s string) string {
	if len(s) > 100 {
		return s[:100] + "..."
	}
	return s
}

func (r *schemaReader) pay(n int) error {
	if r.cost += n; r.cost > maxSchemaCost {
		return errSchemaCost
	}
	return nil
}

// read gives a schema that matches anything for what is none; steps counts through references too.
func (r *schemaReader) read(document any, depth, steps int) (*subschema, error) {
	if depth > maxSchemaDepth || steps > maxSchemaSteps {
		return nil, errSchemaDeep
	}
	s := &subschema{}
	m, ok := document.(map[string]any)
	if !ok {
		s.faults = 1
		return s, r.pay(costVisit)
	}
	if err := r.pay(costVisit + 10*len(m)); err != nil {
		return nil, err
	}
	if ref, ok := m["$ref"].(string); ok {
		if err := r.follow(s, ref, steps); err != nil {
			return nil, err
		}
	}
	one := func(v any) (*subschema, error) { return r.read(v, depth+1, steps+1) }
	if err := r.members(s, m, one); err != nil {
		return nil, err
	}
	return s, r.assertions(s, m)
}

func (r *schemaReader) follow(s *subschema, ref string, steps int) error {
	if known, ok := r.known[ref]; ok {
		s.refers = known
		return nil
	}
	target, err := r.find(ref)
	if err != nil {
		return err
	}
	// Schemas below refer to this one while it is read.
	known := &subschema{}
	r.known[ref] = known
	read, err := r.read(target, 0, steps+1)
	if err != nil {
		return err
	}
	*known = *read
	s.refers = known
	return nil
}

// members reads the schemas in a schema.
func (r *schemaReader) members(s *subschema, m map[string]any, one func(any) (*subschema, error)) (err error) {
	many := func(to *[]*subschema, list []any) error {
		for _, v := range list {
			below, err := one(v)
			if err != nil {
				return err
			}
			*to = append(*to, below)
		}
		return nil
	}
	for _, key := range []string{"allOf", "anyOf", "oneOf"} {
		list, _ := m[key].([]any)
		if err := many(&s.here, list); err != nil {
			return err
		}
		if len(list) > 0 {
			s.faults++
		}
	}
	for _, key := range []string{"not", "if", "then", "else"} {
		if v, ok := m[key]; ok {
			if err := many(&s.here, []any{v}); err != nil {
				return err
			}
			s.faults++
		}
	}
	for _, key := range []string{"properties", "patternProperties", "dependencies", "definitions"} {
		named, _ := m[key].(map[string]any)
		for name, v := range named {
			if list, ok := v.([]any); ok {
				s.faults += len(list)
				continue
			}
			below, err := one(v)
			if err != nil {
				return err
			}
			if err := r.named(s, key, name, below); err != nil {
				return err
			}
		}
	}
	switch items := m["items"].(type) {
	case nil:
	case []any:
		err = many(&s.items, items)
	default:
		s.each = true
		err = many(&s.items, []any{items})
	}
	for key, to := range map[string]**subschema{"additionalProperties": &s.others, "propertyNames": &s.names, "additionalItems": &s.rest, "contains": &s.contains} {
		if v, ok := m[key]; ok && err == nil {
			*to, err = one(v)
		}
	}
	return err
}

func (r *schemaReader) named(s *subschema, key, name string, below *subschema) error {
	switch key {
	case "properties":
		if s.properties == nil {
			s.properties = map[string]*subschema{}
		}
		s.properties[name] = below
	case "patternProperties":
		n := operations(name)
		s.patterns = append(s.patterns, namePattern{n, below})
		return r.pay(n * costOp)
	case "dependencies":
		s.here = append(s.here, below)
	}
	return nil
}

// assertions reads what else a schema asks of a value.
func (r *schemaReader) assertions(s *subschema, m map[string]any) error {
	switch t := m["type"].(type) {
	case string:
		s.types = []any{t}
	case []any:
		s.types = t
	}
	required, _ := m["required"].([]any)
	for _, v := range required {
		name, _ := v.(string)
		s.required = append(s.required, name)
	}
	for _, key := range []string{"multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength",
		"minProperties", "maxProperties", "minItems", "maxItems", "uniqueItems", "const", "enum", "format", "pattern"} {
		if _, ok := m[key]; ok {
			s.faults++
		}
	}
	for _, v := range m {
		if n, ok := v.(json.Number); ok {
			if err := fitsSchema(n); err != nil {
				return err
			}
		}
	}
	format, _ := m["format"].(string)
	s.format, s.expresses = format != "", format == "regex"
	if text, ok := m["pattern"].(string); ok {
		s.expression = operations(text)
	}
	for _, key := range []string{"const", "enum", "uniqueItems"} {
		if v, ok := m[key]; ok {
			s.written += 1 + writtenSize(v)
		}
	}
	enum, _ := m["enum"].([]any)
	return r.pay(s.expression*costOp + s.written*costByte + (len(required)*len(required)+len(enum)*len(enum))/8)
}

// writtenSize is about how many bytes JSON text of a value has.
func writtenSize(document any) (n int) {
	switch v := document.(type) {
	case string:
		return len(v) + 2
	case json.Number:
		return len(v)
	case []any:
		for _, below := range v {
			n += writtenSize(below) + 1
		}
	case map[string]any:
		for key, below := range v {
			n += len(key) + writtenSize(below) + 4
		}
	}
	return n + 5
}

// loops finds schemas that come back to themselves at the same value.
func (s *subschema) loops() error {
	const entered, left = 1, 2
	var all func(s *subschema) error
	all = func(s *subschema) error {
		switch s.state {
		case entered:
			return errSchemaLoop
		case left:
			return nil
		}
		s.state = entered
		for _, next := range s.same() {
			if err := all(next); err != nil {
				return err
			}
		}
		s.state = left
		return nil
	}
	seen := map[*subschema]bool{}
	todo := []*subschema{s}
	for len(todo) > 0 {
		next := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if next == nil || seen[next] {
			continue
		}
		seen[next] = true
		if err := all(next); err != nil {
			return err
		}
		todo = append(todo, next.same()...)
		todo = append(todo, next.others, next.names, next.rest, next.contains)
		todo = append(todo, next.items...)
		for _, below := range next.properties {
			todo = append(todo, below)
		}
		for _, below := range next.patterns {
			todo = append(todo, below.schema)
		}
	}
	return nil
}

// same are the schemas that judge the value that s judges.
func (s *subschema) same() []*subschema {
	if s.refers != nil {
		return []*subschema{s.refers}
	}
	return s.here
}
