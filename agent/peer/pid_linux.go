package peer

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/writ-dev/writ/internal/fault"
)

// kernelThread is PF_KTHREAD, in the ninth field of stat.
const kernelThread = 0x00200000

func pinNumber(pid int32) (*handle, error) {
	if pid <= 0 {
		return nil, unknownProcess(fault.Invalid, nil, fmt.Sprintf("%d is no process id", pid), "name one that `ps` shows")
	}
	fd, err := unix.PidfdOpen(int(pid), 0)
	if err != nil {
		return nil, notOpened(pid, err)
	}
	uid, gid, err := callable(pid)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	h, err := newHandle(fd, &unix.Ucred{Pid: pid, Uid: uid, Gid: gid}, false)
	if err != nil {
		return nil, unseen(pid, err)
	}
	if err := h.alive(); err != nil { // the last step: all that was read was read of this process
		_ = h.close()
		return nil, ended(pid, err)
	}
	return h, nil
}

func ended(pid int32, cause error) error {
	return unknownProcess(fault.NotFound, cause, fmt.Sprintf("process %d has ended", pid), "ask while it runs")
}

// notOpened says why there is no handle of a process. A thread has a number too, but identities are a whole process's.
func notOpened(pid int32, err error) error {
	if status, readErr := readStart(procPath(pid, "status")); readErr == nil {
		if leader, there := field(status, "Tgid:"); there && leader != strconv.Itoa(int(pid)) {
			return unknownProcess(fault.Invalid, nil, fmt.Sprintf("%d is a thread of process %s", pid, leader), "ask for --pid "+leader)
		}
	}
	if errors.Is(err, unix.ESRCH) {
		return unknownProcess(fault.NotFound, nil, fmt.Sprintf("there is no process %d in the agent's PID namespace", pid),
			"see with `ps` if it still runs; numbers of another PID namespace, such as a container's, mean something else here")
	}
	return unseen(pid, err)
}

func unseen(pid int32, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return unknownProcess(fault.NotFound, err, fmt.Sprintf("process %d cannot be seen", pid),
			"it may have ended just now; if not, /proc may be mounted with hidepid or be another PID namespace's")
	}
	return unknownProcess(fault.Unavailable, err, fmt.Sprintf("process %d cannot be looked at", pid), "run the agent with CAP_SYS_PTRACE")
}

// callable gives the owners of a process, and an error for what could never connect to a socket.
func callable(pid int32) (uid, gid uint32, err error) {
	data, err := readStart(procPath(pid, "stat"))
	if err != nil {
		return 0, 0, unseen(pid, err)
	}
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:]) // state, ppid, pgrp, session, tty, tpgid, flags
	if len(fields) < 7 {
		return 0, 0, unseen(pid, errors.New("its stat is cut off"))
	}
	if state := string(fields[0]); state == "Z" || state == "X" {
		return 0, 0, ended(pid, errors.New("nobody has reaped it yet (a zombie)"))
	}
	if flags, err := strconv.ParseUint(string(fields[6]), 10, 64); err != nil || flags&kernelThread != 0 {
		return 0, 0, unknownProcess(fault.Invalid, err, fmt.Sprintf("process %d is a thread of the kernel, which calls nobody", pid),
			"name a process that runs a program")
	}
	if uid, gid, err = owners(pid); err != nil {
		return 0, 0, unseen(pid, err)
	}
	return uid, gid, nil
}
