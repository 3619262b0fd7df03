package policy_test

import (
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/authz/policy"
)

const graphQLSchema = `type Query { f(a: [String]): Query b: String }`

// TestGraphQLFragmentsThatDoNotEnd: what the library makes of them overflows the stack, or takes as long as there is. Whatever stands
// before a fragment, it is seen.
func TestGraphQLFragmentsThatDoNotEnd(t *testing.T) {
	const overflow = "fragment A on Query { f { f { ...A } ...A } }"
	const loop, long, deep = "a fragment spreads itself", "takes too long", "nested too deep"
	for name, row := range map[string]struct{ query, want string }{
		"a fragment in itself":             {"{ ...A } " + overflow, loop},
		"fragments in each other":          {"{ ...A } fragment A on Query { ...B ...B } fragment B on Query { f { ...C } } fragment C on Query { ... { ...A } }", loop},
		"one that is not spread":           {"{ b } " + overflow, loop},
		"behind another of its name":       {"{ ...A } " + overflow + " fragment A on Query { b }", loop},
		"behind a text":                    {`{ f(a: ["}", "\"{", "\\"]) { ...A } } ` + overflow, loop},
		"behind a block string":            {`{ f(a: ["""}"" \""" { """"]) { ...A } } ` + overflow, loop},
		"behind an empty text":             {`{ f(a: ["", """"""]) { ...A } } ` + overflow, loop},
		"behind a comment":                 {"{ f { #}}}\"\"\"{{\r...A } } #\"\n" + overflow, loop},
		"behind a byte order mark":         {"\ufeff{ \ufeff...A }\ufeff" + overflow, loop},
		"behind directives":                {`query q($v: [String] = ["}"] @a(b: "{"), $w: In = {i: {}}) @c(d: {e: "{"}) { f @skip(if: true) @x(y: {z: [1 -1.5e-3]}) { ...A @x } } ` + overflow, loop},
		"behind inline fragments":          {"{ ... { ... on Query @x { ... @x { ...A } } } } " + overflow, loop},
		"behind aliases":                   {"{ on: f { fragment: f { query: f { ...A } } } } " + overflow, loop},
		"behind keywords":                  {"{ fragment query on } query query { ...A } fragment fragment on Query { ...query } fragment query on Query { b } " + overflow, loop},
		"the schema that doubles":          {"{ __schema { ...F0 } } " + repeat(40, "fragment F%d on __Schema { ...F%n ...F%n } "), long},
		"fields that double":               {"{" + repeat(2000, "f { b } ") + "}", long},
		"a chain of fragments by a chain":  {"{ ...F0 ...G0 } " + repeat(800, "fragment F%d on Query { b ...F%n } fragment G%d on Query { b ...G%n } "), long},
		"a query as deep as a stack":       {repeat(100_000, "{"), deep},
		"values as deep as a stack":        {"{ f(a: " + repeat(100_000, "["), deep},
		"a query of very many fields":      {"{" + repeat(50_000, "b ") + "}", "more than 20000 tokens"},
		"a query of very many comments":    {"{ b " + repeat(50_000, "#\n") + "}", "more than 20000 tokens"},
		"a query of very many blank lines": {"{ b " + repeat(300_000, "\n") + "}", "more than 262144 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			err := policy.Call(t.Context(), "graphql.is_valid", text(row.query), text(graphQLSchema))
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%v, want %q", err, row.want)
			}
		})
	}
}

// TestHonestGraphQL: queries as clients send them, of tens of KB, are judged as ever.
func TestHonestGraphQL(t *testing.T) {
	large := "query Page($id: ID!, $first: Int = 10) {\n" + repeat(40, `  # section %d
  s%d: section(id: $id, where: {kind: "a \" b", n: [1, 2.5, -3]}) @include(if: true) {
    ...Section
    items(first: $first) {
      id
      title
      author { ...Person }
      ... on Book { isbn pages publisher { name city } }
      tags { name slug }
    }
  }
`) + "}\nfragment Section on Section { id title text owner { ...Person } }\nfragment Person on Person { id name mail friends { id name } }\n"
	if len(large) < 10<<10 {
		t.Fatalf("the query has %d bytes", len(large))
	}
	schema := `"""A page""" type Query { section(id: ID!, where: Where): Section }
input Where { kind: String n: [Float] }
type Section { id: ID! title: String text: String owner: Person items(first: Int): [Item] }
interface Item { id: ID! title: String author: Person tags: [Tag] }
type Book implements Item { id: ID! title: String author: Person tags: [Tag] isbn: String pages: Int publisher: Publisher }
type Publisher { name: String city: String }
type Person { id: ID! name: String mail: String friends: [Person] }
type Tag { name: String slug: String }
` + repeat(100, "type Other%d { a: String b(c: Int): [Other%d!]! d: ID }\n")
	for _, query := range []string{large, "{" + repeat(800, "a%d: section(id: 1) { id }\n") + "}"} {
		valid := ast.NewTerm(ast.Boolean(false))
		if err := policy.Result(t.Context(), "graphql.is_valid", &valid, text(query), text(schema)); err != nil || !valid.Equal(ast.BooleanTerm(true)) {
			t.Errorf("%.40q: %v, %v", query, valid, err)
		}
		if err := policy.Call(t.Context(), "graphql.parse_query", text(query)); err != nil {
			t.Errorf("%.40q: %v", query, err)
		}
	}
	load(t, map[string]string{"a.rego": allowAll, "a_test.rego": `package a
schema := "type Query { f(a: [String]): Query b: String }"
test_objects if {
	graphql.is_valid(graphql.parse_query("{ f { b } }"), graphql.parse_schema(schema))
	not graphql.is_valid(graphql.parse_query("{ x }"), schema)
	graphql.parse("{ f { b } }", schema)[0].Operations
	graphql.parse_and_verify("{ b }", schema)[0]
	not graphql.is_valid("{ b", schema)
	not graphql.is_valid("{ b }", "type")
	graphql.schema_is_valid(schema)
	not graphql.schema_is_valid("type A { a: B }")
}
`})
}

// TestGraphQLObjectsAreBounded: a body may bring a query as parsed.
func TestGraphQLObjectsAreBounded(t *testing.T) {
	field := ast.MustParseTerm(`{"Name": "f"}`)
	deep := field
	for range 150 {
		deep = ast.ObjectTerm(ast.Item(ast.StringTerm("Name"), ast.StringTerm("f")), ast.Item(ast.StringTerm("SelectionSet"), ast.ArrayTerm(deep)))
	}
	var many []*ast.Term
	for range 2000 {
		many = append(many, field)
	}
	query := func(fields ...*ast.Term) *ast.Term {
		return ast.ObjectTerm(ast.Item(ast.StringTerm("Operations"), ast.ArrayTerm(ast.ObjectTerm(
			ast.Item(ast.StringTerm("Operation"), ast.StringTerm("query")), ast.Item(ast.StringTerm("SelectionSet"), ast.ArrayTerm(fields...))))))
	}
	for want, q := range map[string]*ast.Term{
		"the text is nested too deep":              query(deep),
		"an operand has more than 2000 values":     query(many...),
		"the text has more than 262144 bytes":      query(ast.ObjectTerm(ast.Item(ast.StringTerm("Name"), text(strings.Repeat("x", 300_000))))),
		"runtime error: invalid memory address or": ast.MustParseTerm(`{"Operations": [{"Operation": "query", "SelectionSet": [{"Name": "f", "Arguments": [{"Name": "a"}]}]}]}`),
	} {
		if err := policy.Call(t.Context(), "graphql.is_valid", q, text(graphQLSchema)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
