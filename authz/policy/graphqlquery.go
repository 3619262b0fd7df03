package policy

import (
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// This file reads a query, as far as its cost depends on it.

// A selection is a field, a spread or an inline fragment.
type selection struct {
	name   string // by which a field answers, or of the fragment
	kind   byte   // '.' of a spread, '{' of an inline fragment, 'f' of a field
	real   string // name of a field
	tokens int    // of arguments and directives
	below  *selectionSet
}

type selectionSet struct {
	list []*selection
	flat bool
	// The fields by name and the spreads, those of inline fragments too.
	fields  map[string][]*selection
	spreads []*selection
	size    int
}

type graphQLDocument struct {
	values     int // tokens of values, as often as they are deep
	variables  int
	operations []*selectionSet
	fragments  map[string]*selectionSet
	order      []*selectionSet // of fragments
	cost       int
	compared   map[[2]*selectionSet]bool
	seen       map[*selectionSet]bool
	met        map[string]bool // fragments that the same fields were compared with
}

// graphQLQuery gives nil for what has no fragments and few fields anyway.
func graphQLQuery(v ast.Value) (*graphQLDocument, error) {
	text, ok := v.(ast.String)
	if !ok {
		return nil, graphQLObject(v, maxGraphQLValues)
	}
	d := &graphQLDocument{fragments: map[string]*selectionSet{}, compared: map[[2]*selectionSet]bool{}}
	paren := 0
	err := graphQLText(string(text), func(token string, depth int) {
		d.cost += costOf(token, costNode)
		switch {
		case token == "(":
			paren++
		case token == ")":
			paren--
		case token == "$":
			d.variables++
		}
		if paren > 0 {
			d.values += depth
		}
	})
	if err != nil {
		return nil, err
	}
	d.read(string(text))
	return d, d.pay(0)
}

func costOf(token string, node int) int {
	if isName(token[0]) || token[0] == '"' || token[0] == '-' {
		return node
	}
	return costToken
}

// read takes the document as far as it is well-formed; the library stops there too.
func (d *graphQLDocument) read(text string) {
	r := graphQLReader{graphQLLexer{rest: text}}
	for r.next(); r.token != ""; {
		name := ""
		if r.token == "fragment" {
			r.next()
			name = r.token
		}
		if r.skipTo("{"); r.token == "" {
			return
		}
		set := r.selections()
		if name == "" {
			d.operations = append(d.operations, set)
			continue
		}
		if d.fragments[name] == nil { // the library takes the first
			d.fragments[name] = set
		}
		d.order = append(d.order, set)
	}
}

type graphQLReader struct{ graphQLLexer }

// skipTo goes to a token that stands outside of what brackets hold, and says how many it passed.
func (r *graphQLReader) skipTo(stop string) (passed int) {
	for depth := 0; r.token != "" && (depth > 0 || !strings.Contains(stop, r.token)); r.next() {
		switch r.token {
		case "(", "[", "{":
			depth++
		case ")", "]", "}":
			depth--
		}
		passed++
	}
	return passed
}

// selections reads from the bracket that opens to the token behind the one that closes. The depth is bounded.
func (r *graphQLReader) selections() *selectionSet {
	set := &selectionSet{}
	for r.next(); r.token != "" && r.token != "}"; {
		s := &selection{kind: 'f'}
		switch {
		case r.token == "...":
			if r.next(); isNameToken(r.token) && r.token != "on" {
				s.kind, s.name = '.', r.token
				r.next()
				break
			}
			if s.kind = '{'; r.token == "on" {
				r.next()
				r.next()
			}
		case isNameToken(r.token):
			s.name, s.real = r.token, r.token
			if r.next(); r.token == ":" {
				r.next()
				s.real = r.token
				r.next()
			}
		default:
			r.token, r.rest = "", ""
			return set
		}
		s.tokens = r.tail()
		if r.token == "{" && s.kind != '.' {
			s.below = r.selections()
		}
		set.list = append(set.list, s)
	}
	r.next()
	return set
}

func isNameToken(token string) bool { return token != "" && isName(token[0]) }

// tail reads arguments and directives.
func (r *graphQLReader) tail() (passed int) {
	for r.token == "(" || r.token == "@" {
		if r.token == "@" {
			r.next() // its name
			r.next()
			passed += 2
			continue
		}
		r.next()
		passed += 2 + r.skipTo(")")
		r.next()
	}
	return passed
}
