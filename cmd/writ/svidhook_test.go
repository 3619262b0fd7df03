package main

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// linesOf gives a file's lines, none where it is not there.
func linesOf(path string) []string {
	text, _ := os.ReadFile(path)
	return strings.Fields(string(text))
}

// A command that hangs must not let the SVID on disk end.
func TestFilesStayFreshWhileTheCommandRuns(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	k := keep(t, "--exec", `echo begun >>`+log+`; while ! test -e `+log+`.go; do sleep 0.02; done; echo "$WRIT_CHANGED" | tr ' ' + >>`+log)
	k.holds(t, k.issue(t))
	await(t, "the command", func() bool { return len(linesOf(log)) == 1 })
	for range 3 {
		k.holds(t, k.issue(t))
	}
	if got := linesOf(log); len(got) != 1 {
		t.Errorf("while it runs: %q", got)
	}
	if got := k.read(".changed"); got != "svid.pem key.pem bundle.pem\n" {
		t.Errorf("while it runs there is to tell: %q", got)
	}
	if err := os.WriteFile(log+".go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	await(t, "all to be told", func() bool { _, err := os.Stat(filepath.Join(k.folder, ".changed")); return os.IsNotExist(err) })
	k.end()
	const all = "svid.pem+key.pem+bundle.pem"
	if got := strings.Join(linesOf(log), " "); got != "begun "+all+" begun "+all {
		t.Errorf("three changes during a run: %s", got)
	}
}

// A failed run tells again, with what came meanwhile, and says when.
func TestFailedCommandIsRunAgainAtOnceWhereMoreChanged(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	k := keep(t, "--exec", `echo begun >>`+log+`; while ! test -e `+log+`.go; do sleep 0.02; done; test $(wc -l <`+log+`) -gt 1`)
	k.holds(t, k.issue(t))
	await(t, "the command", func() bool { return len(linesOf(log)) == 1 })
	k.holds(t, k.issue(t))
	if err := os.WriteFile(log+".go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	await(t, "all to be told", func() bool { _, err := os.Stat(filepath.Join(k.folder, ".changed")); return os.IsNotExist(err) })
	if !k.talk.has("--exec failed, and is run again now, as more changed: exit status 1") || len(linesOf(log)) != 2 {
		t.Errorf("it ran %d times", len(linesOf(log)))
	}
}

// children are shell commands that start a process and write its id to $PIDS.
var children = map[string]string{
	"a child":                   `sleep 1000 & echo $! >>$PIDS; wait`,
	"a child that will not end": `(trap '' TERM; exec sleep 1000) & echo $! >>$PIDS; wait`,
	"a shell that will not end": `trap '' TERM; echo $$ >>$PIDS; while :; do sleep 1; done`,
	"a grandchild":              `sh -c 'sleep 1000 & echo $! >>$PIDS; wait'; true`,
}

// gone waits until the processes in a file have ended, be they waited for or not.
func gone(t *testing.T, pids string) {
	t.Helper()
	await(t, "the end of all that the command started", func() bool {
		for _, line := range linesOf(pids) {
			pid, err := strconv.Atoi(line)
			stat, _ := os.ReadFile("/proc/" + line + "/stat")
			if zombie := strings.Contains(string(stat), ") Z "); err != nil || !zombie && syscall.Kill(pid, 0) == nil {
				return false
			}
		}
		return true
	})
}

// killed ends at the test's end what a command left behind.
func killed(t *testing.T, pids string) {
	t.Cleanup(func() {
		for _, line := range linesOf(pids) {
			if pid, _ := strconv.Atoi(line); pid > 1 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
}

func TestCommandEndsWithAllItStarted(t *testing.T) {
	for name, command := range children {
		t.Run("at the limit: "+name, func(t *testing.T) {
			pids := filepath.Join(t.TempDir(), "pids")
			t.Setenv("PIDS", pids)
			killed(t, pids)
			h := hook{command: command, limit: 200 * time.Millisecond, talk: &said{}}
			ctx, cancel := context.WithTimeout(t.Context(), h.limit)
			defer cancel()
			err := h.run(ctx, nil)
			if err == nil || err.Error() != "it did not end within 200ms" || len(linesOf(pids)) == 0 {
				t.Errorf("it gives %v", err)
			}
			gone(t, pids)
		})
	}
	if hookLeave+hookGrace > lastResort-time.Second {
		t.Errorf("the process ends before a run that will not: after %s", lastResort)
	}
	for name, command := range children {
		t.Run("when the watch ends: "+name, func(t *testing.T) {
			pids := filepath.Join(t.TempDir(), "pids")
			t.Setenv("PIDS", pids)
			killed(t, pids)
			k := keep(t, "--exec", command)
			k.holds(t, k.issue(t))
			await(t, "the command", func() bool { return len(linesOf(pids)) == 1 })
			if code := k.end(); code != exitOK || !k.talk.has("run again by the next watch") || k.talk.has("context canceled") {
				t.Errorf("it ends with %d", code)
			}
			gone(t, pids)
			if k.read(".changed") == "" {
				t.Error("the next watch does not know what was not told")
			}
		})
	}
}

// What a command starts to stay, as `nginx` does itself, stays.
func TestCommandMayLeaveAServerBehind(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	t.Setenv("PIDS", pids)
	killed(t, pids)
	h := hook{command: `sleep 1000 >/dev/null 2>&1 & echo $! >>$PIDS`, limit: time.Minute, talk: &said{}}
	if err := h.run(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if pid, err := strconv.Atoi(linesOf(pids)[0]); err != nil || syscall.Kill(pid, 0) != nil {
		t.Error("it is gone")
	}
}

// A run that is on when the watch is told to end may end, and has then told what it was to tell.
func TestCommandMayEndAfterTheWatch(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	k := keep(t, "--exec", `echo begun >>`+log+`; while ! test -e `+log+`.go; do sleep 0.02; done; echo ended >>`+log)
	k.holds(t, k.issue(t))
	await(t, "the command", func() bool { return len(linesOf(log)) == 1 })
	time.AfterFunc(300*time.Millisecond, func() { _ = os.WriteFile(log+".go", nil, 0o600) })
	if code := k.end(); code != exitOK || len(linesOf(log)) != 2 || k.read(".changed") != "" || k.talk.has("failed") {
		t.Errorf("it ends with %d; the log is %q", code, linesOf(log))
	}
}
