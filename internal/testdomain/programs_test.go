package testdomain_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/writ-dev/writ/internal/testdomain"
)

// event is a line that a program of tools/clients prints; its README says what they mean.
type event struct {
	Event, ID, Serial, Error, Said, Token, Code string
	DNS, IDs                                    []string
	Roots, Port                                 int

	at time.Time // when it was read
}

// program is a running program of tools/clients.
type program struct {
	name   string
	in     io.Writer
	events chan event // what commands come to

	mu     sync.Mutex
	news   []event // what came by itself: svid, lost, ended
	broken error   // the program ended, or said error
}

// python is the program on py-spiffe.
func python(t *testing.T, a *testdomain.Agent) *program {
	t.Helper()
	root := testdomain.Root(t)
	return startProgram(t, a, "python", exec.Command(filepath.Join(root, ".cache/python/bin/python"), filepath.Join(root, "tools/clients/python/workload.py")))
}

// pythonPath is what the agent sees of a process of the virtual environment.
func pythonPath(t *testing.T) string {
	t.Helper()
	return realPath(t, filepath.Join(testdomain.Root(t), ".cache/python/bin/python"))
}

// realPath is what the agent sees of a process of that executable.
func realPath(t *testing.T, path string) string {
	t.Helper()
	path, err := exec.LookPath(path)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		t.Fatalf("%v: tools/needs and tools/clients/get install it", err)
	}
	return path
}

// startProgram starts it as a workload of that agent.
func startProgram(t *testing.T, a *testdomain.Agent, name string, cmd *exec.Cmd) *program {
	t.Helper()
	cmd.Env = append(cmd.Environ(), "SPIFFE_ENDPOINT_SOCKET="+a.Socket())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaints bytes.Buffer // what a library logs
	cmd.Stderr = &complaints
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v: tools/needs and tools/clients/get install it", name, err)
	}
	p := &program{name: name, in: in, events: make(chan event, 100)}
	go p.read(out)
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		for range p.events { // its end; Wait closes the pipe
		}
		cmd.Wait()
		if t.Failed() {
			text := complaints.Bytes()
			t.Logf("--- news and standard error of %s\n%+v\n%s", name, p.news, text[max(0, len(text)-2000):])
		}
	})
	return p
}

func (p *program) read(out io.Reader) {
	defer close(p.events)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		e := event{at: time.Now()}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			e.Event, e.Error = "error", lines.Text()
		}
		switch e.Event {
		case "error":
			p.mu.Lock()
			p.broken = errors.New(e.Error)
			p.mu.Unlock()
			p.events <- e
		case "svid", "lost", "ended":
			p.mu.Lock()
			p.news = append(p.news, e)
			p.mu.Unlock()
		default:
			p.events <- e
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.broken = errors.Join(p.broken, errors.New("the program ended"))
}

// since gives what came by itself after that time.
func (p *program) since(t *testing.T, start time.Time) []event {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken != nil {
		t.Fatalf("%s: %v", p.name, p.broken)
	}
	for i, e := range p.news {
		if e.at.After(start) {
			return append([]event(nil), p.news[i:]...)
		}
	}
	return nil
}

// await waits for the newest news of that kind to be right.
func (p *program) await(t *testing.T, kind string, right func(event) bool) (newest event) {
	t.Helper()
	testdomain.Until(t, 60*time.Second, p.name+" tells "+kind, func() error {
		newest = event{}
		for _, e := range p.since(t, time.Time{}) {
			if e.Event == kind {
				newest = e
			}
		}
		if newest.Event == "" || !right(newest) {
			return fmt.Errorf("it told %+v", newest)
		}
		return nil
	})
	return newest
}

// svid waits for the newest SVID of the program to be right.
func (p *program) svid(t *testing.T, right func(event) bool) event {
	t.Helper()
	return p.await(t, "svid", right)
}

// next skips to the next event of one of these kinds, or of any where none is named.
func (p *program) next(t *testing.T, kinds ...string) event {
	t.Helper()
	late := time.After(60 * time.Second)
	for {
		select {
		case e, more := <-p.events:
			if !more || e.Event == "error" {
				t.Fatalf("%s: %s (ended: %t)", p.name, e.Error, !more)
			}
			for _, kind := range kinds {
				if e.Event == kind {
					return e
				}
			}
			t.Fatalf("%s: %+v instead of %v", p.name, e, kinds)
		case <-late:
			t.Fatalf("no %v from %s", kinds, p.name)
		}
	}
}

// do gives a command and waits for what it comes to.
func (p *program) do(t *testing.T, command string, kinds ...string) event {
	t.Helper()
	p.start(t, command)
	return p.next(t, kinds...)
}

// start gives a command.
func (p *program) start(t *testing.T, command string) {
	t.Helper()
	if _, err := io.WriteString(p.in, command+"\n"); err != nil {
		t.Fatalf("%s: %v", p.name, err)
	}
}

func programPath(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return realPath(t, path)
}
