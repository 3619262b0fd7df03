package policy_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/authz"
	"github.com/writ-dev/writ/authz/policy"
)

// TestLargeSetsAreRefused: whatever stands in a folder, the error names the file, its size and the bound, and memory stays bounded.
func TestLargeSetsAreRefused(t *testing.T) {
	rows := []struct {
		name  string
		file  string
		size  int64
		wants string
	}{
		{"500 MB of data", "x/data.json", 500_000_000, "x/data.json has 500000000 bytes, more than the 16777216 (16 MiB)"},
		{"500 MB of YAML data", "data.yaml", 500_000_000, "data.yaml has 500000000 bytes, more than the 4194304 (4 MiB)"},
		{"500 MB of Rego", "b.rego", 500_000_000, "b.rego has 500000000 bytes, more than the 1048576 (1 MiB)"},
		{"500 MB of tests", "b_test.rego", 500_000_000, "b_test.rego has 500000000 bytes"},
		{"500 MB of cases", "cases/a.yaml", 500_000_000, "cases/a.yaml has 500000000 bytes, more than the 1048576 (1 MiB)"},
		{"500 MB of descriptors", "api.pb", 500_000_000, "api.pb has 500000000 bytes, more than the 16777216 (16 MiB)"},
		{"500 MB of policy.yaml", "policy.yaml", 500_000_000, "policy.yaml has 500000000 bytes, more than the 1048576 (1 MiB)"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			folder := t.TempDir()
			write(t, folder, "a.rego", allowAll)
			write(t, folder, row.file, "")
			if err := os.Truncate(filepath.Join(folder, row.file), row.size); err != nil { // a hole: it takes no room on the disk
				t.Fatal(err)
			}
			before := allocated()
			_, err := policy.Load(t.Context(), folder, policy.Config{})
			if err == nil || !strings.Contains(err.Error(), row.wants) {
				t.Errorf("got %v, want %q", err, row.wants)
			}
			if grown := allocated() - before; grown > 16<<20 {
				t.Errorf("%d MiB were allocated to refuse it", grown>>20)
			}
		})
	}
}

// allocated is how many bytes the process ever allocated.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// TestManySmallThingsAreRefused: what is small apart and large together.
func TestManySmallThingsAreRefused(t *testing.T) {
	rows := map[string]struct {
		files map[string]string
		wants string
	}{
		"files of 33 MiB in all": {many(3, "%d/data.json", `{"a": "`+strings.Repeat("x", 11<<20)+`"}`), "bytes in all, more than 33554432 (32 MiB)"},
		"2,000,001 values":       {map[string]string{"data.json": `{"a": [` + strings.Repeat("1,", 2_000_000) + `1]}`}, "more than 2000000 values"},
		"values in two files": {map[string]string{"a/data.json": `{"a": [` + strings.Repeat("1,", 1_500_000) + `1]}`,
			"b/data.json": `{"a": [` + strings.Repeat("1,", 1_500_000) + `1]}`}, "b/data.json: the data files of the set have more than 2000000 values in all"},
		"aliases that multiply":          {map[string]string{"data.yaml": bomb()}, "excessive aliasing"},
		"YAML that is nested too deep":   {map[string]string{"data.yaml": "a: " + strings.Repeat("[", 500_000)}, "max depth"},
		"JSON that is nested too deep":   {map[string]string{"data.json": `{"a": ` + strings.Repeat("[", 500_000)}, "max depth"},
		"Rego that is nested too deep":   {map[string]string{"b.rego": "package b\na := " + strings.Repeat("[", 500_000)}, "recursion depth"},
		"cases that are nested too deep": {map[string]string{"cases/a.yaml": "description: a\nwant: true\ninput: {a: " + strings.Repeat("[", 500_000)}, "cases/a.yaml"},
		"aliases in cases":               {map[string]string{"cases/a.yaml": "description: a\nwant: true\ninput: {a: &a [1], b: *a}\n"}, "cases/a.yaml"},
		"two YAML documents":             {map[string]string{"data.yaml": "a: 1\n---\nb: 2\n"}, "data.yaml: more than one YAML document"},
		"a key twice":                    {map[string]string{"data.yaml": "a: 1\na: 2\n"}, "data.yaml: yaml:"},
		"a list":                         {map[string]string{"data.yaml": "- 1\n"}, "data.yaml: the document is no object"},
		"a number that JSON has not":     {map[string]string{"data.yaml": "a: .inf\n"}, "data.yaml: +Inf is no number in JSON"},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			row.files["a.rego"] = allowAll
			start := time.Now()
			if _, err := policy.LoadFS(t.Context(), mapFS(row.files), policy.Config{}); err == nil || !strings.Contains(err.Error(), row.wants) {
				t.Errorf("got %.300v, want %q", err, row.wants)
			}
			t.Log("refused after", time.Since(start))
		})
	}
}

func TestTooManyFilesAreRefused(t *testing.T) {
	folder := t.TempDir()
	for i := range 10_001 {
		if err := os.WriteFile(filepath.Join(folder, fmt.Sprintf("%d.rego", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err := policy.Load(t.Context(), folder, policy.Config{})
	if err == nil || !strings.Contains(err.Error(), "the folder has 10001 files of a policy set, more than 10000") {
		t.Error(err)
	}
}

func many(n int, name, text string) map[string]string {
	files := map[string]string{}
	for i := range n {
		files[fmt.Sprintf(name, i)] = text
	}
	return files
}

// bomb is a kilobyte of YAML that means some 43 million values.
func bomb() string {
	text := "a: &a [x, x, x, x, x, x, x, x, x]\n"
	for c := 'b'; c <= 'h'; c++ {
		text += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c, ", c-1), 9), ", "))
	}
	return text
}

// TestYAMLDataIsWhatOPAReads: texts, numbers and keys mean what they mean in OPA's own data.yaml.
func TestYAMLDataIsWhatOPAReads(t *testing.T) {
	set := load(t, map[string]string{"data.yaml": "at: 2026-11-24\nyes: yes\non: on\nn: 1\nf: 1.5\nbig: 9007199254740993\nkeys: {1: a, true: b}\nanchor: &x [1]\nalias: *x\nnothing:\ntext: |\n  a\n  ---\n",
		"policy.yaml": "decision: x/allow\n", "a.rego": `package x
allow if data.at == "2026-11-24"
checks := [data.at == "2026-11-24", data.yes == "yes", data.on == "on", data.n == 1, data.f == 1.5, format_int(data.big, 10) == "9007199254740993", data.keys["1"] == "a",
	data.keys["true"] == "b", data.alias == [1], data.nothing == null, data.text == "a\n---\n"]
`, "a_test.rego": "package x\ntest_all if every c in checks { c }\n"})
	if d := set.Decide(t.Context(), wire(t, message(t, fullRequest))); d.Outcome != authz.Allowed {
		t.Error(d)
	}
	load(t, map[string]string{"data.yaml": "# nothing\n", "a.rego": allowAll})
}

// TestTheLargestSetLoads: what stands at the bounds is taken.
func TestTheLargestSetLoads(t *testing.T) {
	text := `{"a": "` + strings.Repeat("x", 16<<20-9) + `"}`
	load(t, map[string]string{"a.rego": allowAll, "data.json": text})
	load(t, map[string]string{"a.rego": allowAll, "data.json": `{"a": [` + strings.Repeat("1,", 1_999_990) + `1]}`})
}

// TestBodiesOfManyValuesAreRefused: each value takes some hundred bytes, however short it is in the body.
func TestBodiesOfManyValuesAreRefused(t *testing.T) {
	set := load(t, map[string]string{"a.rego": "package envoy.authz\ndefault allow := true\nallow := false if input.parsed_body == \"none\"\n"})
	list := func(n int) string { return "[" + strings.Repeat("1,", n-1) + "1]" }
	part := func(body string) string {
		return "--b\r\nContent-Disposition: form-data; name=\"a\"\r\nContent-Type: application/json\r\n\r\n" + body + "\r\n"
	}
	rows := map[string]struct {
		contentType, body string
		want              authz.Cause
	}{
		"a list of 199,998":           {"application/json", list(199_998), authz.ByPolicy},
		"a list of 200,001":           {"application/json", list(200_001), authz.TooLarge},
		"lists in lists":              {"application/json", "[" + strings.Repeat("[[]],", 100_000) + "1]", authz.TooLarge},
		"commas in a text":            {"application/json", `"` + strings.Repeat(",", 1<<20) + `"`, authz.ByPolicy},
		"a form of 10,001 values":     {"application/x-www-form-urlencoded", strings.Repeat("a&", 10_000) + "a", authz.TooLarge},
		"a form of 10,000 values":     {"application/x-www-form-urlencoded", strings.Repeat("a&", 9_999) + "a", authz.ByPolicy},
		"two parts of 150,000 values": {"multipart/form-data; boundary=b", part(list(150_000)) + part(list(150_000)) + "--b--\r\n", authz.TooLarge},
		"two parts of 90,000 values":  {"multipart/form-data; boundary=b", part(list(90_000)) + part(list(90_000)) + "--b--\r\n", authz.ByPolicy},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			d := set.Decide(t.Context(), request(t, map[string]any{"attributes": map[string]any{"request": map[string]any{"http": map[string]any{"method": "POST", "path": "/",
				"headers": map[string]any{"content-type": row.contentType}, "body": row.body}}}}))
			if d.Cause != row.want || (d.Outcome == authz.Refused) != (row.want != authz.ByPolicy) {
				t.Errorf("%s by %s: %s", d.Outcome, d.Cause, d.Reason)
			}
		})
	}
	t.Run("a path over 256 KiB", func(t *testing.T) {
		if d := set.Decide(t.Context(), request(t, get("/"+strings.Repeat("a/", 128<<10), ""))); d.Outcome != authz.Refused || d.Cause != authz.TooLarge {
			t.Errorf("%s by %s: %s", d.Outcome, d.Cause, d.Reason)
		}
	})
}

// TestTestsMayNotTakeAllMemory: a set whose tests fill the heap does not go live, and soon is no more.
func TestTestsMayNotTakeAllMemory(t *testing.T) {
	files := map[string]string{"a.rego": allowAll, "policy.yaml": "limits: {memory_megabytes: 16}\n",
		"a_test.rego": "package a\ntest_a if count([s | some n in numbers.range(1, 1000000); s := sprintf(\"%0900000d\", [n])]) > 0\n"}
	start := time.Now()
	_, err := policy.LoadFS(t.Context(), mapFS(files), policy.Config{})
	if err == nil || !strings.Contains(err.Error(), "the tests: it takes more memory") {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
}

// TestBoundsAreConfigured: data beyond the standard loads where the configuration says so, and the rest of the bounds stay.
func TestBoundsAreConfigured(t *testing.T) {
	large := map[string]string{"a.rego": allowAll, "data.json": `{"a": "` + strings.Repeat("x", 17<<20) + `"}`}
	if _, err := policy.LoadFS(t.Context(), mapFS(large), policy.Config{}); err == nil || !strings.Contains(err.Error(), "authz.policy_megabytes raises it") {
		t.Errorf("17 MiB of data by the standard: %v", err)
	}
	if _, err := policy.LoadFS(t.Context(), mapFS(large), policy.Config{Megabytes: 64}); err != nil {
		t.Errorf("17 MiB of data in a set of up to 64: %v", err)
	}
	if _, err := policy.LoadFS(t.Context(), mapFS(map[string]string{"a.rego": allowAll, "data.json": `{"a": "` + strings.Repeat("x", 1<<20) + `"}`}), policy.Config{Megabytes: 1}); err == nil {
		t.Error("a MiB of data is taken in a set of up to one")
	}
}
