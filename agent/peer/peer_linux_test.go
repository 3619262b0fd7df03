package peer_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
	"golang.org/x/sys/unix"
)

const (
	alice = 54321
	bob   = 54322
)

func as(uid uint32) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
}

// announcement is a file that says the program which shows it has begun.
func announcement(t *testing.T) string {
	t.Helper()
	path := filepath.Join(folder(t), "announcement")
	if err := os.WriteFile(path, []byte("done\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// program makes the test binary one that every user may run.
func program(t *testing.T, mode os.FileMode, owner int) string {
	t.Helper()
	path := filepath.Join(folder(t), "helper")
	from, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = from.Close() }()
	to, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(to, from)
	if err := errors.Join(err, to.Close(), os.Chown(path, owner, owner), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCallerIsWhoConnected(t *testing.T) {
	binary := program(t, 0o755, 0)
	for _, row := range []struct {
		name string
		attr *syscall.SysProcAttr
		uid  uint32
	}{
		{"a process of root", nil, 0},
		{"a process of another user", as(alice), alice},
		{"a process in another network namespace", &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}, 0},
		{"a process in another PID namespace", &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			paths(t, func(t *testing.T, s *socket) {
				h := startProgram(t, binary, row.attr)
				h.do("connect", s.path, 1)
				_, p := s.pin()
				got := p.Process()
				if got.PID != h.pid() || got.UID != row.uid || got.GID != row.uid || got.StartTime == 0 {
					t.Errorf("pinned %+v, want process %d of %d", got, h.pid(), row.uid)
				}
				info, err := os.Stat(binary)
				if err != nil {
					t.Fatal(err)
				}
				stat := info.Sys().(*syscall.Stat_t)
				if want := (attest.FileID{Device: stat.Dev, Inode: stat.Ino}); got.Executable != want || got.Path != binary {
					t.Errorf("executable %+v at %q, want %+v at %q", got.Executable, got.Path, want, binary)
				}
				if err := p.Verify(); err != nil {
					t.Errorf("living process: %v", err)
				}
			})
		})
	}
}

// Whatever a process turns into after it connected, it is not the one that was pinned.
func TestVerifyNoticesChange(t *testing.T) {
	binary := program(t, 0o755, 0)
	setuid := program(t, 0o755|os.ModeSetuid, bob)
	for _, row := range []struct {
		name   string
		attr   *syscall.SysProcAttr
		change []any
		want   string
	}{
		{"it runs another program", as(alice), []any{"exec", "/bin/cat", announcement(t), "-"}, "executable"},
		{"it runs a set-user-ID program", as(alice), []any{"exec", setuid, "announce"}, "user"},
		{"it becomes another user", nil, []any{"setuid", alice}, "user"},
		{"it moves into another mount namespace", nil, []any{"unshare", unix.CLONE_NEWNS}, "namespace"},
		{"it moves into another network namespace", nil, []any{"unshare", unix.CLONE_NEWNET}, "namespace"},
	} {
		t.Run(row.name, func(t *testing.T) {
			paths(t, func(t *testing.T, s *socket) {
				h := startProgram(t, binary, row.attr)
				h.do("connect", s.path, 1)
				_, p := s.pin()
				if err := p.Verify(); err != nil {
					t.Fatalf("before: %v", err)
				}
				h.do(row.change...)
				err := p.Verify()
				if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), row.want) {
					t.Errorf("afterwards Verify gives %v, want one that names the %s", err, row.want)
				}
			})
		})
	}
}

// A program that was replaced, or a user that was changed, before the connection is accepted is told apart by the user alone.
func TestAnotherUserBeforeAcceptIsRefused(t *testing.T) {
	binary := program(t, 0o755, 0)
	setuid := program(t, 0o755|os.ModeSetuid, bob)
	paths(t, func(t *testing.T, s *socket) {
		h := startProgram(t, binary, as(alice))
		h.do("connect", s.path, 1)
		h.do("exec", setuid, "announce")
		if _, p, err := s.handshake(s.accept()); !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("pinned %+v, %v", p, err)
		}
	})
}

func TestEndOfProcessEndsItsConnection(t *testing.T) {
	paths(t, func(t *testing.T, s *socket) {
		h := start(t, nil)
		h.do("connect", s.path, 1)
		c, p := s.pin()
		select {
		case <-p.Done():
			t.Fatal("done while it lives")
		default:
		}
		h.kill()
		closed(t, "Done after the end", p.Done())
		if err := p.Verify(); !fault.Is(err, fault.Denied) {
			t.Errorf("Verify after the end: %v", err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("connection can be read")
		}
	})
}

func TestCloseIsDone(t *testing.T) {
	paths(t, func(t *testing.T, s *socket) {
		h := start(t, nil)
		h.do("connect", s.path, 1)
		c, p := s.pin()
		if err := errors.Join(c.Close(), c.Close()); err != nil {
			t.Error(err)
		}
		closed(t, "Done after Close", p.Done())
		if p.Verify() == nil {
			t.Error("Verify of a closed connection is nil")
		}
	})
}

// A child that inherited the connection speaks as its parent while that lives, and for nobody afterwards.
func TestInheritedConnection(t *testing.T) {
	paths(t, func(t *testing.T, s *socket) {
		h := start(t, nil)
		h.do("connect", s.path, 1)
		h.do("fork")
		c, p := s.pin()
		if got := p.Process().PID; got != h.pid() {
			t.Errorf("pinned %d, want the parent %d", got, h.pid())
		}
		h.sayQuit()
		closed(t, "Done after the parent's end", p.Done())
		if p.Verify() == nil {
			t.Error("the child passes for its parent")
		}
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("read gives %v, want a closed connection", err)
		}
	})
}

func TestInheritedConnectionOfTheDeadIsRefused(t *testing.T) {
	paths(t, func(t *testing.T, s *socket) {
		h := start(t, nil)
		h.do("connect", s.path, 1)
		h.do("fork")
		h.sayQuit()
		if _, p, err := s.handshake(s.accept()); !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("pinned %+v, %v", p, err)
		}
	})
}

// sayQuit ends the process and leaves its children.
func (h *helper) sayQuit() {
	h.t.Helper()
	h.say("quit")
	if _, err := h.cmd.Process.Wait(); err != nil {
		h.t.Fatal(err)
	}
}

// A connection that was handed to another process (SCM_RIGHTS) never gives that process's identity.
func TestWEP_15_ConnectionHandedOver(t *testing.T) {
	binary := program(t, 0o755, 0)
	for _, row := range []struct {
		name string
		ends bool
	}{{"while its maker lives it is the maker's", false}, {"after its maker's end it is nobody's", true}} {
		t.Run(row.name, func(t *testing.T) {
			paths(t, func(t *testing.T, s *socket) {
				maker, taker := startProgram(t, binary, as(alice)), startProgram(t, binary, as(bob))
				maker.do("connect", s.path, 1)
				taker.do("receive", s.path+"2")
				maker.do("send", s.path+"2")
				taker.expect()
				if row.ends {
					maker.kill()
				}
				_, p, err := s.handshake(s.accept())
				switch {
				case row.ends && !fault.Is(err, fault.Unauthenticated):
					t.Errorf("pinned %+v, %v", p, err)
				case !row.ends && (err != nil || p.Process().PID != maker.pid() || p.Process().UID != alice):
					t.Errorf("pinned %+v, %v; want process %d", p, err, maker.pid())
				}
			})
		})
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// Ten thousand connections of processes that are gone, and as many of one that is there.
func TestDescriptorsStayFlat(t *testing.T) {
	const times, batch = 10000, 500
	paths(t, func(t *testing.T, s *socket) {
		before := descriptors(t)
		for range times / batch {
			h := start(t, nil)
			h.do("connect", s.path, batch)
			h.kill()
			for range batch {
				raw, err := s.l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				if _, p, err := s.handshake(raw); err == nil {
					t.Fatalf("pinned %+v, which is gone", p.Process())
				}
			}
		}
		for range times {
			mine, err := net.Dial("unix", s.path)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := s.l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			c, _, err := s.handshake(raw)
			if err := errors.Join(err, c.Close(), mine.Close()); err != nil {
				t.Fatal(err)
			}
		}
		if after := descriptors(t); after > before+5 {
			t.Errorf("%d descriptors, %d before", after, before)
		}
	})
}
