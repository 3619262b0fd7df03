package peer_test

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/writ-dev/writ/agent/peer"
	"github.com/writ-dev/writ/internal/fault"
)

// A process that is asked about is read as it would be if it called itself.
func TestPinnedByNumberIsWhoWouldCall(t *testing.T) {
	binary := program(t, 0o755, 0)
	for name, attr := range map[string]*syscall.SysProcAttr{
		"a process of root":                  nil,
		"a process of another user":          as(alice),
		"a process in a PID namespace":       {Cloneflags: unix.CLONE_NEWPID},
		"a process in a namespace of mounts": {Cloneflags: unix.CLONE_NEWNS},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSocket(t, peer.Config{})
			h := startProgram(t, binary, attr)
			h.do("connect", s.path, 1)
			_, caller := s.pin()
			p, err := peer.PinPID(h.pid())
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			if p.Process() != caller.Process() {
				t.Errorf("pinned %+v, who calls is %+v", p.Process(), caller.Process())
			}
			if err := p.Verify(); err != nil {
				t.Errorf("living process: %v", err)
			}
			h.kill()
			closed(t, "the end of the process", p.Done())
			if err := p.Verify(); !fault.Is(err, fault.NotFound) {
				t.Errorf("after its end: %v", err)
			}
		})
	}
}

func TestPinnedByNumberNoticesAnotherProgram(t *testing.T) {
	h := startProgram(t, program(t, 0o755, 0), nil)
	h.do("connect", newSocket(t, peer.Config{}).path, 1)
	p, err := peer.PinPID(h.pid())
	if err != nil {
		t.Fatal(err)
	}
	h.do("exec", "/bin/cat", announcement(t), "-")
	if err := p.Verify(); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "executable") {
		t.Errorf("got %v", err)
	}
	p.Close()
	p.Close()
	closed(t, "Close", p.Done())
}

func TestNumbersThatAreNoCaller(t *testing.T) {
	ended := start(t, nil)
	ended.kill()
	zombie := start(t, nil)
	if err := zombie.cmd.Process.Kill(); err != nil { // and nobody waits
		t.Fatal(err)
	}
	for !strings.Contains(stat(t, zombie.pid()), ") Z ") {
	}
	type refusal struct {
		name string
		pid  int32
		kind fault.Kind
		says string
	}
	rows := []refusal{
		{"zero", 0, fault.Invalid, "no process id"},
		{"a negative number, which names a group elsewhere", -1, fault.Invalid, "no process id"},
		{"no process has it", math.MaxInt32, fault.NotFound, "there is no process"},
		{"a process that ended", ended.pid(), fault.NotFound, "there is no process"},
		{"a zombie", zombie.pid(), fault.NotFound, "zombie"},
		{"a thread", thread(t), fault.Invalid, "is a thread of process " + strconv.Itoa(os.Getpid())},
	}
	if pid := ofKernel(); pid != 0 { // a container sees none
		rows = append(rows, refusal{"a thread of the kernel", pid, fault.Invalid, "thread of the kernel"})
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			_, err := peer.PinPID(row.pid)
			var f *fault.Error
			if !errors.As(err, &f) || f.Kind != row.kind || f.Code != fault.ProcessUnknown || f.Fix == "" || !strings.Contains(err.Error(), row.says) {
				t.Errorf("got %#v", err)
			}
		})
	}
}

func stat(t *testing.T, pid int32) string {
	t.Helper()
	text, err := os.ReadFile("/proc/" + strconv.Itoa(int(pid)) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// thread is one of this process that is not its first.
func thread(t *testing.T) int32 {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if pid := number(task.Name()); pid != os.Getpid() {
			return int32(pid)
		}
	}
	t.Fatal("this process has one thread")
	return 0
}

// ofKernel is a thread of the kernel, zero where none is seen.
func ofKernel() int32 {
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err == nil && bytes.Contains(text, []byte("(kthreadd)")) {
			return int32(number(filepath.Base(filepath.Dir(file))))
		}
	}
	return 0
}
