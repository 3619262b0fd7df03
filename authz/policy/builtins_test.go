package policy_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/authz"
)

// TestOneCallMakesNoMoreThanItMay: no single call of a function takes gigabytes or hours, which no deadline could cut short.
func TestOneCallMakesNoMoreThanItMay(t *testing.T) {
	doubled := "n0 := [1, 1]\n"
	squared := "s0 := 99999999999999999999999999999999999999999999\n"
	for i := 1; i <= 40; i++ {
		doubled += fmt.Sprintf("n%d := [n%d, n%d]\n", i, i-1, i-1)
		squared += fmt.Sprintf("s%d := s%d * s%d\n", i, i-1, i-1)
	}
	long := "long := sprintf(\"%999999d\", [1])\n"
	graph := "g[k] := v if { some i in numbers.range(1, 100); k := sprintf(\"n%d\", [i]); v := [sprintf(\"n%d\", [i + 1]), sprintf(\"n%d\", [i + 2])] }\n"
	rows := map[string]struct{ rego, wants string }{
		"a shift by a gigabit":                {"allow if bits.lsh(1, 1000000000) > 5", "bits.lsh: shifts by more than 65536 bits"},
		"a shift that no memory holds":        {"allow if bits.lsh(1, 1000000000000) > 5", "bits.lsh: shifts by more"},
		"a shift beyond 64 bits":              {"allow if bits.lsh(1, 100000000000000000000000) > 5", "bits.lsh: shifts by more"},
		"squares of squares":                  {squared + "allow if s40 > 5", "mul: the result has more than 100000 digits"},
		"a product":                           {"allow if product([1000000000000000000000000000000 | some i in numbers.range(1, 10000)]) > 5", "product: the result has more than 100000 digits"},
		"many wide verbs":                     {`allow if count(sprintf("%[1]999999d%[1]999999d%[1]999999d%[1]999999d%[1]999999d%[1]999999d%[1]999999d%[1]999999d%[1]999999d%[1]999999d%[1]999999d%[1]999999d%[1]999999d%[1]999999d%[1]999999d%[1]999999d%[1]999999d", [1])) > 5`, "sprintf: the result has more than 16777216 bytes"},
		"wide verbs by operand":               {`allow if count(sprintf(concat("", ["%[1]*d" | some i in numbers.range(1, 17)]), [999999, 1])) > 5`, "sprintf: the result has more than 16777216 bytes"},
		"a replacement of nothing":            {`allow if count(replace(sprintf("%999999d", [1]), "", sprintf("%99999d", [1]))) > 5`, "replace: the result has more than 16777216 bytes"},
		"many replacements":                   {`allow if count(strings.replace_n({" ": sprintf("%99999d", [1])}, sprintf("%999999d", [1]))) > 5`, "strings.replace_n: the result has more than"},
		"paths that part and meet":            {graph + `allow if count(graph.reachable_paths(g, {"n1"})) > 5`, "graph.reachable_paths: the search takes more than 10000 steps"},
		"JSON of lists in lists":              {doubled + "allow if count(json.marshal(n40)) > 5", "json.marshal: an operand has more than 500000 values"},
		"JSON of lists in lists, with spaces": {doubled + `allow if count(json.marshal_with_options(n40, {"pretty": true})) > 5`, "json.marshal_with_options: an operand has more"},
		"YAML of lists in lists":              {doubled + "allow if count(yaml.marshal(n40)) > 5", "yaml.marshal: an operand has more"},
		"lists in lists in a text":            {doubled + `allow if count(sprintf("%v", [n40])) > 5`, "sprintf: an operand has more"},
		"lists in lists as metadata":          {doubled + `allow := {"allowed": true, "dynamic_metadata": {"n": n40}}`, "the result has more than 100000 values"},
		"lists in lists as a reason":          {doubled + `allow := {"allowed": false, "reason": n40}`, "the result has more than 100000 values"},
		"a JWT of lists in lists":             {doubled + `allow if count(io.jwt.encode_sign({"alg": "HS256"}, {"n": n40}, {"kty": "oct", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ"})) > 5`, "io.jwt.encode_sign: an operand has more"},
		"a text a thousand times":             {long + "allow if count(json.marshal([long | some i in numbers.range(1, 1000)])) > 5", "json.marshal: the result has more than 16777216 bytes"},
		"an operand a hundred times":          {long + `allow if count(sprintf(concat("", ["%[1]s" | some i in numbers.range(1, 100)]), [long])) > 5`, "sprintf: the result has more than"},
		"long texts joined":                   {long + `allow if count(concat("", [long | some i in numbers.range(1, 1000)])) > 5`, "concat: the result has more than 16777216 bytes"},
		"texts joined by a long one":          {long + `allow if count(concat(long, ["a" | some i in numbers.range(1, 100000)])) > 5`, "concat: the result has more than 16777216 bytes"},
		"a text cut everywhere":               {long + `allow if count(split(long, "")) > 5`, "split: the text is cut into more than 500000 pieces"},
		"every place of a letter":             {long + `allow if count(indexof_n(long, " ")) > 5`, "indexof_n: the text is cut into more than"},
		"very many matches":                   {long + `allow if count(regex.find_n(" ", long, -1)) > 5`, "regex.find_n: the "},                                                 // cut into too many pieces; or, where that takes too long to count, the expression,
		"very many groups":                    {long + `allow if count(regex.find_all_string_submatch_n("(((( ))))", long, -1)) > 5`, "regex.find_all_string_submatch_n: the "}, // cut into too many pieces; or, where that takes too long to count, the expression,
		"matches that become long":            {long + `allow if count(regex.replace(long, " +1", concat("", ["$0" | some i in numbers.range(1, 1000)]))) > 5`, "regex.replace: the result has more than"},
		"very many matches that go":           {long + `allow if count(regex.replace(long, " ", "")) > 5`, "regex.replace: the "}, // cut into too many pieces; or, where that takes too long to count, the expression,
		"loops in a template":                 {`allow if count(strings.render_template("{{range .a}}{{range $.a}}{{range $.a}}x{{end}}{{end}}{{end}}", {"a": numbers.range(1, 3000)})) > 5`, "strings.render_template: the result has more than"},
		"a template that calls itself":        {`allow if count(strings.render_template("{{define \"x\"}}{{template \"x\"}}{{template \"x\"}}{{end}}{{template \"x\"}}", {})) > 5`, "strings.render_template: a template with"},
		"wide verbs in a template":            {`allow if count(strings.render_template(concat("", ["{{printf \"%0999999d\" 1}}" | some i in numbers.range(1, 17)]), {})) > 5`, "strings.render_template: the result has more than"},
		"a number of a million digits":        {long + `allow if json.unmarshal(replace(long, " ", "9")) + 1 > 5`, "json.unmarshal: the result has more than 100000 digits"},
		"JSON of very many values":            {`allow if count(json.unmarshal(sprintf("[1%s]", [concat("", [",1" | some i in numbers.range(1, 200001)])]))) > 5`, "json.unmarshal: the text has more than 200000 values"},
		"YAML of very many values":            {`allow if count(yaml.unmarshal(concat("", ["- 1\n" | some i in numbers.range(1, 200001)]))) > 5`, "yaml.unmarshal: the text has more than 200000 values"},
		"a query of very many pairs":          {`allow if count(urlquery.decode_object(concat("", ["a&" | some i in numbers.range(1, 200001)]))) > 5`, "urlquery.decode_object: the query has more than"},
		"a long token":                        {long + `allow if io.jwt.decode(long)[1].a == 1`, "io.jwt.decode: the token has more than"},
		"a long pattern":                      {long + `allow if glob.match(long, [], "a")`, "glob.match: the pattern has more than"},
		"a query as deep as a stack":          {`allow if graphql.parse_query(concat("", ["{aaa" | some i in numbers.range(1, 100000)]))`, "graphql.parse_query: the text has more than 262144 bytes"},
		"a range":                             {"allow if count(numbers.range(1, 1000000000)) > 5", "timeout"},
		"all addresses":                       {`allow if count(net.cidr_expand("0.0.0.0/0")) > 5`, "timeout"},
		"pairs of a long list":                {"allow if count([[a, b] | some a in numbers.range(1, 100000); some b in numbers.range(1, 100000)]) > 5", "timeout"},
		"a walk without end":                  {"x := [numbers.range(1, i) | some i in numbers.range(1, 3000)]\nallow if count([p | walk(x, [p, _])]) > 5", "timeout"},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			set := load(t, map[string]string{"a.rego": "package envoy.authz\n" + row.rego + "\n"})
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			start := time.Now()
			d := set.Decide(ctx, wire(t, message(t, fullRequest)))
			took := time.Since(start)
			if d.Outcome != authz.Failed || !strings.Contains(d.Reason, row.wants) && d.Cause != authz.TimedOut {
				t.Errorf("%v %q, want %q", d.Outcome, d.Reason, row.wants)
			}
			if took > 10*time.Second { // generous: what these guard against takes minutes, or all memory
				t.Errorf("it took %v", took)
			}
			t.Logf("%s after %v", d.Reason, took)
		})
	}
}

// TestBoundsLeaveHonestCallsAlone: what policies do with these functions goes on.
func TestBoundsLeaveHonestCallsAlone(t *testing.T) {
	load(t, map[string]string{"a.rego": allowAll, "a_test.rego": `package a
g := {"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": ["a"]}
test_all if {
	bits.lsh(1, 64) == 18446744073709551616
	not bits.lsh(1, -1)
	2 * 3 == 6
	1.5 * 2 == 3
	{1, 2} - {2} == {1}
	product([2, 3]) == 6
	product({2, 3}) == 6
	sprintf("%05d %s 100%% %10.3f %v", [7, "a", 1.5, [1]]) == "00007 a 100%      1.500 [1]"
	count(sprintf("%*d", [100000, 1])) == 100000
	sprintf("%v", ["12345678"]) == "12345678"
	sprintf("12345678901234567890%d", [1]) == "123456789012345678901"
	replace("aaa", "a", "bb") == "bbbbbb"
	strings.replace_n({"a": "b", "c": "d"}, "acx") == "bdx"
	json.marshal({"a": [1]}) == "{\"a\":[1]}"
	graph.reachable_paths(g, {"a"}) == {["a", "b", "d"], ["a", "c", "d"]}
	concat(", ", ["a", "b"]) == "a, b"
	concat(", ", {"a", "b"}) == "a, b"
	split("a.b", ".") == ["a", "b"]
	indexof_n("aba", "a") == [0, 2]
	regex.find_n("a.", "abac", -1) == ["ab", "ac"]
	count(regex.find_n("x", sprintf("x%999999d", [1]), -1)) == 1
	regex.find_all_string_submatch_n("a(.)", "abac", -1) == [["ab", "b"], ["ac", "c"]]
	regex.replace("abac", "a(.)", "$1") == "bc"
	count(regex.replace(sprintf("x%999999d", [1]), "x", "yy")) == 1000001
	strings.render_template("blocked: {{.a}} oranges", {"a": 1}) == "blocked: 1 oranges"
	strings.render_template("{{range .a}}{{.}},{{end}}", {"a": [1, 2]}) == "1,2,"
	json.unmarshal("{\"a\": [1, 2]}") == {"a": [1, 2]}
	yaml.unmarshal("- 1\n- b\n") == [1, "b"]
	urlquery.decode_object("a=1&a=2") == {"a": ["1", "2"]}
	io.jwt.decode("eyJhbGciOiJub25lIn0.eyJhIjoxfQ.")[1] == {"a": 1}
	glob.match("*.example.org", [], "a.example.org")
	graphql.is_valid("{ a }", "type Query { a: String }")
	json.match_schema({"a": 1}, {"type": "object"})[0]
}
`})
}
