package policy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/authz/policy"
)

// TestSchemasThatDoNotEnd: the library goes as deep as a schema says, and a stack that overflows ends the process.
func TestSchemasThatDoNotEnd(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret.json")
	if err := os.WriteFile(secret, []byte(`{"type": "string"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	branches := make([]string, 60)
	for i := range branches {
		branches[i] = fmt.Sprintf(`"d%d": %s{"$ref": "#/definitions/d%d"}%s`, i, strings.Repeat(`{"not": `, 100), i+1, strings.Repeat("}", 100))
	}
	const loop, missing, deep, long = "the schema refers to itself without end", "which is not in it", "nested too deep", "take too long"
	for name, row := range map[string]struct{ instance, schema, match, verify string }{
		"itself":                       {`{}`, `{"$ref": "#"}`, loop, loop},
		"itself by pointer":            {`{}`, `{"definitions": {"a": {"$ref": "#/definitions/a"}}, "items": {"$ref": "#/definitions/a"}}`, loop, loop},
		"all of itself":                {`{}`, `{"allOf": [{"$ref": "#"}]}`, loop, loop},
		"any of itself":                {`{}`, `{"anyOf": [{"type": "string"}, {"$ref": "#"}]}`, loop, loop},
		"one of itself":                {`{}`, `{"oneOf": [{"$ref": "#"}]}`, loop, loop},
		"not itself":                   {`{}`, `{"not": {"$ref": "#"}}`, loop, loop},
		"if":                           {`{}`, `{"$schema": "http://json-schema.org/draft-07/schema#", "if": {"$ref": "#"}}`, loop, loop},
		"then":                         {`{}`, `{"$schema": "http://json-schema.org/draft-07/schema#", "if": true, "then": {"$ref": "#"}}`, loop, loop},
		"else":                         {`{}`, `{"$schema": "http://json-schema.org/draft-07/schema#", "if": false, "else": {"$ref": "#"}}`, loop, loop},
		"depends on itself":            {`{"a": 1}`, `{"dependencies": {"a": {"$ref": "#"}}}`, loop, loop},
		"two that are each other":      {`{}`, `{"$ref": "#/definitions/a", "definitions": {"a": {"$ref": "#/definitions/b"}, "b": {"allOf": [{"$ref": "#/definitions/a"}]}}}`, loop, loop},
		"itself by an id":              {`{}`, `{"id": "http://example.org/a", "allOf": [{"$ref": "http://example.org/a"}]}`, loop, loop},
		"itself by an id in an id":     {`{}`, `{"$id": "http://example.org/a", "definitions": {"b": {"$id": "b", "$ref": "b"}}, "not": {"$ref": "b"}}`, loop, loop},
		"itself, escaped":              {`{}`, `{"definitions": {"a/b": {"$ref": "#/%64efinitions/a~1b"}}, "not": {"$ref": "#/definitions/a~1b"}}`, loop, loop},
		"a fragment that is none":      {`{}`, `{"not": {"$ref": "#a"}}`, loop, loop},
		"into an enumeration":          {`{}`, `{"enum": [{"$ref": "#/enum/0"}], "allOf": [{"$ref": "#/enum/0"}]}`, loop, loop},
		"items that are lists":         {strings.Repeat("[", 6000) + strings.Repeat("]", 6000), `{"items": {"$ref": "#"}}`, deep, ""},
		"members that are objects":     {strings.Repeat(`{"a":`, 6000) + "1" + strings.Repeat("}", 6000), `{"properties": {"a": {"$ref": "#"}}}`, deep, ""},
		"schemas in schemas":           {`{}`, strings.Repeat(`{"not": `, 9000) + "{}" + strings.Repeat("}", 9000), deep, deep},
		"deep branches in a chain":     {`{}`, `{"$ref": "#/definitions/d0", "definitions": {` + strings.Join(branches, ",") + `, "d60": {}}}`, deep, deep},
		"twice at each depth":          {strings.Repeat("[", 100) + strings.Repeat("]", 100), `{"allOf": [{"items": {"$ref": "#"}}, {"items": {"$ref": "#"}}]}`, long, ""},
		"what is not there":            {`{}`, `{"$ref": "#/definitions/a"}`, missing, missing},
		"a file":                       {`"a"`, `{"$ref": "file://` + secret + `"}`, missing, missing},
		"a file, from an id":           {`"a"`, `{"$id": "file://` + filepath.Dir(secret) + `/a.json", "items": {"$ref": "secret.json"}}`, missing, missing},
		"a number that takes a minute": {`[1e1000000]`, `{"items": {"type": "integer"}}`, "a number fits no double", ""},
		"a bound that takes a minute":  {`[1]`, `{"items": {"minimum": 1e1000000}}`, "a number fits no double", "a number fits no double"},
	} {
		t.Run(name, func(t *testing.T) {
			check := func(function, want string, operands ...*ast.Term) {
				t.Helper()
				err := policy.Call(t.Context(), function, operands...)
				if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
					t.Errorf("%s: %v, want %q", function, err, want)
				}
			}
			check("json.match_schema", row.match, text(row.instance), text(row.schema))
			check("json.verify_schema", row.verify, text(row.schema))
			var schema any
			d := json.NewDecoder(strings.NewReader(row.schema))
			d.UseNumber()
			if err := d.Decode(&schema); err != nil {
				t.Fatal(err)
			}
			value, err := ast.InterfaceToValue(schema)
			if err != nil {
				return // as a value it cannot be
			}
			check("json.match_schema", row.match, text(row.instance), ast.NewTerm(value))
			check("json.verify_schema", row.verify, ast.NewTerm(value))
		})
	}
}

// TestHonestSchemas gives the library's own answers.
func TestHonestSchemas(t *testing.T) {
	load(t, map[string]string{"a.rego": allowAll, "a_test.rego": `package a
tree := {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "below": {"type": "array", "items": {"$ref": "#"}}}}
test_tree if {
	json.verify_schema(tree)[0]
	json.match_schema({"name": "a", "below": [{"name": "b", "below": []}]}, tree)[0]
	not json.match_schema({"name": "a", "below": [{"name": 1}]}, tree)[0]
	json.match_schema("{\"name\": \"a\"}", json.marshal(tree))[0]
}
named := {"$id": "http://example.org/root", "definitions": {"port": {"$id": "port", "type": "integer", "maximum": 65535}}, "items": {"$ref": "port"}}
test_named if {
	json.match_schema(json.marshal([80, 443]), named)[0]
	not json.match_schema(json.marshal([80, 70000]), named)[0]
}
large := {"items": {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 0}, "b": {"type": "string", "pattern": "^[a-z]{1,10}$"}}}}
test_large if json.match_schema(json.marshal([{"a": i, "b": "abc"} | some i in numbers.range(1, 1000)]), large)[0]
test_no_schema if {
	not json.match_schema("1 2", {})
	not json.match_schema({}, "no JSON")
	not json.verify_schema("no JSON")[0]
	not json.verify_schema({"type": "no type"})[0]
	not json.verify_schema({"minimum": "1"})[0]
	json.verify_schema({"$schema": "http://json-schema.org/draft-07/schema#", "items": true})[0]
}
`})
}

// TestATestCannotEndTheProcess: a folder's own tests run where it is loaded.
func TestATestCannotEndTheProcess(t *testing.T) {
	_, err := policy.LoadFS(t.Context(), mapFS(map[string]string{"a.rego": allowAll, "a_test.rego": `package a
test_loop if json.match_schema({}, {"allOf": [{"$ref": "#"}]})[0]
`}), policy.Config{})
	if err == nil || !strings.Contains(err.Error(), "refers to itself without end") {
		t.Error(err)
	}
	_, err = policy.LoadFS(t.Context(), mapFS(map[string]string{"a.rego": allowAll, "a_test.rego": `package a
test_panic if graphql.is_valid({"Operations": [{"Operation": "query", "SelectionSet": [{"Name": "a", "Arguments": [{"Name": "a"}]}]}]}, "type Query { a: String }")
`}), policy.Config{})
	if err == nil || !strings.Contains(err.Error(), "graphql.is_valid: panic: ") {
		t.Error(err)
	}
}

// TestSchemasOfAnnotationsAreNotRead: they would reach the library when a set is compiled.
func TestSchemasOfAnnotationsAreNotRead(t *testing.T) {
	for _, schema := range []string{`{"$ref": "#"}`, `{"allOf": [{"$ref": "#"}]}`, `{"allOf": [{"properties": {"a": {"$ref": "#"}}}, {"$ref": "#"}]}`} {
		set := load(t, map[string]string{"a.rego": "# METADATA\n# scope: package\n# schemas:\n#   - input: " + schema + "\npackage envoy.authz\n\n" +
			"# METADATA\n# scope: rule\n# schemas:\n#   - input.attributes: " + schema + "\nallow if input.attributes\n"})
		if d := set.Decide(context.Background(), wire(t, message(t, fullRequest))); d.Outcome.String() != "allowed" {
			t.Errorf("%s: %v %s", schema, d.Outcome, d.Reason)
		}
	}
}
