package testdomain_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/writ-dev/writ/internal/testdomain"
)

// demo is a running `make demo`, in a session of its own as a terminal's would be.
type demo struct {
	*testdomain.Process
	folder string // where it puts its temporary files
}

func startDemo(t *testing.T, arguments ...string) *demo {
	t.Helper()
	d := &demo{folder: testdomain.ShortFolder(t)}
	cmd := exec.Command("make", append([]string{"--no-print-directory", "demo"}, arguments...)...)
	cmd.Dir = testdomain.Root(t)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "MAKE") || strings.HasPrefix(v, "MFLAGS=") }),
		"TMPDIR="+d.folder)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	d.Process = testdomain.Start(t, "make-demo", cmd)
	t.Cleanup(func() { // whatever a failing demo left
		for _, p := range d.processes() {
			syscall.Kill(p.pid, syscall.SIGKILL)
		}
	})
	return d
}

type process struct {
	pid  int
	name string
}

// processes are those of the demo's session that live.
func (d *demo) processes() []process {
	var out []process
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // it ended
		}
		// proc_pid_stat(5): pid (comm) state ppid pgrp session ...
		head, rest, _ := strings.Cut(string(data), " (")
		end := strings.LastIndex(rest, ") ")
		fields := strings.Fields(rest[end+2:])
		pid, _ := strconv.Atoi(head)
		if fields[3] == strconv.Itoa(d.Cmd.Process.Pid) && fields[0] != "Z" {
			out = append(out, process{pid, rest[:end]})
		}
	}
	return out
}

// leftNothing waits for the end, which must come in time, and looks for what is left.
func (d *demo) leftNothing(t *testing.T, within time.Duration) {
	t.Helper()
	select {
	case <-d.Done:
	case <-time.After(within):
		t.Fatalf("it goes on after %s with %v", within, d.processes())
	}
	if left := d.processes(); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	files, err := os.ReadDir(d.folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		t.Errorf("%s is left", f.Name())
	}
}

var (
	shownCalls = regexp.MustCompile(`(?s)web -> api  GET /orders/7\n  status    200 OK\n  decision  [A-Z2-7]{26}\n.*why       allowed by web reads orders\n` +
		`.*web -> api  DELETE /orders/7\n  status    403 Forbidden\n  decision  [A-Z2-7]{26}\n.*why       no rule allows`)
	goesOn   = regexp.MustCompile("Ctrl-C ends it")
	shownURL = regexp.MustCompile(`curl -i (http://127\.0\.0\.1:[0-9]+/orders)`)
)

// untilPrinted waits for something in the demo's output.
func (d *demo) untilPrinted(t *testing.T, what *regexp.Regexp) []string {
	t.Helper()
	var found []string
	testdomain.Until(t, 240*time.Second, what.String(), func() error {
		if found = what.FindStringSubmatch(d.Tail()); found == nil {
			return fmt.Errorf("it printed\n%s", d.Tail())
		}
		return nil
	})
	return found
}

func TestDemoShowsBothCallsAndEnds(t *testing.T) {
	t.Parallel()
	start := time.Now()
	d := startDemo(t, "ONCE=1")
	d.leftNothing(t, 240*time.Second)
	t.Logf("make demo ONCE=1: %s", time.Since(start).Round(time.Millisecond))
	if code := d.Cmd.ProcessState.ExitCode(); code != 0 || !shownCalls.MatchString(d.Tail()) {
		t.Fatalf("it ended with %d and printed\n%s", code, d.Tail())
	}

	for _, row := range []struct {
		name string
		send func(make int) error
	}{
		{"Ctrl-C, which every process of a terminal gets", func(make int) error { return syscall.Kill(-make, syscall.SIGINT) }},
		{"SIGINT to make alone", func(make int) error { return syscall.Kill(make, syscall.SIGINT) }},
		{"SIGTERM to make alone", func(make int) error { return syscall.Kill(make, syscall.SIGTERM) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			d := startDemo(t)
			d.untilPrinted(t, goesOn)
			d.furtherCalls(t)
			if err := row.send(d.Cmd.Process.Pid); err != nil {
				t.Fatal(err)
			}
			d.leftNothing(t, 10*time.Second)
		})
	}
	t.Run("SIGTERM while it starts", func(t *testing.T) {
		d := startDemo(t)
		testdomain.Until(t, 60*time.Second, "writ runs", func() error {
			if all := d.processes(); !slices.ContainsFunc(all, func(p process) bool { return p.name == "writ" }) {
				return fmt.Errorf("there are %v", all)
			}
			return nil
		})
		if err := syscall.Kill(d.Cmd.Process.Pid, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		d.leftNothing(t, 10*time.Second)
	})
}

// furtherCalls makes the calls that the demo says one can make.
func (d *demo) furtherCalls(t *testing.T) {
	t.Helper()
	url := d.untilPrinted(t, shownURL)[1]
	for method, want := range map[string]int{http.MethodGet: http.StatusOK, http.MethodPost: http.StatusForbidden} {
		request, err := http.NewRequest(method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("%s %s answers %d, want %d", method, url, response.StatusCode, want)
		}
	}
}
