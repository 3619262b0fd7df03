package policy_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-dev/writ/authz"
	"github.com/writ-dev/writ/authz/policy"
)

// follow starts a Live over a folder and ends it with the test.
func follow(t testing.TB, folder string) (*policy.Live, *prometheus.Registry) {
	t.Helper()
	registry := prometheus.NewRegistry()
	live, err := policy.NewLive(t.Context(), policy.LiveConfig{Folder: folder, Registerer: registry})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := live.Watch(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return live, registry
}

func write(t testing.TB, folder, name, text string) {
	t.Helper()
	path := filepath.Join(folder, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// wait waits for a condition.
func wait(t testing.TB, what string, holds func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !holds() {
		if time.Since(start) > 20*time.Second {
			t.Fatal("it never came that", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return time.Since(start)
}

func outcome(t testing.TB, live *policy.Live) authz.Outcome {
	return live.Decide(context.Background(), "", wire(t, message(t, fullRequest))).Outcome
}

func TestReload(t *testing.T) {
	folder := t.TempDir()
	live, registry := follow(t, folder)
	if d := live.Decide(t.Context(), "", wire(t, message(t, fullRequest))); d.Outcome != authz.Failed || !strings.Contains(d.Reason, "P4002") || d.Request.Method != "POST" {
		t.Error("with an empty folder:", d)
	}
	if live.LastError() == nil || live.Revision() != "" {
		t.Error("an empty folder is no error")
	}
	steps := []struct {
		name  string
		act   func()
		want  authz.Outcome
		error string // "": the folder as it stands is live
	}{
		{"a set appears", func() { write(t, folder, "a.rego", allowAll) }, authz.Allowed, ""},
		{"it changes", func() { write(t, folder, "a.rego", "package envoy.authz\nallow := false\n") }, authz.Denied, ""},
		{"it is half written", func() { write(t, folder, "a.rego", "package envoy.authz\nallow := tr") }, authz.Denied, "a.rego"},
		{"the rest is written", func() { write(t, folder, "a.rego", allowAll) }, authz.Allowed, ""},
		{"a test is added that fails", func() { write(t, folder, "x/a_test.rego", "package a\ntest_a if false\n") }, authz.Allowed, "test_a failed"},
		{"the test is taken away", func() { os.RemoveAll(filepath.Join(folder, "x")) }, authz.Allowed, ""},
		{"its data is broken", func() { write(t, folder, "data.json", "{") }, authz.Allowed, "data.json"},
		{"its data is mended", func() { write(t, folder, "data.json", "{}") }, authz.Allowed, ""},
		{"policy.yaml has an unknown key", func() { write(t, folder, "policy.yaml", "decison: a\n") }, authz.Allowed, "policy.yaml"},
		{"the folder is emptied", func() {
			for _, name := range []string{"a.rego", "data.json", "policy.yaml"} {
				os.Remove(filepath.Join(folder, name))
			}
		}, authz.Allowed, "no .rego files"},
		{"the folder is gone", func() { os.RemoveAll(folder) }, authz.Allowed, "no such file"},
		{"it is back, the same file size as before", func() { write(t, folder, "a.rego", "package envoy.authz\nallow:=false\n") }, authz.Denied, ""},
	}
	for _, step := range steps {
		step.act()
		wait(t, step.name, func() bool {
			err := live.LastError()
			return outcome(t, live) == step.want && (err == nil) == (step.error == "") && (err == nil || strings.Contains(err.Error(), step.error))
		})
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		m := f.GetMetric()[0]
		switch f.GetName() {
		case "writ_policy_reload_failures_total":
			if m.GetCounter().GetValue() < 7 {
				t.Error("too few failures are counted:", f)
			}
		case "writ_policy_revision_info":
			if len(f.GetMetric()) != 1 || m.GetLabel()[0].GetValue() != live.Revision() {
				t.Error("the live revision is not what is shown:", f)
			}
		}
	}
	if len(families) != 2 {
		t.Error("metrics are missing")
	}
}

// TestSymbolicLinkSwap changes a set as Kubernetes does with a mounted ConfigMap.
func TestSymbolicLinkSwap(t *testing.T) {
	folder := t.TempDir()
	swap := func(version, text string) {
		write(t, folder, version+"/policy.rego", text)
		if err := os.Symlink(version, filepath.Join(folder, "..new")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(folder, "..new"), filepath.Join(folder, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	swap("..1", allowAll)
	if err := os.Symlink("..data/policy.rego", filepath.Join(folder, "policy.rego")); err != nil {
		t.Fatal(err)
	}
	live, _ := follow(t, folder)
	if outcome(t, live) != authz.Allowed {
		t.Fatal(live.LastError())
	}
	swap("..2", "package envoy.authz\nallow := false\n")
	wait(t, "the new version denies", func() bool { return outcome(t, live) == authz.Denied })
}

// TestACircleOfLinks must end.
func TestACircleOfLinks(t *testing.T) {
	folder := t.TempDir()
	write(t, folder, "a.rego", allowAll)
	if err := os.Symlink(".", filepath.Join(folder, "again")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(folder, "dangling")); err != nil {
		t.Fatal(err)
	}
	if _, err := policy.Load(t.Context(), folder, policy.Config{}); err == nil || !strings.Contains(err.Error(), "nested too deep") {
		t.Error(err)
	}
}

// TestLinksThatMultiply: twenty folders with two links each to the next are a million paths.
func TestLinksThatMultiply(t *testing.T) {
	folder := t.TempDir()
	write(t, folder, "a.rego", allowAll)
	for i := range 20 {
		below := filepath.Join(folder, fmt.Sprintf("d%d", i))
		if err := os.Mkdir(below, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"a", "b"} {
			if err := os.Symlink(fmt.Sprintf("../d%d", i+1), filepath.Join(below, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(t, folder, "d20/b.rego", "package b")
	if _, err := policy.Load(t.Context(), folder, policy.Config{}); err == nil || !strings.Contains(err.Error(), "more than 50000 entries") {
		t.Error(err)
	}
}

// TestAFolderThatIsNotThere is named: an agent may have several.
func TestAFolderThatIsNotThere(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "orders")
	if _, err := policy.Load(t.Context(), folder, policy.Config{}); err == nil || !strings.Contains(err.Error(), folder) {
		t.Error(err)
	}
	live, err := policy.NewLive(t.Context(), policy.LiveConfig{Folder: folder})
	if err != nil {
		t.Fatal(err)
	}
	if err := live.LastError(); err == nil || !strings.Contains(err.Error(), folder) {
		t.Error(err)
	}
}

// TestSwapsUnderLoad: an answer is the old set's or the new one's, never a mix and never a failure.
func TestSwapsUnderLoad(t *testing.T) {
	folder := t.TempDir()
	version := func(n int) {
		write(t, folder, ".next/a.rego", fmt.Sprintf("package envoy.authz\nallow := {\"allowed\": true, \"headers\": {\"x-rule\": \"%d\"}}\n", n))
		write(t, folder, ".next/data.json", fmt.Sprintf(`{"version": %d}`, n))
		old, next := filepath.Join(folder, "set"), filepath.Join(folder, ".next")
		if _, err := os.Stat(old); err == nil {
			if err := os.Rename(old, filepath.Join(folder, fmt.Sprintf(".old%d", n))); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Rename(next, old); err != nil {
			t.Fatal(err)
		}
	}
	// data stands below set/, as in an OPA bundle; rules read it there.
	write(t, folder, "policy.yaml", "decision: envoy/authz/answer\n")
	write(t, folder, "answer.rego", "package envoy.authz\nanswer := object.union(allow, {\"headers\": {\"x-rule\": allow.headers[\"x-rule\"], \"x-data\": sprintf(\"%d\", [data.set.version])}})\n")
	version(0)
	live, _ := follow(t, folder)
	request := wire(t, message(t, fullRequest))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	seen := sync.Map{}
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				d := live.Decide(context.Background(), "default", request)
				if d.Outcome != authz.Allowed || len(d.Headers) != 2 || d.Headers[0].Value != d.Headers[1].Value {
					t.Error("a mixed or failed answer:", d)
					return
				}
				seen.Store(d.Headers[0].Value, true)
			}
		})
	}
	for n := 1; n <= 10; n++ {
		version(n)
		wait(t, "the version is live", func() bool { _, ok := seen.Load(fmt.Sprint(n)); return ok || t.Failed() })
	}
	cancel()
	wg.Wait()
}

func TestAnotherSetsNameIsNoPolicy(t *testing.T) {
	folder := t.TempDir()
	write(t, folder, "a.rego", allowAll)
	live, _ := follow(t, folder)
	if d := live.Decide(t.Context(), "payments", wire(t, message(t, fullRequest))); d.Outcome != authz.Failed {
		t.Error(d)
	}
	if d := live.Decide(t.Context(), "payments", []byte{0xff}); d.Outcome != authz.Malformed {
		t.Error(d)
	}
}
