package policy_test

import (
	"context"
	"fmt"
	"slices"
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
	for _, c := range slices.Concat(schemaCosts(), graphQLCosts()) {
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

// repeat puts pieces together, in which %d is their number.
func repeat(n int, piece string) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.ReplaceAll(strings.ReplaceAll(piece, "%d", fmt.Sprint(i)), "%n", fmt.Sprint(i+1)))
	}
	return b.String()
}

func graphQLCosts() (all []cost) {
	const small = `type Query { f(a: [String], i: In): Query b: String c: E } input In { i: In s: String } enum E { X Y } `
	wide := "type Query { " + repeat(300, "field%d: Query ") + "} enum E { " + repeat(300, "V%d ") + "}"
	many := "interface N { f: N } type Query { n: N } " + repeat(300, "type T%d implements N { f: N } ") + "union U = A " + repeat(300, "| T%d ") + " type A { f: N }"
	add := func(of string, schema string, query func(n int) string) {
		for _, function := range []string{"graphql.parse_query", "graphql.is_valid", "graphql.parse_and_verify"} {
			all = append(all, cost{function, of, func(n int) []*ast.Term {
				if function == "graphql.parse_query" {
					return []*ast.Term{text(query(n))}
				}
				return []*ast.Term{text(query(n)), text(schema)}
			}})
		}
	}
	piece := func(before, piece, after string) func(int) string {
		return func(n int) string { return before + repeat(n, piece) + after }
	}
	nest := func(before, open, middle, end, after string) func(int) string {
		return func(n int) string { return before + repeat(n, open) + middle + repeat(n, end) + after }
	}
	add("fields", small, piece("{", "b ", "}"))
	add("fields with other names", small, piece("{", "a%d: b ", "}"))
	add("fields that are not there", wide, piece("{", "x%d ", "}"))
	add("fields of long names that are not there", wide, piece("{", strings.Repeat("x", 100)+"%d ", "}"))
	add("fields that no type has", many, piece("{ n {", "x%d ", "} }"))
	add("fields that some types have", many, piece("{ n {", "a%d: f ", "} }"))
	add("inline fragments", many, piece("{ n {", "... on N { f } ", "} }"))
	add("inline fragments of a union", many, piece("{ n {", "... on U { ... on N { f } } ", "} }"))
	add("one name with arguments", small, piece("{", `f(a: ["x", "y", "z"]) { b } `, "}"))
	add("one name with other arguments", small, piece("{", `f(a: ["%d"]) { b } `, "}"))
	add("pairs of fields below pairs", small, func(n int) string {
		query := "b"
		for range n {
			query = "f { " + query + " } f { " + query + " } "
			if len(query) > 1<<20 {
				break
			}
		}
		return "{" + query + "}"
	})
	add("nested fields", small, nest("{", "f {", "b", "}", "}"))
	add("nested lists", small, nest("{ f(a: ", "[", "", "]", ") { b } }"))
	add("nested lists of many", small, func(n int) string {
		return "{ f(a: " + strings.Repeat("[", 190) + repeat(n, `"a" `) + strings.Repeat("]", 190) + ") { b } }"
	})
	add("nested objects", small, nest("{ f(i: ", "{i:", "{}", "}", ") { b } }"))
	add("objects with fields that are not there", wide, piece("{ f(i: {", `x%d: 1 `, "}) { b } }"))
	add("arguments that are not there", small, piece("{ f(", "x%d: 1 ", ") { b } }"))
	add("arguments that stand twice", small, piece("{ f(", "a: [] ", ") { b } }"))
	add("values that are not there", small, piece("{ f(a: [", "X%d ", "]) { b } }"))
	add("long texts", small, piece(`{ f(a: ["`, "xxxx", `"]) { b } }`))
	add("block strings", small, piece(`{ f(a: ["""`, "x\n ", `"""]) { b } }`))
	add("directives", small, piece("{ b ", "@x%d ", "}"))
	add("directives that stand twice", small, piece("{ b ", "@skip(if: true) ", "}"))
	add("comments", small, piece("{ b ", "#\n", "}"))
	add("operations", small, piece("", "query q%d { b } ", ""))
	add("operations without a name", small, piece("", "{ b } ", ""))
	add("operations with one fragment", small, func(n int) string {
		return repeat(n, "query q%d { ...A } ") + "fragment A on Query {" + repeat(n, "b%d: b ") + "}"
	})
	add("variables", small, piece("query q(", "$v%d: String ", ") { b }"))
	add("variables that are used", small, func(n int) string {
		return "query q(" + repeat(n, "$v%d: String ") + ") { f(a: [" + repeat(n, "$v%d ") + "]) { b } }"
	})
	add("variables that are not there", small, piece("{ f(a: [", "$v%d ", "]) { b } }"))
	add("fragments", small, piece("{ b }", "fragment F%d on Query { b } ", ""))
	add("fragments of one name", small, piece("{ ...F }", "fragment F on Query { b } ", ""))
	add("fragments that are spread", small, func(n int) string {
		return "{" + repeat(n, "...F%d ") + "}" + repeat(n, "fragment F%d on Query { b } ")
	})
	add("spreads of one fragment", small, piece("fragment F on Query { b } {", "...F ", "}"))
	add("spreads of no fragment", small, piece("{", "...F%d ", "}"))
	add("a chain of fragments", small, func(n int) string {
		return "{ ...F0 } " + repeat(n, "fragment F%d on Query { b ...F%n } ") + fmt.Sprintf("fragment F%d on Query { b }", n)
	})
	add("two chains of fragments", small, func(n int) string {
		return "{ ...F0 ...G0 } " + repeat(n, "fragment F%d on Query { b ...F%n } fragment G%d on Query { b ...G%n } ")
	})
	add("fragments that spread the next twice", small, func(n int) string {
		return "{ ...F0 } " + repeat(n, "fragment F%d on Query { f { ...F%n } f { ...F%n } } ") + fmt.Sprintf("fragment F%d on Query { b }", n)
	})
	add("fragments that spread the next often", small, func(n int) string {
		return "{ ...F0 } " + repeat(n/10, "fragment F%d on Query { "+repeat(10, "...F%n ")+"} ") + fmt.Sprintf("fragment F%d on Query { b }", n/10)
	})
	add("two fragments full of spreads", small, func(n int) string {
		return "{ ...A } fragment A on Query {" + strings.Repeat("...B ", n) + "} fragment B on Query {" + strings.Repeat("...C ", n) + "} fragment C on Query { b }"
	})
	add("the schema by fragments", small, func(n int) string {
		return "{ __schema { ...F0 } } " + repeat(n, "fragment F%d on __Schema { ...F%n ...F%n } ") + fmt.Sprintf("fragment F%d on __Schema { description }", n)
	})
	add("fields and many fragments", small, func(n int) string {
		return "{" + repeat(n, "a%d: b ") + repeat(20, "...F%d ") + "}" + repeat(20, "fragment F%d on Query {"+strings.ReplaceAll(repeat(n, "a%d: b "), "%", "")+"} ")
	})
	for _, function := range []string{"graphql.parse_schema", "graphql.schema_is_valid"} {
		schema := func(of string, schema func(n int) string) {
			all = append(all, cost{function, of, func(n int) []*ast.Term { return []*ast.Term{text(schema(n))} }})
		}
		schema("types", piece("type Query { a: Query } ", "type T%d { a(b: String): Query } ", ""))
		schema("fields", piece("type Query { ", "a%d: Query ", "}"))
		schema("one field often", piece("type Query { ", "a: Query ", "}"))
		schema("arguments", piece("type Query { a(", "a%d: String ", "): Query }"))
		schema("values", piece("enum Query { ", "A%d ", "}"))
		schema("a union", piece("type Query { a: Query } union U = Query ", "| Query ", ""))
		schema("interfaces", piece("", "interface I%d { a: Query } ", " type Query { a: Query }"))
		schema("interfaces that are implemented", func(n int) string {
			return repeat(n, "interface I%d { a: Query } ") + "type Query implements I0 " + repeat(n, "& I%d ") + "{ a: Query }"
		})
		schema("types that implement", piece("type Query { a: Query } interface I { a: Query } ", "type T%d implements I { a: Query } ", ""))
		schema("wide types that implement", func(n int) string {
			return "interface I {" + repeat(n, "a%d: Query ") + "} type Query implements I {" + repeat(n, "a%d: Query ") + "}"
		})
		schema("extensions", piece("type Query { a: Query } ", "extend type Query { a%d: Query } ", ""))
		schema("inputs in inputs", piece("type Query { a: Query } ", "input I%d { i: I%n! } ", "input I4 { a: Int }"))
		schema("directives", piece("type Query { a: Query ", "@deprecated ", "}"))
		schema("directives that are defined", piece("type Query { a: Query } ", "directive @d%d on FIELD ", ""))
		schema("descriptions", piece("type Query { ", `"text" a%d: Query `, "}"))
		schema("a list of lists", nest("type Query { a: ", "[", "Query", "]", "}"))
	}
	return all
}
