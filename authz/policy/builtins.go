package policy

import (
	"fmt"
	"strings"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// What one call of a built-in function may make. An evaluation is cut short between calls, and some functions turn a few bytes into
// gigabytes, or into hours, within one.
const (
	maxShift  = 1 << 16 // bits
	maxDigits = 100_000 // of the numbers that are multiplied
	maxMade   = 16 << 20
	maxWidth  = 1_000_000 // of one verb of sprintf: fmt takes no more
	maxSteps  = 10_000    // of a search for paths
	maxSpelt  = 500_000   // values that are written out
	maxResult = 100_000   // values that a decision gives

	maxReplaced = 64 << 20 // patterns times bytes
	maxYAML     = 5_000    // values that are written as YAML, which takes a hundred times as long as JSON
)

// A bound says why a call would make too much; nil where it would not. Operands of a wrong type are for the function to refuse.
type bound func(operands []*ast.Term) error

// bindBuiltins puts the bounds before OPA's own functions, which are one table for the process: once, before any evaluation.
var bindBuiltins = sync.OnceFunc(func() {
	bindBounds(textBounds())
	bindBounds(numberBounds())
	bindBounds(keyBounds())
	bindBounds(pairBounds())
	bindBounds(map[string]bound{
		ast.BitsShiftLeft.Name:          shift,
		ast.Product.Name:                product,
		ast.Sprintf.Name:                format,
		ast.Replace.Name:                replace,
		ast.ReplaceN.Name:               replaceN,
		ast.ReachablePathsBuiltin.Name:  paths,
		ast.JSONMarshal.Name:            spelled,
		ast.JSONMarshalWithOptions.Name: spelled,
		ast.YAMLMarshal.Name:            spelledYAML,
		ast.JWTEncodeSign.Name:          spelled,
		ast.JSONSchemaVerify.Name:       verifiable,
		ast.JSONMatchSchema.Name:        matchable,
	})
	guardBuiltins()
})

func bindBounds(bounds map[string]bound) {
	for name, check := range bounds {
		call := topdown.GetBuiltin(name)
		topdown.RegisterBuiltinFunc(name, func(b topdown.BuiltinContext, operands []*ast.Term, iter func(*ast.Term) error) error {
			if err := check(operands); err != nil {
				return topdown.Halt{Err: fmt.Errorf("%s: %w", name, err)}
			}
			return call(b, operands, iter)
		})
	}
}

// guardBuiltins makes errors of what panics in any function: a request's panic is caught, but the tests of a set run in goroutines of
// their own, where one would end the process.
func guardBuiltins() {
	for _, f := range ast.Builtins {
		call := topdown.GetBuiltin(f.Name)
		if call == nil {
			continue // not a function, to the evaluation
		}
		topdown.RegisterBuiltinFunc(f.Name, func(b topdown.BuiltinContext, operands []*ast.Term, iter func(*ast.Term) error) (err error) {
			defer func() {
				if r := recover(); r != nil {
					err = topdown.Halt{Err: fmt.Errorf("%s: panic: %v", f.Name, r)}
				}
			}()
			return call(b, operands, iter)
		})
	}
}

func operand[T ast.Value](operands []*ast.Term, i int) (v T) {
	if i < len(operands) {
		v, _ = operands[i].Value.(T)
	}
	return v
}

func shift(operands []*ast.Term) error {
	if n := operand[ast.Number](operands, 1); len(n) > 0 {
		if bits, ok := n.Int64(); !ok || bits > maxShift {
			return fmt.Errorf("shifts by more than %d bits", maxShift)
		}
	}
	return nil
}

func digits(n int) error {
	if n > maxDigits {
		return fmt.Errorf("the result has more than %d digits", maxDigits)
	}
	return nil
}

func product(operands []*ast.Term) error {
	n := 0
	var far error
	add := func(t *ast.Term) {
		number, _ := t.Value.(ast.Number)
		n += len(number)
		if err := near(number); err != nil {
			far = err
		}
	}
	switch list := operands[0].Value.(type) {
	case *ast.Array:
		list.Foreach(add)
	case ast.Set:
		list.Foreach(add)
	}
	if far != nil {
		return far
	}
	return digits(n)
}

func made(n int) error {
	if n > maxMade {
		return fmt.Errorf("the result has more than %d bytes", maxMade)
	}
	return nil
}

func format(operands []*ast.Term) error {
	wide := 0
	verb, run := false, 0
	for _, c := range []byte(operand[ast.String](operands, 0)) {
		switch {
		case c == '%':
			verb, run = !verb, 0
		case !verb:
		case c >= '0' && c <= '9':
			if run++; run == 5 {
				wide++
			}
		case c == '*':
			wide++
		case c|0x20 >= 'a' && c|0x20 <= 'z':
			verb = false
		default:
			run = 0
		}
	}
	if err := made(wide * maxWidth); err != nil {
		return err
	}
	if err := spelled(operands); err != nil {
		return err
	}
	// A verb may name any operand, so that one of them is there many times.
	if n := strings.Count(string(operand[ast.String](operands, 0)), "%["); n > 0 && len(operands) > 1 {
		return made(n * textSize(operands[1].Value))
	}
	return nil
}

func replace(operands []*ast.Term) error {
	text, old, with := operand[ast.String](operands, 0), operand[ast.String](operands, 1), operand[ast.String](operands, 2)
	if len(with) <= len(old) {
		return nil
	}
	return made(len(text) + strings.Count(string(text), string(old))*len(with))
}

func replaceN(operands []*ast.Term) error {
	patterns, text := operand[ast.Object](operands, 0), operand[ast.String](operands, 1)
	if patterns == nil {
		return nil
	}
	if patterns.Len()*len(text) > maxReplaced {
		return fmt.Errorf("the patterns times the text have more than %d bytes", maxReplaced)
	}
	n := len(text)
	patterns.Foreach(func(old, with *ast.Term) {
		from, _ := old.Value.(ast.String)
		to, _ := with.Value.(ast.String)
		n += strings.Count(string(text), string(from)) * len(to)
	})
	return made(n)
}

// paths counts the steps of the search before it is made: where paths part and meet, there are exponentially many.
func paths(operands []*ast.Term) error {
	graph, steps := operand[ast.Object](operands, 0), 0
	if graph == nil {
		return nil
	}
	var walk func(node *ast.Term, seen ast.Set)
	walk = func(node *ast.Term, seen ast.Set) {
		if steps++; steps > maxSteps || seen.Contains(node) {
			return
		}
		edges := graph.Get(node)
		if edges == nil {
			return
		}
		seen = seen.Copy()
		seen.Add(node)
		eachNode(edges, func(next *ast.Term) { walk(next, seen) })
	}
	eachNode(operands[1], func(start *ast.Term) { walk(start, ast.NewSet()) })
	if steps > maxSteps {
		return fmt.Errorf("the search takes more than %d steps", maxSteps)
	}
	return nil
}

func eachNode(list *ast.Term, visit func(*ast.Term)) {
	switch list := list.Value.(type) {
	case *ast.Array:
		list.Foreach(visit)
	case ast.Set:
		list.Foreach(visit)
	}
}

// spelled refuses values that share their parts, written out: forty lists of two, or a long text a thousand times, take no memory
// until someone writes them down.
func spelled(operands []*ast.Term) error {
	left := maxSpelt
	for _, t := range operands {
		if left = spend(t.Value, left); left < 0 {
			return fmt.Errorf("an operand has more than %d values", maxSpelt)
		}
	}
	n := 0
	for _, t := range operands {
		n += textSize(t.Value)
	}
	return made(n)
}

func spelledYAML(operands []*ast.Term) error {
	if spend(operands[0].Value, maxYAML) < 0 {
		return fmt.Errorf("an operand has more than %d values", maxYAML)
	}
	return spelled(operands)
}

// spend takes the values that v holds off what is left, and stops where nothing is.
func spend(v ast.Value, left int) int {
	left--
	below := func(t *ast.Term) bool {
		left = spend(t.Value, left)
		return left < 0
	}
	switch v := v.(type) {
	case *ast.Array:
		v.Until(below)
	case ast.Set:
		v.Until(below)
	case ast.Object:
		v.Until(func(key, value *ast.Term) bool { return below(key) || below(value) })
	}
	return left
}
