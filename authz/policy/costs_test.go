package policy_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/authz/policy"
)

// A cost is one call that takes more the larger n is.
type cost struct {
	name, of string
	operands func(n int) []*ast.Term
}

// most is how many bytes, or values, a request may bring.
const (
	mostBytes  = 4 << 20
	mostValues = 200_000
)

// tooLong is generous: a call takes a tenth of a second on a free core, and what the bounds guard against takes many seconds.
const tooLong = 3 * time.Second

func TestNoCallTakesLong(t *testing.T) {
	for _, c := range schemaCosts() {
		t.Run(c.name+" "+c.of, func(t *testing.T) {
			for n := 4; n <= mostBytes; n *= 2 {
				operands := c.operands(n)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				start := time.Now()
				err := policy.Call(ctx, c.name, operands...)
				took := time.Since(start)
				cancel()
				if took > tooLong {
					t.Fatalf("with %d it took %v: %v", n, took, err)
				}
				if took > 50*time.Millisecond || err != nil {
					t.Logf("%s with %d %v: %.100v", c.of, n, took, err)
				}
				if err != nil {
					return
				}
			}
		})
	}
}

func text(parts ...string) *ast.Term { return ast.StringTerm(strings.Join(parts, "")) }

func schemaCosts() (all []cost) {
	const match = "json.match_schema"
	add := func(of string, document, schema func(n int) string) {
		all = append(all, cost{match, of, func(n int) []*ast.Term { return []*ast.Term{text(document(n)), text(schema(n))} }})
	}
	fixed := func(s string) func(int) string { return func(int) string { return s } }
	numbers := func(number string) func(int) string {
		return func(n int) string { return "[" + strings.Repeat(number+",", n) + "1]" }
	}
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	nested := func(open, end string) func(int) string {
		return func(n int) string { return strings.Repeat(open, n) + "{}" + strings.Repeat(end, n) }
	}
	words := func(size int) func(int) string {
		return func(n int) string {
			list := make([]string, n)
			for i := range list {
				list[i] = fmt.Sprintf(`"%0*d"`, size, i)
			}
			return "[" + strings.Join(list, ",") + "]"
		}
	}
	object := func(value string) func(int) string {
		return func(n int) string {
			list := make([]string, n)
			for i := range list {
				list[i] = fmt.Sprintf(`"k%d":%s`, i, value)
			}
			return "{" + strings.Join(list, ",") + "}"
		}
	}
	add("items of another type", numbers("1"), fixed(`{"items":{"type":"string"}}`))
	add("items of the type", numbers("1"), fixed(`{"items":{"type":"number"}}`))
	add("items below a minimum", numbers("1"), fixed(`{"items":{"minimum":2}}`))
	add("exponents", numbers("1e300"), fixed(`{"items":{"multipleOf":1.5e-300}}`))
	add("long numbers", numbers(strings.Repeat("7", 290)+"."+strings.Repeat("7", 90)), fixed(`{"items":{"multipleOf":0.3}}`))
	add("an array as deep", deep, fixed(`{"items":{"$ref":"#"}}`))
	add("an array as deep, twice", deep, fixed(`{"allOf":[{"items":{"$ref":"#"}},{"items":{"$ref":"#"}}]}`))
	add("faults at each depth", deep, fixed(`{"minItems":5,"items":{"$ref":"#"}}`))
	add("faults of all of them", deep, fixed(`{"allOf":[{"items":{"$ref":"#"}},{"minItems":5}]}`))
	add("a long name and faults", func(n int) string { return `{"` + strings.Repeat("x", n) + `":` + numbers("1")(n/8) + "}" },
		fixed(`{"additionalProperties":{"items":{"type":"string"}}}`))
	add("control characters and faults", func(n int) string {
		return `["` + strings.Repeat(`\u0001`, n) + `"]`
	}, fixed(`{"allOf":[`+strings.Repeat(`{"minItems":5},`, 100)+`{}]}`))
	add("schemas in schemas", fixed("{}"), nested(`{"not":`, `}`))
	add("properties in properties", fixed("{}"), nested(`{"properties":{"a":`, `}}`))
	add("schemas for all", numbers("1"), func(n int) string { return `{"items":{"allOf":[` + strings.Repeat(`{"minimum":2},`, n) + `{}]}}` })
	add("twice two references", fixed("{}"), func(n int) string {
		var b strings.Builder
		b.WriteString(`{"$ref":"#/definitions/d0","definitions":{`)
		for i := range n {
			fmt.Fprintf(&b, `"d%d":{"allOf":[{"$ref":"#/definitions/d%d"},{"$ref":"#/definitions/d%d"}]},`, i, i+1, i+1)
		}
		return b.String() + fmt.Sprintf(`"d%d":{}}}`, n)
	})
	add("a chain of references", fixed("{}"), func(n int) string {
		var b strings.Builder
		b.WriteString(`{"$ref":"#/definitions/d0","definitions":{`)
		for i := range n {
			fmt.Fprintf(&b, `"d%d":{"$ref":"#/definitions/d%d"},`, i, i+1)
		}
		return b.String() + fmt.Sprintf(`"d%d":{}}}`, n)
	})
	add("spellings of a reference", fixed("{}"), func(n int) string {
		var b strings.Builder
		b.WriteString(`{"definitions":{"a":{"anyOf":[{},`)
		for i := range n {
			fmt.Fprintf(&b, `{"items":{"$ref":"#/definitions/a/anyOf/%d"}},{"items":{"$ref":"#%s/definitions/a"}},`, i, strings.Repeat("x", i))
		}
		return b.String() + `{}]}}}`
	})
	add("required", fixed("{}"), func(n int) string { return `{"required":` + words(6)(n) + `}` })
	add("an enumeration", numbers("1"), func(n int) string { return `{"items":{"enum":` + words(6)(n/4) + `}}` })
	add("an enumeration of what is long", numbers("1"), func(n int) string { return `{"items":{"enum":["` + strings.Repeat("x", n) + `"]}}` })
	add("unique items", numbers("1"), fixed(`{"uniqueItems":true}`))
	add("unique items that are", words(10), fixed(`{"uniqueItems":true}`))
	add("properties that are too many", object("1"), fixed(`{"additionalProperties":false}`))
	add("properties of another type", object("1"), func(n int) string { return `{"properties":` + object(`{"type":"string"}`)(n/4) + `}` })
	add("properties by pattern", object("1"), fixed(`{"patternProperties":{"^k[0-9]+$":{"type":"string"}}}`))
	add("properties by long patterns", object("1"), fixed(`{"patternProperties":{"a{1000}a{1000}a{1000}":{"type":"string"}}}`))
	add("many patterns", fixed(`{"a":1}`), func(n int) string {
		return `{"patternProperties":{` + strings.Trim(strings.ReplaceAll(words(3)(n), `",`, `a{1000}":{},`), "[]") + `:{}}}`
	})
	add("names", object("1"), fixed(`{"$schema":"http://json-schema.org/draft-07/schema#","propertyNames":{"type":"number"}}`))
	add("contains", numbers("1"), fixed(`{"$schema":"http://json-schema.org/draft-07/schema#","contains":{"type":"string"}}`))
	add("dependencies", object("1"), func(n int) string { return `{"dependencies":` + object(`{"type":"string"}`)(n/4) + `}` })
	add("a pattern", func(n int) string { return `["` + strings.Repeat("a", n) + `"]` }, fixed(`{"items":{"pattern":"^(a|aa|b)*c{1000}$"}}`))
	for _, format := range []string{"date-time", "hostname", "email", "ipv6", "uri", "uri-template", "uuid", "regex", "json-pointer"} {
		for _, piece := range []string{"a", "a{1000}", "(", "{", ",", "<", " ", ".", "/", "%41", ":"} {
			add(fmt.Sprintf("%s of %q", format, piece), func(n int) string { return `["` + strings.Repeat(piece, n) + `"]` }, fixed(`{"items":{"format":"`+format+`"}}`))
		}
	}
	return all
}
