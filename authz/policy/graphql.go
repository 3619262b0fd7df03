package policy

import (
	"errors"
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// The GraphQL library looks at no deadline, and validating a query takes it time that grows with the square of what stands there, and
// with fragments beyond all bounds; fragments that spread each other let it overflow the stack, which ends the process. So what it
// would do is reckoned first, on a reading of our own: at least what the library would read, and without types.
const (
	maxGraphQLText   = 256 << 10
	maxGraphQLTokens = 20_000
	maxGraphQLDepth  = 200
	maxGraphQLValues = 2_000 // of a query that is given as an object
	maxGraphQLCost   = 10_000_000

	// Costs, in some ten nanoseconds each.
	costNode   = 1_500 // of a name, a number or a text, which becomes a node
	costSchema = 700   // of one in a schema
	costToken  = 100   // of other tokens
	costPair   = 300   // of two fields of one name
	costLook   = 20    // at one selection
	costLinks  = 8     // of a type and another one, of which one implements the other
)

var (
	errGraphQLDeep   = errors.New("the text is nested too deep")
	errGraphQLCost   = errors.New("validating the text takes too long")
	errGraphQLSpread = errors.New("a fragment spreads itself")
)

// Bounds of the functions that take a query, a schema, or both.
func queryOnly(operands []*ast.Term) error {
	_, err := graphQLQuery(operands[0].Value)
	return err
}

func schemaOnly(operands []*ast.Term) error {
	_, err := graphQLShape(operands[0].Value)
	return err
}

func queryAndSchema(operands []*ast.Term) error {
	q, err := graphQLQuery(operands[0].Value)
	if err != nil || q == nil {
		return err
	}
	s, err := graphQLShape(operands[1].Value)
	if err != nil {
		return err
	}
	return q.validate(s)
}

// A graphQLLexer gives the tokens that are no comments: names, numbers and punctuation as they are, "..." and, for any text, `"`.
type graphQLLexer struct {
	rest   string
	token  string // empty at the end, and where the library stops too
	tokens int
}

func (l *graphQLLexer) next() {
	l.token = ""
	for l.rest != "" {
		switch c := l.rest[0]; {
		case strings.IndexByte(" \t\r\n,", c) >= 0:
			l.rest = l.rest[1:]
		case strings.HasPrefix(l.rest, "\ufeff"):
			l.rest = l.rest[len("\ufeff"):]
		case c == '#':
			l.tokens++
			end := strings.IndexFunc(l.rest, func(r rune) bool { return r < ' ' && r != '\t' })
			if end < 0 {
				end = len(l.rest)
			}
			l.rest = l.rest[end:]
		default:
			l.tokens++
			l.take()
			return
		}
	}
}

func (l *graphQLLexer) take() {
	n := 1
	switch c := l.rest[0]; {
	case strings.HasPrefix(l.rest, "..."):
		n = 3
	case strings.HasPrefix(l.rest, `"""`):
		l.rest = l.rest[blockEnd(l.rest):]
		l.token = `"`
		return
	case c == '"':
		for n < len(l.rest) && l.rest[n] != '"' && l.rest[n] != '\n' && l.rest[n] != '\r' {
			if l.rest[n] == '\\' {
				n++
			}
			n++
		}
		l.rest = l.rest[min(n+1, len(l.rest)):]
		l.token = `"`
		return
	case isName(c):
		for n < len(l.rest) && isName(l.rest[n]) {
			n++
		}
	case c == '-':
		for n < len(l.rest) && (isName(l.rest[n]) || l.rest[n] == '.') {
			n++
		}
	}
	l.token, l.rest = l.rest[:n], l.rest[n:]
}

// blockEnd is where a block string ends: at the last of three or more quotation marks.
func blockEnd(text string) int {
	for i := 3; i < len(text); {
		switch {
		case strings.HasPrefix(text[i:], `\"""`):
			i += 4
		case strings.HasPrefix(text[i:], `"""`):
			for i < len(text) && text[i] == '"' {
				i++
			}
			return i
		default:
			i++
		}
	}
	return len(text)
}

func isName(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z'
}

// graphQLText refuses a text by its size, tokens and depth.
func graphQLText(text string, each func(token string, depth int)) error {
	if len(text) > maxGraphQLText {
		return fmt.Errorf("the text has more than %d bytes", maxGraphQLText)
	}
	l := graphQLLexer{rest: text}
	depth := 0
	for l.next(); l.token != ""; l.next() {
		if l.tokens > maxGraphQLTokens {
			return fmt.Errorf("the text has more than %d tokens", maxGraphQLTokens)
		}
		switch l.token {
		case "{", "[", "(":
			if depth++; depth > maxGraphQLDepth {
				return errGraphQLDeep
			}
		case "}", "]", ")":
			depth--
		}
		each(l.token, depth)
	}
	if l.tokens > maxGraphQLTokens {
		return fmt.Errorf("the text has more than %d tokens", maxGraphQLTokens)
	}
	return nil
}

// graphQLSchemaShape is what of a schema matters to the validation of a query.
type graphQLSchemaShape struct {
	widest int // the most names that stand beside each other: of fields, arguments or values
	links  int // types that are of an interface or a union, about
	cost   int
}

// graphQLShape bounds a schema too.
func graphQLShape(v ast.Value) (s graphQLSchemaShape, err error) {
	text, ok := v.(ast.String)
	if !ok {
		if err := graphQLObject(v, maxGraphQLTokens); err != nil {
			return s, err
		}
		n := maxGraphQLTokens - spend(v, maxGraphQLTokens)
		return graphQLSchemaShape{widest: n / 4, links: n / 8}, nil
	}
	var names [maxGraphQLDepth + 1]int
	before := ""
	err = graphQLText(string(text), func(token string, depth int) {
		s.cost += costOf(token, costSchema)
		switch {
		case strings.Contains("{[(", token) && depth > 0:
			names[depth] = 0
		case token == "implements" || token == "|" || token == "&":
			s.links++
		case isName(token[0]) && depth > 0 && !strings.Contains(":[@=", before):
			names[depth]++
			s.widest = max(s.widest, names[depth])
		}
		before = token
	})
	if s.cost += s.links * s.links * costLinks; err == nil && s.cost > maxGraphQLCost {
		err = errGraphQLCost
	}
	return s, err
}

// graphQLObject bounds a query or a schema that is given as parsed. Its decoder reads each level once more for each level above it.
func graphQLObject(v ast.Value, most int) error {
	if spend(v, most) < 0 {
		return fmt.Errorf("an operand has more than %d values", most)
	}
	if textSize(v) > maxGraphQLText {
		return fmt.Errorf("the text has more than %d bytes", maxGraphQLText)
	}
	if nestedDeep(v, maxGraphQLDepth) {
		return errGraphQLDeep
	}
	return nil
}

func nestedDeep(v ast.Value, left int) bool {
	if left == 0 {
		return true
	}
	below := func(t *ast.Term) bool { return nestedDeep(t.Value, left-1) }
	switch v := v.(type) {
	case *ast.Array:
		return v.Until(below)
	case ast.Set:
		return v.Until(below)
	case ast.Object:
		return v.Until(func(_, value *ast.Term) bool { return below(value) })
	}
	return false
}
