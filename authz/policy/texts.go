package policy

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// What one call may read of a text that a client may have written: these functions are not cut short either.
const (
	maxParsed  = 200_000 // values in a text that is parsed, as in a body
	maxPieces  = 500_000 // that a text is cut into
	maxToken   = 256 << 10
	maxPattern = 64 << 10
)

// textBounds are the bounds of functions that take texts apart or put them together.
func textBounds() map[string]bound {
	return map[string]bound{
		ast.Concat.Name:                     joined,
		ast.Split.Name:                      pieces,
		ast.IndexOfN.Name:                   pieces,
		ast.RegexFind.Name:                  matches,
		ast.RegexFindAllStringSubmatch.Name: matches,
		ast.RegexReplace.Name:               rewritten,
		ast.RenderTemplate.Name:             rendered,
		ast.JSONUnmarshal.Name:              parsed,
		ast.YAMLUnmarshal.Name:              parsed,
		ast.URLQueryDecodeObject.Name:       pairs,
		ast.JWTDecode.Name:                  token,
		ast.JWTDecodeVerify.Name:            token,
		ast.GlobMatch.Name:                  pattern,
		ast.GraphQLParse.Name:               queryAndSchema,
		ast.GraphQLParseAndVerify.Name:      queryAndSchema,
		ast.GraphQLParseQuery.Name:          queryOnly,
		ast.GraphQLParseSchema.Name:         schemaOnly,
		ast.GraphQLIsValid.Name:             queryAndSchema,
		ast.GraphQLSchemaIsValid.Name:       schemaOnly,
	}
}

// textSize is the bytes of all texts in values, which are few enough to be walked.
func textSize(v ast.Value) (n int) {
	add := func(t *ast.Term) { n += textSize(t.Value) }
	switch v := v.(type) {
	case ast.String:
		return len(v)
	case *ast.Array:
		v.Foreach(add)
	case ast.Set:
		v.Foreach(add)
	case ast.Object:
		v.Foreach(func(key, value *ast.Term) { add(key); add(value) })
	}
	return n
}

func joined(operands []*ast.Term) error {
	separator, n := len(operand[ast.String](operands, 0)), 0
	eachNode(operands[1], func(t *ast.Term) {
		text, _ := t.Value.(ast.String)
		n += len(text) + separator
	})
	return made(n)
}

// cut says that a text would be cut into too much.
func cut(n int) error {
	if n > maxPieces {
		return fmt.Errorf("the text is cut into more than %d pieces", maxPieces)
	}
	return nil
}

func pieces(operands []*ast.Term) error {
	text := operand[ast.String](operands, 0)
	if len(text) < maxPieces {
		return nil
	}
	return cut(strings.Count(string(text), string(operand[ast.String](operands, 1))))
}

// found counts the matches of an expression, up to one more than limit. What is no expression is for the function to refuse.
func found(expression, text string, limit int) int {
	e, err := regexp.Compile(expression)
	if err != nil {
		return 0
	}
	return len(e.FindAllStringIndex(text, limit+1))
}

func matches(operands []*ast.Term) error {
	expression, text := operand[ast.String](operands, 0), operand[ast.String](operands, 1)
	groups := 1 + strings.Count(string(expression), "(")
	if len(text)*groups < maxPieces {
		return nil
	}
	most := maxPieces / groups
	if n, ok := operand[ast.Number](operands, 2).Int(); ok && n >= 0 && n <= most {
		return nil
	}
	return cut(found(string(expression), string(text), most) * groups)
}

// rewritten allows for each match what stands for it, and for each group that is named there as much as the whole text.
func rewritten(operands []*ast.Term) error {
	text, expression, with := operand[ast.String](operands, 0), operand[ast.String](operands, 1), operand[ast.String](operands, 2)
	n := len(text) * (1 + strings.Count(string(with), "$"))
	if n+(len(text)+1)*len(with) <= maxMade && len(text) < maxPieces {
		return nil
	}
	count := found(string(expression), string(text), maxPieces)
	if err := cut(count); err != nil {
		return err
	}
	return made(n + count*len(with))
}

// Actions of a template that name another one, and those that loop.
var (
	ownTemplate = regexp.MustCompile(`\{\{-?\s*(define|block|template)\b`)
	loop        = regexp.MustCompile(`\{\{-?\s*range\b`)
)

// rendered allows for each loop of a template all values once more. Templates that call themselves, and wide verbs, could make anything.
func rendered(operands []*ast.Term) error {
	template := string(operand[ast.String](operands, 0))
	if len(template) > maxPattern || ownTemplate.MatchString(template) {
		return fmt.Errorf("a template with more than %d bytes, or with templates of its own", maxPattern)
	}
	if err := format(operands[:1]); err != nil {
		return err
	}
	if err := spelled(operands); err != nil {
		return err
	}
	values := maxSpelt - spend(operands[1].Value, maxSpelt)
	n := len(template) + textSize(operands[1].Value)
	for range loop.FindAllStringIndex(template, -1) {
		if n *= values; n > maxMade {
			break
		}
	}
	return made(n)
}

// parsed counts what follows a bracket or a comma, which is every value in JSON, and lines, which is most of them in YAML.
func parsed(operands []*ast.Term) error {
	text := string(operand[ast.String](operands, 0))
	if len(text) > maxParsed {
		if n := countJSON([]byte(text)); n > maxParsed || strings.Count(text, "\n") > maxParsed {
			return fmt.Errorf("the text has more than %d values", maxParsed)
		}
	}
	return digits(longestNumber(text))
}

// longestNumber is how many bytes the longest run of digits has.
func longestNumber(text string) (longest int) {
	if len(text) <= maxDigits {
		return 0
	}
	run := 0
	for i := range len(text) {
		if c := text[i]; c < '0' || c > '9' {
			run = -1
		}
		run++
		longest = max(longest, run)
	}
	return longest
}

func pairs(operands []*ast.Term) error {
	if n := strings.Count(string(operand[ast.String](operands, 0)), "&"); n > maxParsed {
		return fmt.Errorf("the query has more than %d pairs", maxParsed)
	}
	return nil
}

func token(operands []*ast.Term) error {
	if n := len(operand[ast.String](operands, 0)); n > maxToken {
		return fmt.Errorf("the token has more than %d bytes", maxToken)
	}
	return nil
}

func pattern(operands []*ast.Term) error {
	if n := len(operand[ast.String](operands, 0)); n > maxPattern {
		return fmt.Errorf("the pattern has more than %d bytes", maxPattern)
	}
	return nil
}
