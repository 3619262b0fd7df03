package testdomain_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/writ-dev/writ/internal/testdomain"
)

// Clients are killed, stopped and left without processor time while they stream. Whoever streams beside them never holds an SVID that
// ended, one that was stopped goes on where the others are, and the agent holds on to nothing of the dead.
func TestClientsThatDieDisturbNobody(t *testing.T) {
	t.Parallel()
	d := testdomain.New(t, testdomain.Built(t), "--entries", os.DevNull)
	d.Apply(t, fmt.Sprintf("name: all\npath: /all\nttl: 6s\nwhere: [%q]\nmatch: [\"unix:uid:%d\"]\n", onDev, os.Getuid()))
	watcher := func(name string) *testdomain.Process {
		cmd := exec.Command(string(d.Binary), "svid", "watch", "-o", "json")
		cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET="+d.WorkloadAPI)
		p := testdomain.Start(t, name, cmd)
		updates(t, p, 1)
		return p
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(d.WorkloadAPI)))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	files := func() int {
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.Cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(open)
	}
	before := files()

	stopped, starved := watcher("stopped"), watcher("starved")
	stopped.Cmd.Process.Signal(syscall.SIGSTOP)
	defer stopped.Cmd.Process.Signal(syscall.SIGCONT) // else it cannot end
	defer starved.Cmd.Process.Signal(syscall.SIGCONT)
	serials := map[string]bool{}
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); {
		for range 2 {
			watcher("killed").Kill()
		}
		starved.Cmd.Process.Signal(syscall.SIGSTOP) // it runs for a moment of each round
		held, err := source.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		if over := time.Since(held.Certificates[0].NotAfter); over > 0 {
			t.Fatalf("another client holds an SVID that ended %s ago", over)
		}
		serials[held.Certificates[0].SerialNumber.String()] = true
		starved.Cmd.Process.Signal(syscall.SIGCONT)
	}
	if len(serials) < 4 {
		t.Errorf("another client saw %d SVIDs within 15 s of a ttl of 6 s", len(serials))
	}

	missed := lineCount(t, stopped)
	stopped.Cmd.Process.Signal(syscall.SIGCONT)
	updates(t, stopped, missed+1)
	testdomain.Until(t, 20*time.Second, "who was stopped and who was starved are where the others are", func() error {
		held, err := source.GetX509SVID()
		for _, p := range []*testdomain.Process{stopped, starved} {
			if serial := fmt.Sprintf("%x", held.Certificates[0].SerialNumber); err == nil && !strings.Contains(p.Tail(), serial) {
				err = fmt.Errorf("no word of %s", serial)
			}
		}
		return err
	})
	testdomain.Until(t, 20*time.Second, "the agent lets go of the dead", func() error {
		if n := files(); n > before+20 {
			return fmt.Errorf("%d files are open, %d were", n, before)
		}
		return nil
	})
}

// updates waits until a watcher told so many.
func updates(t *testing.T, p *testdomain.Process, n int) {
	t.Helper()
	testdomain.Until(t, 20*time.Second, fmt.Sprintf("update %d", n), func() error {
		if have := lineCount(t, p); have < n {
			return fmt.Errorf("%d updates", have)
		}
		return nil
	})
}

func lineCount(t *testing.T, p *testdomain.Process) int {
	t.Helper()
	text, err := os.ReadFile(p.Log)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), "SVIDList")
}
