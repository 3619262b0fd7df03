// Package testdomain is a whole trust domain inside a test: it builds and runs the real binary and speaks to it as its users do,
// over sockets, files and the command line. Start with Built, then New for `writ dev`, or NewServer and NewAgent for the daemons
// apart, each on a Host of its own where it shall be.
package testdomain

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Root is the top of the tree, found from the working directory of a test.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	t.Fatal("no go.mod above the test")
	return ""
}

// Binary is a built writ.
type Binary string

// ShortFolder makes a folder of the test's that everybody may enter; t.TempDir is too long for the path of a socket.
func ShortFolder(t testing.TB) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "writ-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	return folder
}

// Run runs one command to its end and gives what it printed. A code other than want fails the test.
func (b Binary) Run(t testing.TB, want int, env []string, input string, args ...string) (stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(string(b), args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = strings.NewReader(input)
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("writ %s: %v", strings.Join(args, " "), err)
	}
	if code := cmd.ProcessState.ExitCode(); code != want {
		t.Fatalf("writ %s ended with %d, want %d\n%s%s", strings.Join(args, " "), code, want, out.String(), talk.String())
	}
	return out.String(), talk.String()
}

// Process is a child of the test. It ends with the test at the latest.
type Process struct {
	Cmd  *exec.Cmd
	Log  string        // the file with its output
	Done chan struct{} // closed when it ended and was waited for
	name string
}

// Start runs a program in the background, its output in a file that a failing test prints the end of.
func Start(t testing.TB, name string, cmd *exec.Cmd) *Process {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	p := &Process{Cmd: cmd, Log: log.Name(), Done: make(chan struct{}), name: name}
	go func() { cmd.Wait(); close(p.Done) }()
	t.Cleanup(func() {
		p.Stop(t)
		if t.Failed() {
			t.Logf("--- output of %s\n%s", name, p.Tail())
		}
	})
	return p
}

// Tail is the end of the process's output.
func (p *Process) Tail() string {
	data, _ := os.ReadFile(p.Log)
	return string(data[max(0, len(data)-8000):])
}

// Stop sends SIGTERM and waits; what has not ended after 10 s is killed and fails the test. It gives the exit code.
func (p *Process) Stop(t testing.TB) int {
	t.Helper()
	p.Cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.Done:
	case <-time.After(10 * time.Second):
		p.Kill()
		t.Errorf("%s did not end within 10 s of SIGTERM", p.name)
	}
	return p.Cmd.ProcessState.ExitCode()
}

// Kill ends the process as a crash would.
func (p *Process) Kill() {
	p.Cmd.Process.Kill()
	<-p.Done
}

// Ready is the ready file of writ dev.
type Ready struct {
	TrustDomain string   `json:"trust_domain"`
	PID         int      `json:"pid"`
	WorkloadAPI string   `json:"workload_api"`
	ExtAuthz    []string `json:"ext_authz"`
	Admin       string   `json:"admin"`
	Server      string   `json:"server"`
	Metrics     string   `json:"metrics"`
	Health      string   `json:"health"`
	Decisions   string   `json:"decisions"`
}

// Domain is a running `writ dev`.
type Domain struct {
	Binary
	Ready
	*Process
	Folder string // the data directory
	args   []string
	file   string
}

// New starts `writ dev` with these further arguments and waits until it is ready.
func New(t testing.TB, b Binary, args ...string) *Domain {
	t.Helper()
	base := ShortFolder(t)
	d := &Domain{Binary: b, Folder: filepath.Join(base, "d"), file: filepath.Join(base, "ready.json"), args: args}
	d.Restart(t)
	return d
}

// Restart starts writ dev (again) on the same data directory.
func (d *Domain) Restart(t testing.TB) {
	t.Helper()
	args := append([]string{"dev", "--data-dir", d.Folder, "--ready-file", d.file}, d.args...)
	d.Process = Start(t, "writ", exec.Command(string(d.Binary), args...))
	Until(t, 20*time.Second, "writ dev is ready", func() error {
		select {
		case <-d.Done:
			return fmt.Errorf("it ended:\n%s", d.Tail())
		default:
		}
		data, err := os.ReadFile(d.file)
		if err != nil {
			return err
		}
		return json.Unmarshal(data, &d.Ready)
	})
}

// Apply applies entries as an operator does and gives what the command printed.
func (d *Domain) Apply(t testing.TB, entries string) string {
	t.Helper()
	out, _ := d.Writ(t, 0, entries, "entry", "apply", "-f", "-")
	return out
}

// Writ runs a command against this domain.
func (d *Domain) Writ(t testing.TB, want int, input string, args ...string) (stdout, stderr string) {
	t.Helper()
	return d.Run(t, want, []string{"WRIT_ADMIN=" + d.Admin, "SPIFFE_ENDPOINT_SOCKET=" + d.WorkloadAPI}, input, args...)
}

// Until tries every 10 ms until there is no error; when the time is up the last error fails the test.
func Until(t testing.TB, within time.Duration, what string, try func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("not within %s: %s: %v", within, what, err)
		}
	}
}
