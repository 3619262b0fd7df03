package policy_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
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
	most := mostBytes
	if testing.Short() { // under the race detector, which makes the large ones take minutes
		most = 1 << 9
	}
	for _, c := range slices.Concat(schemaCosts(), graphQLCosts(), textCosts()) {
		t.Run(c.name+" "+c.of, func(t *testing.T) {
			for n := 4; n <= most; n *= 2 {
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

// cheap are functions that were tried with texts of megabytes, numbers of 100,000 digits and lists of 100,000 values, in many
// combinations, and take no longer than their operands are large.
var cheap = strings.Fields(`all and any array.concat array.flatten array.reverse array.slice base64.decode base64.encode base64.is_valid
base64url.decode base64url.encode base64url.encode_no_pad bits.and bits.lsh bits.negate bits.or bits.rsh bits.xor cast_array cast_boolean
cast_null cast_object cast_set cast_string concat contains count crypto.hmac.equal crypto.hmac.md5 crypto.hmac.sha1 crypto.hmac.sha256
crypto.hmac.sha512 crypto.md5 crypto.sha1 crypto.sha256 endswith equal glob.quote_meta graph.reachable graph.reachable_paths gt gte
hex.decode hex.encode indexof indexof_n internal.member_2 internal.member_3 internal.print internal.template_string internal.test_case
intersection io.jwt.decode io.jwt.decode_verify io.jwt.encode_sign io.jwt.encode_sign_raw is_array is_boolean is_null is_number is_object
is_set is_string json.filter json.is_valid json.marshal json.marshal_with_options json.patch json.remove lower lt lte max min neq
net.cidr_contains net.cidr_contains_matches net.cidr_expand net.cidr_intersects net.cidr_is_valid net.cidr_merge net.cidr_overlap
numbers.range numbers.range_step object.filter object.get object.keys object.remove object.subset object.union object.union_n or
providers.aws.sign_req rand.intn regex.is_valid regex.split rego.metadata.chain rego.metadata.rule replace semver.compare semver.is_valid
set_diff sort split sprintf startswith strings.any_prefix_match strings.any_suffix_match strings.count strings.render_template
strings.reverse strings.split_n substring time.add_date time.clock time.date time.diff time.format time.now_ns time.parse_duration_ns
time.parse_ns time.parse_rfc3339_ns time.weekday trace trim trim_left trim_prefix trim_right trim_space trim_suffix type_name union upper
uri.is_valid uri.parse urlquery.decode urlquery.decode_object urlquery.encode urlquery.encode_object uuid.parse uuid.rfc4122 walk
io.jwt.verify_hs256 io.jwt.verify_hs384 io.jwt.verify_hs512 io.jwt.verify_rs384 io.jwt.verify_rs512 io.jwt.verify_ps256
io.jwt.verify_ps384 io.jwt.verify_ps512 io.jwt.verify_es256 io.jwt.verify_es384 io.jwt.verify_es512 io.jwt.verify_eddsa
crypto.x509.parse_and_verify_certificates_with_options crypto.x509.parse_certificate_request crypto.x509.parse_keypair
crypto.x509.parse_rsa_private_key crypto.parse_private_keys regex.match json.verify_schema graphql.parse`)

// TestEveryFunctionIsTimed: what a new version of OPA brings is tried before sets may call it.
func TestEveryFunctionIsTimed(t *testing.T) {
	known := slices.Clone(cheap)
	for _, c := range slices.Concat(schemaCosts(), graphQLCosts(), textCosts()) {
		known = append(known, c.name)
	}
	for _, b := range policy.Functions() {
		if !slices.Contains(known, b) {
			t.Errorf("%s: how long may one call take? Time it here, or say that it is cheap", b)
		}
	}
}

func textCosts() (all []cost) {
	add := func(name, of string, operands func(n int) []*ast.Term) { all = append(all, cost{name, of, operands}) }
	one := func(piece string) func(int) []*ast.Term {
		return func(n int) []*ast.Term { return []*ast.Term{text(strings.Repeat(piece, n/len(piece)+1))} }
	}
	number := func(text func(n int) string) func(int) []*ast.Term {
		return func(n int) []*ast.Term {
			return []*ast.Term{ast.NewTerm(ast.Number(text(n))), ast.NewTerm(ast.Number("7" + text(n)))}
		}
	}
	nines := func(n int) string { return strings.Repeat("9", min(n, 1<<18)) }
	for _, name := range []string{"units.parse", "units.parse_bytes", "to_number"} {
		add(name, "digits", one("9"))
		add(name, "digits behind a point", func(n int) []*ast.Term { return []*ast.Term{text("0.", strings.Repeat("7", n))} })
		add(name, "an exponent", func(n int) []*ast.Term { return []*ast.Term{text(fmt.Sprintf("1e%d", n))} })
		add(name, "an exponent below", func(n int) []*ast.Term { return []*ast.Term{text(fmt.Sprintf("1e-%d", n))} })
	}
	for name, operands := range map[string]int{"plus": 2, "minus": 2, "mul": 2, "div": 2, "rem": 2, "abs": 1, "ceil": 1, "floor": 1, "round": 1} {
		for of, text := range map[string]func(n int) string{"digits": nines, "digits behind a point": func(n int) string { return "0." + nines(n) },
			"an exponent": func(n int) string { return fmt.Sprintf("1e%d", n) }, "an exponent below": func(n int) string { return fmt.Sprintf("1e-%d", n) }} {
			add(name, of, func(n int) []*ast.Term { return number(text)(n)[:operands] })
		}
	}
	for _, name := range []string{"sum", "product"} {
		add(name, "an exponent", func(n int) []*ast.Term {
			return []*ast.Term{ast.ArrayTerm(number(func(n int) string { return fmt.Sprintf("1e%d", n) })(n)...)}
		})
	}
	add("format_int", "an exponent", func(n int) []*ast.Term {
		return []*ast.Term{ast.NewTerm(ast.Number(fmt.Sprintf("1e%d", n))), ast.NumberTerm("2")}
	})
	for _, name := range []string{"re_match", "regex.find_n", "regex.find_all_string_submatch_n", "regex.replace"} {
		regex := func(of, expression string, piece func(n int) string) {
			add(name, of, func(n int) []*ast.Term {
				e, t := text(strings.Repeat(expression, min(n, 30_000)/len(expression)+1)), text(piece(n))
				switch name {
				case "re_match":
					return []*ast.Term{e, t}
				case "regex.replace":
					return []*ast.Term{t, e, text("x")}
				}
				return []*ast.Term{e, t, ast.NumberTerm("-1")}
			})
		}
		as := func(n int) string { return strings.Repeat("a", n) }
		regex("as long", "a", as)
		regex("many that may be", "a?", as)
		regex("many that may be much", ".*", as)
		regex("many repetitions", "a{1000}", as)
		short := func(of, expression string) {
			add(name, of, func(n int) []*ast.Term {
				switch name {
				case "re_match":
					return []*ast.Term{text(expression), text(as(n))}
				case "regex.replace":
					return []*ast.Term{text(as(n)), text(expression), text("x")}
				}
				return []*ast.Term{text(expression), text(as(n)), ast.NumberTerm("-1")}
			})
		}
		short("matches that each look to the end", "a.*b|a")
		short("groups", "((((a))))*b")
	}
	add("regex.template_match", "an expression", func(n int) []*ast.Term {
		return []*ast.Term{text("{", strings.Repeat("a?", min(n, 30_000)), "}"), text(strings.Repeat("a", n)), text("{"), text("}")}
	})
	for _, piece := range []string{"a", "*", "a*", "?", "[a-z]", "[^a]*", ".*", "{a,b}", "{*,a*}"} {
		add("regex.globs_match", piece, func(n int) []*ast.Term { return append(one(piece)(n), one(piece)(n)...) })
		add("glob.match", piece, func(n int) []*ast.Term {
			return []*ast.Term{text(strings.Repeat(piece, min(n, 60_000)/len(piece)), "b"), ast.ArrayTerm(text(".")), text(strings.Repeat("a", n))}
		})
	}
	for of, piece := range map[string]string{"values": "- 1\n", "a list": "[", "keys": "a%d: 1\n", "keys in brackets": "a%d, ", "aliases": "- &a [*a]\n"} {
		for _, name := range []string{"yaml.unmarshal", "yaml.is_valid"} {
			add(name, of, func(n int) []*ast.Term {
				if of == "keys in brackets" {
					return []*ast.Term{text("{", repeat(min(n, 1<<20), piece), "}")}
				}
				return []*ast.Term{text(repeat(min(n, 1<<20), piece))}
			})
		}
		add("json.unmarshal", of, func(n int) []*ast.Term { return []*ast.Term{text("[", repeat(min(n, 1<<20), "1,"), "1]")} })
	}
	add("yaml.marshal", "values", func(n int) []*ast.Term {
		var items [][2]*ast.Term
		for i := range min(n, mostValues/2) {
			items = append(items, ast.Item(text(fmt.Sprint("k", i)), ast.IntNumberTerm(i)))
		}
		return []*ast.Term{ast.ObjectTerm(items...)}
	})
	add("strings.replace_n", "patterns", func(n int) []*ast.Term {
		var items [][2]*ast.Term
		for i := range min(n, mostValues/2) {
			items = append(items, ast.Item(text(fmt.Sprint("k", i)), text("x")))
		}
		return []*ast.Term{ast.ObjectTerm(items...), text(strings.Repeat("a", n))}
	})
	list := func(n int, item func(i int) *ast.Term) *ast.Term {
		items := make([]*ast.Term, min(n, mostValues/2))
		for i := range items {
			items[i] = item(i)
		}
		return ast.ArrayTerm(items...)
	}
	same := func(int) *ast.Term { return ast.IntNumberTerm(1) }
	address := func(i int) *ast.Term { return text(fmt.Sprintf("10.%d.%d.%d/32", i>>16, i>>8&255, i&255)) }
	add("json.patch", "what is put in front", func(n int) []*ast.Term {
		return []*ast.Term{list(n, same), list(n, func(int) *ast.Term { return ast.MustParseTerm(`{"op": "add", "path": "/0", "value": 1}`) })}
	})
	add("json.patch", "copies of copies", func(n int) []*ast.Term {
		return []*ast.Term{ast.MustParseTerm(`{"a": [1]}`), list(n, func(int) *ast.Term { return ast.MustParseTerm(`{"op": "copy", "from": "/a", "path": "/a/0"}`) })}
	})
	add("json.patch", "tests of all", func(n int) []*ast.Term {
		whole := ast.ObjectTerm(ast.Item(text("op"), text("test")), ast.Item(text("path"), text("/a")), ast.Item(text("value"), list(n, same)))
		return []*ast.Term{ast.ObjectTerm(ast.Item(text("a"), list(n, same))), list(n, func(int) *ast.Term { return whole })}
	})
	add("net.cidr_contains_matches", "lists", func(n int) []*ast.Term { return []*ast.Term{list(n, address), list(n, address)} })
	add("net.cidr_merge", "addresses apart", func(n int) []*ast.Term {
		return []*ast.Term{list(n, func(i int) *ast.Term { return address(2 * i) })}
	})
	add("net.cidr_merge", "networks in each other", func(n int) []*ast.Term {
		return []*ast.Term{list(n, func(i int) *ast.Term { return text(fmt.Sprintf("10.%d.%d.%d/%d", i>>16, i>>8&255, i&255, 8+i%25)) })}
	})
	add("object.subset", "lists in lists", func(n int) []*ast.Term {
		half := list(n/2, same)
		return []*ast.Term{list(n, same), ast.NewTerm(half.Value.(*ast.Array).Append(ast.IntNumberTerm(2)))}
	})
	add("strings.any_prefix_match", "lists", func(n int) []*ast.Term {
		return []*ast.Term{list(n, address), list(n, func(i int) *ast.Term { return text(fmt.Sprint("x", i)) })}
	})
	add("strings.any_suffix_match", "lists", func(n int) []*ast.Term {
		return []*ast.Term{list(n, address), list(n, func(i int) *ast.Term { return text(fmt.Sprint("x", i)) })}
	})
	add("json.filter", "paths", func(n int) []*ast.Term {
		return []*ast.Term{ast.ObjectTerm(ast.Item(text("a"), list(n, same))), list(n, func(i int) *ast.Term { return text(fmt.Sprint("a/", i)) })}
	})
	add("json.remove", "paths", func(n int) []*ast.Term {
		return []*ast.Term{ast.ObjectTerm(ast.Item(text("a"), list(n, same))), list(n, func(i int) *ast.Term { return text(fmt.Sprint("a/", i)) })}
	})
	add("object.union_n", "objects", func(n int) []*ast.Term {
		return []*ast.Term{list(n, func(i int) *ast.Term { return ast.ObjectTerm(ast.Item(ast.IntNumberTerm(i), text("x"))) })}
	})
	add("graph.reachable", "all of all", func(n int) []*ast.Term {
		k := min(n, 200)
		all := list(k, func(i int) *ast.Term { return ast.IntNumberTerm(i) })
		var items [][2]*ast.Term
		for i := range k {
			items = append(items, ast.Item(ast.IntNumberTerm(i), all))
		}
		return []*ast.Term{ast.ObjectTerm(items...), all}
	})
	for _, name := range []string{"io.jwt.decode", "semver.compare", "time.parse_ns", "time.parse_duration_ns", "uri.parse", "urlquery.encode"} {
		for _, piece := range []string{"9", "a.", "1h", "%41", "/", "2006"} {
			add(name, piece, func(n int) []*ast.Term { return append(one(piece)(n), one(piece)(n)...) })
		}
	}
	add("rego.parse_module", "brackets", func(n int) []*ast.Term {
		return []*ast.Term{text("a.rego"), text("package a\nb := ", strings.Repeat("[", n))}
	})
	add("rego.parse_module", "rules", func(n int) []*ast.Term {
		return []*ast.Term{text("a.rego"), text("package a\n", strings.Repeat("b := 1\n", n))}
	})
	for _, size := range []int{256, 1024, 4096, 1 << 16, 1 << 19} {
		key := certified(size)
		of := fmt.Sprintf("keys of %d bytes", size)
		for _, name := range []string{"crypto.x509.parse_certificates", "crypto.x509.parse_and_verify_certificates"} {
			add(name, of, func(n int) []*ast.Term { return []*ast.Term{text(strings.Repeat(key, min(n, mostBytes/len(key)+1)))} })
		}
		add("io.jwt.verify_rs256", of, func(n int) []*ast.Term {
			token := "eyJhbGciOiJSUzI1NiJ9.e30." + base64.RawURLEncoding.EncodeToString(make([]byte, size))
			return []*ast.Term{text(token), text(strings.Repeat(key, min(n, mostBytes/len(key)+1)))}
		})
	}
	return all
}

// certified is a certificate for an RSA key of so many bytes, which nobody holds.
func certified(size int) string {
	modulus := new(big.Int).Lsh(big.NewInt(1), uint(size*8-1))
	modulus.Add(modulus, big.NewInt(12345))
	issuer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &rsa.PublicKey{N: modulus, E: 65537}, issuer)
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
