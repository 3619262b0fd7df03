package policy_test

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/writ-dev/writ/authz"
	"github.com/writ-dev/writ/authz/policy"
)

func get(path, body string) map[string]any {
	http := map[string]any{"method": "GET", "path": path}
	if body != "" {
		http["body"], http["headers"] = body, map[string]any{"content-type": "application/json"}
	}
	return map[string]any{"attributes": map[string]any{"request": map[string]any{"http": http}}}
}

func TestLimitsAreChecked(t *testing.T) {
	for text, want := range map[string]string{
		"{time: 2s}":                     "limits.time: 2s is not between 1ms and 1s",
		"{time: -1s}":                    "limits.time: -1s is not between 1ms and 1s",
		"{time: 1us}":                    "limits.time: 1µs is not between 1ms and 1s",
		"{time: soon}":                   "policy.yaml:1:",
		"{memory_megabytes: -1}":         "limits.memory_megabytes: -1 is not between",
		"{request_kilobytes: 5000}":      "limits.request_kilobytes: 5000 is not between 1 and 4096",
		"{body_kilobytes: 5000}":         "limits.body_kilobytes: 5000 is not between 1 and 4096",
		"{memory: 1}":                    "unknown key",
		"{time: 2s, body_kilobytes: -1}": "limits.body_kilobytes: -1",
	} {
		files := map[string]string{"a.rego": allowAll, "policy.yaml": "limits: " + text}
		if _, err := policy.LoadFS(t.Context(), mapFS(files), policy.Config{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("limits: %s: %v, want %q", text, err, want)
		}
	}
}

func TestLimitsOfOneDecision(t *testing.T) {
	set := load(t, map[string]string{"policy.yaml": "limits: {time: 40ms, request_kilobytes: 64, body_kilobytes: 16}", "a.rego": `package envoy.authz
allow if {
	input.parsed_path[0] == "long"
	count([x | some x in numbers.range(1, 1000000000)]) > 0
}
allow if input.parsed_body.a
`})
	packed := func(size int) string { return `{"a": "` + strings.Repeat("x", size) + `"}` }
	rows := []struct {
		name    string
		request map[string]any
		outcome authz.Outcome
		cause   authz.Cause
	}{
		{"a decision that takes its time", get("/long", ""), authz.Failed, authz.TimedOut},
		{"a request over the limit", get("/"+strings.Repeat("x", 64<<10), ""), authz.Refused, authz.TooLarge},
		{"a request under it", get("/"+strings.Repeat("x", 63<<10), ""), authz.Denied, authz.Undefined},
		{"a body over its limit", get("/", packed(16<<10)), authz.Refused, authz.TooLarge},
		{"a body under it", get("/", packed(15<<10)), authz.Allowed, authz.ByPolicy},
	}
	for _, row := range rows {
		start := time.Now()
		d := set.Decide(t.Context(), request(t, row.request))
		if d.Outcome != row.outcome || d.Cause != row.cause {
			t.Errorf("%s: %s by %s (%s)", row.name, d.Outcome, d.Cause, d.Reason)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("%s: it took %s", row.name, took)
		}
	}
}

// Each of these would fill the machine's memory within a second or two. The limit ends it, and who asks something simple meanwhile
// is answered.
func TestExplodingPolicies(t *testing.T) {
	for name, rule := range map[string]string{
		"a list of pairs":     `count([[x, y] | some x in numbers.range(1, 100000); some y in numbers.range(1, 100000)]) > 0`,
		"lists that double":   doubling(),
		"a range":             `count(numbers.range(1, 1000000000)) > 0`,
		"an object of ranges": `count({x: numbers.range(1, 100000) | some x in numbers.range(1, 100000)}) > 0`,
		"a string of formats": `count([s | some x in numbers.range(1, 1000000); s := sprintf("%0100000d", [x])]) > 0`,
	} {
		t.Run(name, func(t *testing.T) {
			set := load(t, map[string]string{"policy.yaml": "limits: {memory_megabytes: 32}", "a.rego": `package envoy.authz
allow if {
	input.parsed_path[0] == "explode"
	` + rule + `
}
allow if input.parsed_path[0] == "fine"
`})
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			bad, good := request(t, get("/explode", "")), request(t, get("/fine", ""))
			var wg sync.WaitGroup
			wg.Go(func() {
				if d := set.Decide(t.Context(), bytes.Clone(bad)); d.Outcome != authz.Failed || d.Cause != authz.OverMemory {
					t.Errorf("%s by %s: %s", d.Outcome, d.Cause, d.Reason)
				}
			})
			for range 100 {
				if d := set.Decide(t.Context(), good); d.Outcome != authz.Allowed {
					t.Errorf("a simple request: %s by %s", d.Outcome, d.Cause)
				}
			}
			wg.Wait()
			runtime.ReadMemStats(&after)
			if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 256<<20 {
				t.Errorf("the heap took %d MiB from the system", grown>>20)
			}
		})
	}
}

func doubling() string {
	var b strings.Builder
	b.WriteString("l0 := [input.parsed_path[0], 1]\n")
	for i := range 40 {
		fmt.Fprintf(&b, "\tl%d := array.concat(l%d, l%d)\n", i+1, i, i)
	}
	b.WriteString("\tcount(l40) > 0")
	return b.String()
}
