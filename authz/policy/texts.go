package policy

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
)

// What one call may read of a text that a client may have written: these functions are not cut short either.
const (
	maxParsed   = 200_000 // values in a text that is parsed, as in a body
	maxYAMLKeys = 8_000   // that a YAML text may have, each of which is compared with all others of its mapping
	maxPieces   = 500_000 // that a text is cut into
	maxToken    = 256 << 10
	maxPattern  = 64 << 10
	maxGlobs    = 128
	maxModule   = 16 << 10
	maxKeys     = 64 << 10
	maxKey      = 8 << 10 // of one key or certificate: what a signature takes grows with its square
	maxCerts    = 256 << 10
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
		ast.RegexMatch.Name:                 matched,
		ast.RegexMatchDeprecated.Name:       matched,
		ast.RegexSplit.Name:                 regexPieces,
		ast.RegexIsValid.Name:               matched,
		ast.RegexTemplateMatch.Name:         matched,
		ast.GlobsMatch.Name:                 globs,
		ast.RenderTemplate.Name:             rendered,
		ast.JSONUnmarshal.Name:              parsed,
		ast.YAMLUnmarshal.Name:              parsedYAML,
		ast.YAMLIsValid.Name:                parsedYAML,
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

// keyBounds are the bounds of functions that read keys and certificates.
func keyBounds() map[string]bound {
	bounds := map[string]bound{ast.CryptoX509ParseCertificates.Name: certificates, ast.RegoParseModule.Name: module}
	for _, f := range []*ast.Builtin{ast.CryptoX509ParseAndVerifyCertificates, ast.CryptoX509ParseAndVerifyCertificatesWithOptions,
		ast.CryptoX509ParseCertificateRequest, ast.CryptoX509ParseKeyPair, ast.CryptoX509ParseRSAPrivateKey, ast.CryptoParsePrivateKeys} {
		bounds[f.Name] = keys
	}
	for _, f := range []*ast.Builtin{ast.JWTVerifyRS256, ast.JWTVerifyRS384, ast.JWTVerifyRS512, ast.JWTVerifyPS256, ast.JWTVerifyPS384,
		ast.JWTVerifyPS512, ast.JWTVerifyES256, ast.JWTVerifyES384, ast.JWTVerifyES512, ast.JWTVerifyEdDSA} {
		bounds[f.Name] = verified
	}
	for _, f := range []*ast.Builtin{ast.JWTVerifyHS256, ast.JWTVerifyHS384, ast.JWTVerifyHS512} {
		bounds[f.Name] = token
	}
	return bounds
}

func verified(operands []*ast.Term) error {
	if err := token(operands); err != nil {
		return err
	}
	return keys(operands[1:])
}

// keys bounds texts of keys as PEM or JSON; in both what is one key stands between dashes or quotation marks.
func keys(operands []*ast.Term) error {
	for i := range operands {
		text := string(operand[ast.String](operands, i))
		if len(text) > maxKeys {
			return fmt.Errorf("the keys have more than %d bytes", maxKeys)
		}
		for run := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '-' || r == '"' }) {
			if len(run) > maxKey {
				return fmt.Errorf("a key has more than %d bytes", maxKey)
			}
		}
	}
	return nil
}

func certificates(operands []*ast.Term) error {
	if n := len(operand[ast.String](operands, 0)); n > maxCerts {
		return fmt.Errorf("the certificates have more than %d bytes", maxCerts)
	}
	return nil
}

func module(operands []*ast.Term) error {
	for i := range operands {
		if n := len(operand[ast.String](operands, i)); n > maxModule {
			return fmt.Errorf("the module has more than %d bytes", maxModule)
		}
	}
	return nil
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

// maxSteps of a regular expression: operations for each byte of a text. That many take a tenth of a second. Counting the matches before they
// are made is bounded by time, which takes the square of the text where each of them looks through what is left.
const (
	maxExpression = 16_000_000
	countFor      = 250 * time.Millisecond // more than the tenth, for a machine that stalls
)

var errExpression = errors.New("the expression and the text take too long")

// steps refuses what one search takes.
func steps(expression, text string) error {
	if len(expression) > maxPattern {
		return fmt.Errorf("the pattern has more than %d bytes", maxPattern)
	}
	if atMost(expression)*(len(text)+100) > maxExpression && operations(expression)*(len(text)+100) > maxExpression {
		return errExpression
	}
	return nil
}

// atMost is never less than operations, and takes no parsing, which would cost more than most matches.
func atMost(expression string) int {
	n := 4 * len(expression)
	if strings.Contains(expression, "{") {
		n *= 1000 // repetitions in repetitions multiply to no more
	}
	if strings.Contains(expression, `\p`) || strings.Contains(expression, `\P`) || strings.Contains(expression, "(?") {
		n *= 50
	}
	return n
}

// found counts the matches of an expression, up to one more than limit. What is no expression is for the function to refuse.
func found(expression, text string, limit int) (n int, err error) {
	if err := steps(expression, text); err != nil {
		return 0, err
	}
	e, err := regexp.Compile(expression)
	if err != nil {
		return 0, nil
	}
	if min(atMost(expression), maxExpression)*len(text) < maxExpression/(len(text)+1) || operations(expression)*len(text) < maxExpression/(len(text)+1) {
		return len(e.FindAllStringIndex(text, limit+1)), nil
	}
	start := time.Now()
	for n <= limit {
		at := e.FindStringIndex(text)
		if at == nil {
			break
		}
		n++
		if at[1] == 0 {
			at[1] = 1
		}
		if at[1] >= len(text) {
			break
		}
		if text = text[at[1]:]; n%16 == 0 && time.Since(start) > countFor {
			return n, errExpression
		}
	}
	return n, nil
}

func matched(operands []*ast.Term) error {
	return steps(string(operand[ast.String](operands, 0)), string(operand[ast.String](operands, 1)))
}

func regexPieces(operands []*ast.Term) error {
	n, err := found(string(operand[ast.String](operands, 0)), string(operand[ast.String](operands, 1)), maxPieces)
	if err != nil {
		return err
	}
	return cut(n)
}

// globs are compared piece by piece, each of one with each of the other.
func globs(operands []*ast.Term) error {
	for i := range operands {
		if n := len(operand[ast.String](operands, i)); n > maxGlobs {
			return fmt.Errorf("the pattern has more than %d bytes", maxGlobs)
		}
	}
	return nil
}

func matches(operands []*ast.Term) error {
	expression, text := operand[ast.String](operands, 0), operand[ast.String](operands, 1)
	groups := 1 + strings.Count(string(expression), "(")
	most := maxPieces / groups
	if n, ok := operand[ast.Number](operands, 2).Int(); ok && n >= 0 && n <= most {
		most = n
	}
	n, err := found(string(expression), string(text), most)
	if err != nil {
		return err
	}
	return cut(n * groups)
}

// rewritten allows for each match what stands for it, and for each group that is named there as much as the whole text.
func rewritten(operands []*ast.Term) error {
	text, expression, with := operand[ast.String](operands, 0), operand[ast.String](operands, 1), operand[ast.String](operands, 2)
	n := len(text) * (1 + strings.Count(string(with), "$"))
	count, err := found(string(expression), string(text), maxPieces)
	if err != nil {
		return err
	}
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

func parsedYAML(operands []*ast.Term) error {
	text := string(operand[ast.String](operands, 0))
	n := strings.Count(text, ":") + strings.Count(text, "?")
	if strings.Contains(text, "{") {
		n += strings.Count(text, ",")
	}
	if n > maxYAMLKeys {
		return fmt.Errorf("the text has more than %d keys", maxYAMLKeys)
	}
	return parsed(operands)
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
