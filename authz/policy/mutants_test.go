package policy_test

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/writ-dev/writ/authz/policy"
)

// guarded is version 0 of a set whose every line is held by a test or a case.
func guarded(t testing.TB) map[string]string {
	files := version(0)
	files["policy.yaml"] = "decision: envoy/authz/answer\nreason: client\ndescriptors: [api.pb]\nlimits: {time: 500ms}\n"
	files["guard.rego"] = `package guard

admin if {
	input.attributes.request.http.method == "POST"
	input.parsed_path == ["api", "v1", "orders"]
	input.attributes.request.http.headers["x-role"] in data.roles
}
`
	files["data.json"] = `{"version": "000000", "roles": ["admin", "owner"]}`
	files["guard_test.rego"] = `package guard_test

asked(role) := {"attributes": {"request": {"http": {"method": "POST", "headers": {"x-role": role}}}}, "parsed_path": ["api", "v1", "orders"]}

test_admin if data.guard.admin with input as asked("admin")

test_owner if data.guard.admin with input as asked("owner")

test_nobody if not data.guard.admin with input as asked("nobody")

test_version if {
	data.envoy.authz.answer == {"allowed": true, "headers": {"x-rule": "000000", "x-other": "000000", "x-data": "000000"}}
	count(data.roles) == 2
}
`
	files["cases/all.yaml"] = `description: it answers
input: {attributes: {request: {http: {method: GET, path: /}}}}
want: {allowed: true, headers: {x-rule: "000000", x-other: "000000", x-data: "000000"}}
`
	files["api.pb"] = string(wire(t, &descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{{Name: proto.String("x.proto")}}}))
	return files
}

// A mutant is a good set with one fault.
type mutant struct {
	name  string
	files map[string]string
}

// mutants are sets that must not go live: each file of a good set cut short, its signs lost or changed, and faults that people make.
func mutants(t testing.TB) (out []mutant) {
	good := guarded(t)
	had := map[string]bool{}
	add := func(name, file, text string) {
		if had[file+"\x00"+text] { // one } of two: where such a set replaces its like, nothing is loaded
			return
		}
		had[file+"\x00"+text] = true
		files := maps.Clone(good)
		if files[file] = text; text == "" {
			delete(files, file)
		}
		out = append(out, mutant{name, files})
	}
	for _, file := range []string{"rule.rego", "other.rego", "guard.rego", "guard_test.rego", "data.json", "cases/all.yaml", "policy.yaml", "api.pb"} {
		text := good[file]
		if file != "guard_test.rego" && file != "cases/all.yaml" { // without its tests a set is good
			add("without "+file, file, "")
		}
		for _, at := range cuts(file, text) {
			add(fmt.Sprintf("%s cut after %d bytes", file, at), file, text[:at])
		}
		if strings.HasSuffix(file, ".rego") || file == "data.json" {
			for i, c := range text {
				if strings.ContainsRune(`{}[]":(`, c) && !strings.HasPrefix(text[i:], ":=") { // = means the same there
					add(fmt.Sprintf("%s without the %c at %d", file, c, i), file, text[:i]+text[i+1:])
				}
			}
		}
	}
	for _, f := range flaws() {
		text := strings.Replace(good[f.file], f.from, f.to, 1)
		if f.from == "" {
			text = f.to
		}
		if text == good[f.file] {
			t.Fatalf("%q is not in %s", f.from, f.file)
		}
		add(fmt.Sprintf("%s: %q for %q", f.file, f.to[:min(len(f.to), 60)], f.from), f.file, text)
	}
	return out
}

// cuts are where a file is no more what it was: in the middle of lines.
func cuts(file, text string) (at []int) {
	if file == "policy.yaml" {
		return []int{3, 10, 24, len(text) - 4}
	}
	for i := 1; i < len(text)-1; i += max(1, len(text)/12) {
		if text[i-1] != '\n' && strings.TrimSpace(text[i:]) != "" && (file != "guard_test.rego" || text[i] != '\n') {
			at = append(at, i)
		}
	}
	return at
}

// A flaw stands in a file for something else, or for the whole file where from is empty.
type flaw struct{ file, from, to string }

func flaws() []flaw {
	return []flaw{
		{"policy.yaml", "answer", "answers"}, {"policy.yaml", "envoy/authz/answer", "envoy/authz"}, {"policy.yaml", "envoy/authz/answer", "//"},
		{"policy.yaml", "decision", "desicion"}, {"policy.yaml", "client", "clients"}, {"policy.yaml", "api.pb", "../api.pb"},
		{"policy.yaml", "api.pb", "none.pb"}, {"policy.yaml", "500ms", "2s"}, {"policy.yaml", "500ms", "-1s"}, {"policy.yaml", "", "[]"},
		{"policy.yaml", "", "decision: envoy/authz/answer\n---\nrego: v1\n"}, {"policy.yaml", "", "decision: &a envoy/authz/answer\nreason: *a\n"},
		{"policy.yaml", "reason", "decision: envoy/authz/answer\nreason"}, {"policy.yaml", "", "rego: v0\ndecision: envoy/authz/answer\n"},
		{"data.json", `"owner"`, `"owners"`}, {"data.json", "000000", "000001"}, {"data.json", `"000000"`, "0"}, {"data.json", "", "[]"}, {"data.json", "", "null"},
		{"data.json", "", "{} {}"}, {"data.json", `"roles"`, `"version"`}, {"data.json", "", `{"version": 1e999999999}`}, {"data.json", "", strings.Repeat("[", 100_000)},
		{"x/data.json", "", `{"y": `}, {"data.yaml", "", "roles: []\n"}, {"data.yaml", "", "a: [\n"}, {"data.yaml", "", bomb()}, {"other/data.json", "", `{"version": "1"}`},
		{"rule.rego", "000000", "000001"}, {"rule.rego", "true", "false"}, {"rule.rego", "data.version", "data.versions"}, {"rule.rego", "data.version", "input.version"},
		{"rule.rego", "package envoy.authz", "package envoy.auth"}, {"rule.rego", "answer", "answr"}, {"rule.rego", "data.other.version", "http.send({})"},
		{"rule.rego", "data.other.version", "opa.runtime().env"}, {"rule.rego", "data.other.version", "nothing(1)"}, {"rule.rego", "data.other.version", "data.envoy.authz.answer"},
		{"rule.rego", "true", "input.attributes.request.http.metod == \"GET\""}, {"rule.rego", "true", "1 + \"a\""}, {"rule.rego", "true", "x"},
		{"rule.rego", "", "package envoy.authz\nanswer := true\nanswer := false\n"}, {"rule.rego", "", "package envoy.authz\nanswer { true }\n"}, {"rule.rego", "", "\x00"},
		{"rule.rego", "", "\xff\xfe"}, {"rule.rego", "", "# nothing\n"}, {"rule.rego", "", "package other\nanswer := true\n"},
		{"other.rego", "000000", "000001"}, {"other.rego", "version", "versions"}, {"other.rego", "package other", "package others"}, {"other.rego", "\"000000\"", "input.parsed_path"},
		{"other.rego", "", "package other\nversion := data.other.version\n"}, {"other.rego", "", "package other\nversion := a if { some a in b }\n"},
		{"guard.rego", "POST", "GET"}, {"guard.rego", "orders", "order"}, {"guard.rego", "x-role", "x-roles"}, {"guard.rego", " in ", " not in "}, {"guard.rego", "== \"POST\"", "== 1"},
		{"guard.rego", "method", "methods"}, {"guard.rego", "parsed_path", "parsed_paths"}, {"guard.rego", "parsed_path ==", "parsed_path ==" + " 1 #"}, {"guard.rego", "admin if", "admin contains 1 if"},
		{"guard.rego", "data.roles", "data.role"}, {"guard.rego", "if {", "{"}, {"guard.rego", "package guard", "package guards"}, {"guard.rego", "package guard\n", ""},
		{"guard_test.rego", "test_admin if", "test_admin if not"}, {"guard_test.rego", "nobody\")", "admin\")"}, {"guard_test.rego", "== 2", "== 3"},
		{"guard_test.rego", "asked(role)", "asked(roles)"}, {"more_test.rego", "", "package more\ntest_a if false\n"}, {"more_test.rego", "", "package more\ntest_a if x\n"},
		{"more_test.rego", "", "package more\ntest_a if data.none.at.all\n"}, {"more_test.rego", "", "package more\ntest_a if { some x in numbers.range(1, 3); x > 5 }\n"},
		{"cases/all.yaml", "true", "false"}, {"cases/all.yaml", "000000", "000001"}, {"cases/all.yaml", "want", "wants"}, {"cases/all.yaml", "input", "inputs"},
		{"cases/all.yaml", "GET, path: /", "GET, path: //"}, {"cases/more.yaml", "", "description: a\ninput: {}\nwant: 1\n"}, {"cases/more.yaml", "", "description: a\nwant: true\n---\n[]\n"},
		{"b.rego", "", "package guard\nadmin := 1\n"}, {"b.rego", "", "package b\n" + strings.Repeat("(", 100_000)},
		{"b.rego", "", strings.Repeat("# x\n", 300_000)},
	}
}

// TestMutants puts each mutant where a good set is live, while callers ask over the real server: none goes live, all are counted, and
// every answer is the good set's.
func TestMutants(t *testing.T) {
	t.Parallel()
	all := mutants(t)
	if len(all) < 200 {
		t.Fatalf("only %d mutants", len(all))
	}
	random := dice(t)
	random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	chosen := all[:210] // of any shape; TestNoMutantLoads takes all
	if testing.Short() {
		chosen = all[:20]
	}
	var wg sync.WaitGroup
	const folders = 6
	for i := range folders {
		c := changer{t: t, folder: t.TempDir(), link: "current"} // the followed folder is a link itself
		c.put("good", guarded(t))
		w := newWard(t, filepath.Join(c.folder, c.link))
		if w.live.LastError() != nil {
			t.Fatal("the good set is refused: ", w.live.LastError())
		}
		good := w.live.Revision()
		wg.Go(func() {
			ctx, cancel := context.WithCancel(context.Background())
			var callers sync.WaitGroup
			defer func() { cancel(); callers.Wait() }()
			callers.Go(func() { w.call(t, ctx) })
			refused := 0
			for n := i; n < len(chosen) && !t.Failed(); n += folders {
				m := chosen[n]
				refused++
				c.put(fmt.Sprint(n), m.files)
				wait(t, m.name+" is refused", func() bool {
					return t.Failed() || counted(t, w.registry, "writ_policy_reload_failures_total") >= float64(refused) && w.live.LastError() != nil
				})
				if w.live.Revision() != good {
					t.Errorf("%s is live", m.name)
				}
			}
			before := w.answers.Load()
			wait(t, "callers are answered", func() bool { return t.Failed() || w.answers.Load() > before })
			if seen := w.seen(); len(seen) != 1 || seen[good] == "" || !slices.Equal(revisions(t, w.registry), []string{good}) {
				t.Errorf("%v decided, %s is the good one", seen, good)
			}
			c.put("again", version(1))
			wait(t, "a good set is live after all", func() bool { return t.Failed() || w.live.LastError() == nil && w.live.Revision() != good })
		})
	}
	wg.Wait()
	t.Logf("%d mutants put in place of a good set", len(chosen))
}

func TestNoMutantLoads(t *testing.T) {
	t.Parallel()
	if _, err := policy.LoadFS(t.Context(), mapFS(guarded(t)), policy.Config{}); err != nil {
		t.Fatal(err)
	}
	all := mutants(t)
	for _, m := range all {
		if _, err := policy.LoadFS(t.Context(), mapFS(m.files), policy.Config{}); err == nil {
			t.Errorf("%s loads", m.name)
		}
	}
	t.Logf("%d mutants", len(all))
}
