package peer_test

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"github.com/writ-dev/writ/internal/fault"
	"golang.org/x/sys/unix"
)

// It gives a caller's number to another process between connect and accept, and after accept. It runs itself again
// in a PID namespace of its own, where nobody else takes numbers.
func TestWEP_15_NumberIsReused(t *testing.T) {
	const inside = "WRIT_PEER_INSIDE"
	if os.Getenv(inside) == "" {
		c := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		c.Env = append(os.Environ(), inside+"=1")
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("proc", "/proc", "proc", 0, ""),
	); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name  string
		times int
		heir  func(t *testing.T, s *socket, pid int32)
	}{
		{"by another program", 150, func(t *testing.T, _ *socket, pid int32) { startAt(t, "/bin/cat", pid) }},
		{"by the same program of the same user", 25, func(t *testing.T, _ *socket, pid int32) { startAt(t, os.Args[0], pid) }},
		{"by one that has a connection too", 25, func(t *testing.T, s *socket, pid int32) {
			startAt(t, os.Args[0], pid).do("connect", s.path, 1)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			paths(t, func(t *testing.T, s *socket) {
				for range row.times {
					t.Run("", func(t *testing.T) { reuse(t, s, row.heir) })
				}
			})
		})
	}
}

func reuse(t *testing.T, s *socket, heir func(*testing.T, *socket, int32)) {
	h := start(t, nil)
	h.do("connect", s.path, 2)
	_, pinned := s.pin()
	pending := s.accept()
	h.kill()
	heir(t, s, h.pid())
	if _, p, err := s.handshake(pending); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("accepted afterwards: pinned %+v, %v", p.Process(), err)
	}
	if err := pinned.Verify(); !fault.Is(err, fault.Denied) {
		t.Errorf("pinned before: Verify gives %v", err)
	}
	closed(t, "Done", pinned.Done())
	drain(t, s)
}

// drain takes what the heir itself left in the queue; that is its own and pinned as such.
func drain(t *testing.T, s *socket) {
	t.Helper()
	mine := start(t, nil)
	mine.do("connect", s.path, 1)
	for {
		_, p := s.pin()
		if p.Process().PID == mine.pid() {
			return
		}
	}
}

// startAt starts a program that gets that number.
func startAt(t *testing.T, program string, pid int32) *helper {
	t.Helper()
	for range 1000 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(int(pid-1))), 0); err != nil {
			t.Fatal(err)
		}
		h := startProgram(t, program, nil)
		if h.pid() == pid {
			return h
		}
		h.kill() // a thread of ours took the number, and may have ended with it
	}
	t.Fatalf("number %d was not to be had", pid)
	return nil
}
