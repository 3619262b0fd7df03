package peer

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/writ-dev/writ/attest"
	"golang.org/x/sys/unix"
)

const maxPath = 107

// A handle holds a process by its pidfd. A process's number is not given to another before it is dead and reaped, and the pidfd
// tells when it is dead: what was read under /proc/PID before the pidfd is seen to live was therefore read of this process.
type handle struct {
	pidfd   *os.File
	older   bool // the kernel does not tell a pidfd's user
	process attest.Process
	pinned  facts
}

// facts are what must not change.
type facts struct {
	start      uint64
	uid, gid   uint32 // effective
	executable attest.FileID
	spaces     [len(spaces)]attest.FileID
}

var spaces = [...]string{"user", "mnt", "pid", "net", "cgroup"}

var errEnded = errors.New("process has ended")

// pin holds the process at the other end of a socket. What the kernel remembered of it at connect and what /proc says of it now
// must agree: they do not where it became another user meanwhile.
func pin(sock syscall.RawConn, fallback bool) (*handle, error) {
	var h *handle
	var err error
	if control := sock.Control(func(fd uintptr) { h, err = hold(int(fd), fallback) }); control != nil {
		return nil, control
	}
	return h, err
}

func hold(sock int, fallback bool) (*handle, error) {
	cred, err := unix.GetsockoptUcred(sock, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, fmt.Errorf("read SO_PEERCRED: %w", err)
	}
	if cred.Pid <= 0 {
		return nil, errors.New("caller is in a PID namespace that cannot be seen from here")
	}
	fd, held, err := openPeer(sock, int(cred.Pid), fallback)
	if err != nil {
		return nil, err
	}
	h, err := newHandle(fd, cred, fallback)
	if err != nil {
		return nil, err
	}
	if !held {
		err = holdsPeer(sock, int(cred.Pid))
	}
	if err == nil {
		err = h.alive() // the last step: all that was read was read of this process
	}
	if err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

// openPeer opens the pidfd of the socket's peer. Held says that the kernel vouches for it; if not, the number may have been given
// to another process meanwhile.
func openPeer(sock, pid int, fallback bool) (fd int, held bool, err error) {
	if !fallback {
		fd, err = unix.GetsockoptInt(sock, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		if err == nil {
			return fd, true, nil
		}
		if !errors.Is(err, unix.ENOPROTOOPT) {
			return 0, false, fmt.Errorf("read SO_PEERPIDFD: %w", err)
		}
	}
	fd, err = unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, false, fmt.Errorf("open process %d: %w", pid, err)
	}
	return fd, false, nil
}

// newHandle takes over the pidfd, and closes it if anything is wrong.
func newHandle(pidfd int, cred *unix.Ucred, fallback bool) (*handle, error) {
	if err := unix.SetNonblock(pidfd, true); err != nil { // so that the runtime's poller waits on it
		return nil, errors.Join(fmt.Errorf("set up pidfd: %w", err), unix.Close(pidfd))
	}
	h := &handle{pidfd: os.NewFile(uintptr(pidfd), "pidfd"), older: fallback}
	err := h.read(pidfd, cred)
	if err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

func (h *handle) read(pidfd int, cred *unix.Ucred) error {
	switch pid, err := numberOf(pidfd); {
	case err != nil:
		return fmt.Errorf("read the number of process %d: %w", cred.Pid, err)
	case pid == -1: // proc(5), fdinfo of a pidfd
		return fmt.Errorf("process %d has ended", cred.Pid)
	case pid != cred.Pid:
		return fmt.Errorf("process %d is %d in /proc, which is of another PID namespace", cred.Pid, pid)
	}
	f, err := read(cred.Pid)
	if err != nil {
		return err
	}
	if f.uid != cred.Uid || f.gid != cred.Gid {
		return fmt.Errorf("process %d connected as %d:%d and is %d:%d", cred.Pid, cred.Uid, cred.Gid, f.uid, f.gid)
	}
	h.pinned = f
	h.older = h.older || !tellsOwners(pidfd, f.uid, f.gid)
	h.process = attest.Process{PID: cred.Pid, UID: cred.Uid, GID: cred.Gid, StartTime: f.start, Executable: f.executable}
	if f.executable != (attest.FileID{}) {
		h.process.Path, _ = os.Readlink(procPath(cred.Pid, "exe"))
	}
	return nil
}

// verify reads anew what a living process can change, and compares it. Its start time cannot change, and is not read again: that the
// pidfd lives afterwards shows that what was read was this process's.
func (h *handle) verify() error {
	now, err := readChangeable(h.process.PID, h.owners)
	if err != nil {
		return err
	}
	if err := h.alive(); err != nil {
		return err
	}
	now.start = h.pinned.start
	if now == h.pinned {
		return nil
	}
	return fmt.Errorf("process %d changed: %s", h.process.PID, h.pinned.difference(now))
}

func (f facts) difference(g facts) string {
	switch {
	case f.uid != g.uid || f.gid != g.gid:
		return fmt.Sprintf("user from %d:%d to %d:%d", f.uid, f.gid, g.uid, g.gid)
	case f.executable != g.executable:
		return "executable"
	default:
		return "namespace"
	}
}

// alive says whether the process has not ended. One that has ended and is not reaped yet counts as ended.
func (h *handle) alive() error {
	ended := true
	raw, err := h.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	if err := raw.Control(func(fd uintptr) { ended = readable(fd) }); err != nil {
		return err
	}
	if ended {
		return errEnded
	}
	return nil
}

// wait returns when the process has ended or the handle is closed.
func (h *handle) wait() {
	if raw, err := h.pidfd.SyscallConn(); err == nil {
		_ = raw.Read(readable)
	}
}

func (h *handle) close() error { return h.pidfd.Close() }

// readable says whether a pidfd's process has ended; what cannot be said is taken as yes.
func readable(fd uintptr) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if !errors.Is(err, unix.EINTR) {
			return err != nil || n != 0
		}
	}
}

func procPath(pid int32, name string) string { return "/proc/" + strconv.Itoa(int(pid)) + "/" + name }

// numberOf is a pidfd's process in the PID namespace that /proc shows, which is what paths under it mean.
func numberOf(pidfd int) (int32, error) {
	data, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(pidfd))
	if err != nil {
		return 0, err
	}
	value, ok := field(data, "Pid:")
	if !ok {
		return 0, errors.New("pidfd without a number")
	}
	n, err := strconv.ParseInt(value, 10, 32)
	return int32(n), err
}

func read(pid int32) (facts, error) {
	start, err := startTime(pid)
	if err != nil {
		return facts{}, err
	}
	f, err := readChangeable(pid, func() (uid, gid uint32, err error) { return owners(pid) })
	f.start = start
	return f, err
}

// readChangeable leaves the start time out.
func readChangeable(pid int32, owners func() (uid, gid uint32, err error)) (facts, error) {
	var f facts
	var err error
	if f.uid, f.gid, err = owners(); err != nil {
		return facts{}, err
	}
	if f.executable, err = identify(procPath(pid, "exe")); err != nil {
		return facts{}, err
	}
	for i, name := range spaces {
		if f.spaces[i], err = identify(procPath(pid, "ns/"+name)); err != nil {
			return facts{}, err
		}
	}
	return f, nil
}

// identify names the file behind a link of /proc without asking a file system that somebody else serves. What an agent without
// privileges may not see of other users' processes is zero, then and later.
func identify(link string) (attest.FileID, error) {
	var s unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, link, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_INO, &s)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return attest.FileID{}, nil
	}
	if err != nil {
		return attest.FileID{}, fmt.Errorf("look at %s: %w", link, err)
	}
	return attest.FileID{Device: unix.Mkdev(s.Dev_major, s.Dev_minor), Inode: s.Ino}, nil
}

// startTime is field 22 of stat. The second field, in parentheses, is the process's to choose.
func startTime(pid int32) (uint64, error) {
	data, err := readStart(procPath(pid, "stat"))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("stat of process %d is cut off", pid)
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}

// owners asks the pidfd in one call (Linux 6.13), and /proc/PID/status where the kernel is older.
func (h *handle) owners() (uid, gid uint32, err error) {
	if h.older {
		return owners(h.process.PID)
	}
	raw, err := h.pidfd.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_CREDS}
	if control := raw.Control(func(fd uintptr) { err = unix.IoctlPidfdInfo(int(fd), &info) }); control != nil {
		return 0, 0, control
	}
	if err != nil {
		return 0, 0, fmt.Errorf("ask for the user of process %d: %w", h.process.PID, err)
	}
	return info.Euid, info.Egid, nil
}

// tellsOwners says whether the kernel answers for this living process.
func tellsOwners(pidfd int, uid, gid uint32) bool {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_CREDS}
	err := unix.IoctlPidfdInfo(pidfd, &info)
	return err == nil && info.Mask&unix.PIDFD_INFO_CREDS != 0 && info.Euid == uid && info.Egid == gid
}

// owners are the effective uid and gid.
func owners(pid int32) (uid, gid uint32, err error) {
	data, err := readStart(procPath(pid, "status"))
	if err != nil {
		return 0, 0, err
	}
	if uid, err = effective(data, "Uid:"); err != nil {
		return 0, 0, err
	}
	gid, err = effective(data, "Gid:")
	return uid, gid, err
}

func effective(status []byte, name string) (uint32, error) {
	value, _ := field(status, name)
	ids := strings.Fields(value) // real, effective, saved, file system
	if len(ids) != 4 {
		return 0, fmt.Errorf("status without %s", name)
	}
	n, err := strconv.ParseUint(ids[1], 10, 32)
	return uint32(n), err
}

// field finds a line by its name. A process's own name, which stands in such files too, has its line ends escaped.
func field(data []byte, name string) (string, bool) {
	for line := range bytes.Lines(data) {
		if value, ok := bytes.CutPrefix(line, []byte(name)); ok {
			return string(bytes.TrimSpace(value)), true
		}
	}
	return "", false
}

// readStart reads the first bytes of a file under /proc, which hold all that is wanted here.
func readStart(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	buf := make([]byte, 2048)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return nil, &os.PathError{Op: "read", Path: path, Err: err}
	}
	return buf[:n], nil
}
