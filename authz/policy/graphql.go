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

// validate reckons what validation takes.
func (d *graphQLDocument) validate(s graphQLSchemaShape) error {
	if err := d.pay(d.values*costLook + d.variables*d.variables); err != nil {
		return err
	}
	for _, set := range d.order {
		if err := d.loops(set, map[*selectionSet]bool{}); err != nil {
			return err
		}
	}
	for _, set := range d.operations {
		d.seen = map[*selectionSet]bool{}
		if err := d.walk(set, true, s); err != nil {
			return err
		}
		if err := d.within(set); err != nil {
			return err
		}
	}
	for _, set := range d.order {
		d.seen = map[*selectionSet]bool{}
		if err := d.walk(set, false, s); err != nil {
			return err
		}
		if err := d.within(set); err != nil {
			return err
		}
	}
	return nil
}

func (d *graphQLDocument) pay(n int) error {
	if d.cost += n; d.cost > maxGraphQLCost {
		return errGraphQLCost
	}
	return nil
}

// loops refuses fragments that come back to themselves. above are those that lead here; what was found free of loops is remembered.
func (d *graphQLDocument) loops(set *selectionSet, above map[*selectionSet]bool) error {
	if above[set] {
		return errGraphQLSpread
	}
	if d.seen == nil {
		d.seen = map[*selectionSet]bool{}
	}
	if d.seen[set] {
		return nil
	}
	above[set] = true
	if err := d.spreads(set, above); err != nil {
		return err
	}
	delete(above, set)
	d.seen[set] = true
	return nil
}

func (d *graphQLDocument) spreads(set *selectionSet, above map[*selectionSet]bool) error {
	for _, s := range set.list {
		var err error
		switch {
		case s.kind == '.' && d.fragments[s.name] != nil:
			err = d.loops(d.fragments[s.name], above)
		case s.below != nil:
			err = d.spreads(s.below, above)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// walk goes as the library's walker: into each fragment once.
func (d *graphQLDocument) walk(set *selectionSet, operation bool, shape graphQLSchemaShape) error {
	for _, s := range set.list {
		// Each name may be a mistake, for which all names that could stand there are compared with it. Few are, so this takes a third
		// of what it would.
		n := costLook + (35+len(s.real)+20*s.tokens)*shape.widest
		if s.kind != 'f' {
			n += 2*len(d.order) + shape.links*shape.links/4
		} else {
			n += shape.links * 2
		}
		if err := d.pay(n); err != nil {
			return err
		}
		if s.below != nil {
			if err := d.walk(s.below, operation, shape); err != nil {
				return err
			}
		}
		if s.real == "__schema" || s.real == "__type" {
			if err := d.expand(s.below); err != nil {
				return err
			}
		}
		if f := d.fragments[s.name]; s.kind == '.' && f != nil && !d.seen[f] {
			d.seen[f] = true
			if err := d.walk(f, operation, shape); err != nil {
				return err
			}
		}
		if s.kind == '{' || s.kind == 'f' && operation {
			if err := d.within(s.below); err != nil {
				return err
			}
		}
	}
	return nil
}

// expand goes into each spread anew: so does the rule on how deep the schema may be asked about.
func (d *graphQLDocument) expand(set *selectionSet) error {
	if set == nil {
		return nil
	}
	for _, s := range set.list {
		if err := d.pay(costLook); err != nil {
			return err
		}
		below := s.below
		if s.kind == '.' {
			below = d.fragments[s.name]
		}
		if err := d.expand(below); err != nil {
			return err
		}
	}
	return nil
}

// look collects a set's fields, which the library does each time.
func (d *graphQLDocument) look(set *selectionSet) error {
	if !set.flat {
		set.flat, set.fields = true, map[string][]*selection{}
		set.collect(set)
	}
	return d.pay(costLook * (5 + set.size))
}

func (set *selectionSet) collect(from *selectionSet) {
	for _, s := range from.list {
		set.size++
		switch {
		case s.kind == 'f':
			set.fields[s.name] = append(set.fields[s.name], s)
		case s.kind == '.':
			set.spreads = append(set.spreads, s)
		case s.below != nil:
			set.collect(s.below)
		}
	}
}

// within is what the rule does that fields of one name are the same: it compares all pairs of them, in fragments too, and all below.
func (d *graphQLDocument) within(set *selectionSet) error {
	if set == nil {
		return nil
	}
	if err := d.look(set); err != nil {
		return err
	}
	for _, fields := range set.fields {
		for i, a := range fields {
			for _, b := range fields[i+1:] {
				if err := d.pair(a, b); err != nil {
					return err
				}
			}
		}
	}
	d.met = map[string]bool{}
	for i, a := range set.spreads {
		if err := d.against(set, a.name); err != nil {
			return err
		}
		for _, b := range set.spreads[i+1:] {
			if err := d.fragmentPair(a.name, b.name); err != nil {
				return err
			}
		}
	}
	return nil
}

// against compares fields with those of a fragment and of all that it spreads.
func (d *graphQLDocument) against(set *selectionSet, name string) error {
	f := d.fragments[name]
	if err := d.pay(costLook); err != nil || f == nil || d.met[name] {
		return err
	}
	d.met[name] = true
	if err := d.between(set, f); err != nil {
		return err
	}
	for _, s := range f.spreads {
		if err := d.against(set, s.name); err != nil {
			return err
		}
	}
	return nil
}

func (d *graphQLDocument) between(a, b *selectionSet) error {
	if err := d.look(a); err != nil {
		return err
	}
	if err := d.look(b); err != nil {
		return err
	}
	for name, fields := range a.fields {
		others := b.fields[name]
		if err := d.pay(costLook); err != nil {
			return err
		}
		for _, x := range fields {
			for _, y := range others {
				if err := d.pair(x, y); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// fragmentPair compares two fragments, once as such and once as of types that exclude each other.
func (d *graphQLDocument) fragmentPair(a, b string) error {
	x, y := d.fragments[a], d.fragments[b]
	if err := d.pay(2 * costLook); err != nil || x == nil || y == nil || x == y || d.compared[[2]*selectionSet{x, y}] {
		return err
	}
	d.compared[[2]*selectionSet{x, y}], d.compared[[2]*selectionSet{y, x}] = true, true
	before := d.cost
	if err := d.between(x, y); err != nil {
		return err
	}
	if err := d.pay(d.cost - before); err != nil {
		return err
	}
	for _, s := range y.spreads {
		if err := d.fragmentPair(a, s.name); err != nil {
			return err
		}
	}
	for _, s := range x.spreads {
		if err := d.fragmentPair(s.name, b); err != nil {
			return err
		}
	}
	return nil
}

func (d *graphQLDocument) pair(a, b *selection) error {
	if err := d.pay(costPair + a.tokens*b.tokens/2); err != nil {
		return err
	}
	empty := &selectionSet{}
	x, y := a.below, b.below
	if x == nil && y == nil {
		return nil
	}
	if x == nil {
		x = empty
	}
	if y == nil {
		y = empty
	}
	if err := d.between(x, y); err != nil {
		return err
	}
	for _, s := range y.spreads {
		d.met = map[string]bool{}
		if err := d.against(x, s.name); err != nil {
			return err
		}
	}
	for _, s := range x.spreads {
		d.met = map[string]bool{}
		if err := d.against(y, s.name); err != nil {
			return err
		}
	}
	for _, s := range x.spreads {
		for _, t := range y.spreads {
			if err := d.fragmentPair(s.name, t.name); err != nil {
				return err
			}
		}
	}
	return nil
}
