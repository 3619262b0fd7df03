package peer

import (
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
	"golang.org/x/sys/unix"
)

const maxPath = 103

// A handle names a process by number, start time and user. It is much weaker than on Linux, for development only: macOS gives no
// handle on a process, so that one which ends and whose number is given to another within the same microsecond would not be told
// apart; the executable is not seen, so that a program which replaces itself (exec) stays who it was; and the end of a process is
// noticed at Verify or when its connection closes, not at once.
type handle struct {
	process attest.Process
	closed  chan struct{}
	once    sync.Once
}

func pin(sock syscall.RawConn, _ bool) (*handle, error) {
	var pid int
	var cred *unix.Xucred
	var err error
	control := sock.Control(func(fd uintptr) {
		if pid, err = unix.GetsockoptInt(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERPID); err == nil {
			cred, err = unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
		}
	})
	if err := errors.Join(control, err); err != nil {
		return nil, fmt.Errorf("read the socket's peer: %w", err)
	}
	now, err := look(pid)
	if err != nil {
		return nil, err
	}
	if now.UID != cred.Uid || now.GID != cred.Groups[0] {
		return nil, fmt.Errorf("process %d connected as %d:%d and is %d:%d", pid, cred.Uid, cred.Groups[0], now.UID, now.GID)
	}
	return &handle{process: now, closed: make(chan struct{})}, nil
}

func pinNumber(pid int32) (*handle, error) {
	now, err := look(int(pid))
	if err != nil {
		return nil, unknownProcess(fault.NotFound, err, fmt.Sprintf("there is no process %d", pid), "see with `ps` if it still runs")
	}
	return &handle{process: now, closed: make(chan struct{})}, nil
}

func look(pid int) (attest.Process, error) {
	info, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
	if err != nil {
		return attest.Process{}, fmt.Errorf("look at process %d: %w", pid, err)
	}
	start := info.Proc.P_starttime
	return attest.Process{
		PID: int32(pid), UID: info.Eproc.Ucred.Uid, GID: uint32(info.Eproc.Ucred.Groups[0]),
		StartTime: uint64(start.Sec)*1e6 + uint64(start.Usec),
	}, nil
}

func (h *handle) verify() error {
	select {
	case <-h.closed:
		return errors.New("connection is closed")
	default:
	}
	now, err := look(int(h.process.PID))
	if err != nil {
		return err
	}
	if now != h.process {
		return fmt.Errorf("process %d changed", h.process.PID)
	}
	return nil
}

func (h *handle) wait() { <-h.closed }

func (h *handle) close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}
