package peer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/writ-dev/writ/internal/fault"
)

// Listen opens a Unix socket at path with exactly this mode. A socket that another process serves is fault.Conflict, P1003; one
// that nobody serves any more is replaced. A path over 107 bytes is P1004. The folder must exist, and belong to who runs this.
//
// Closing the listener leaves the socket's file where it is: clients that start while the agent restarts wait when nobody answers,
// and give up when there is no file. Beside it stays PATH.lock: who holds its lock serves the socket, so of two that start at once
// the loser touches nothing.
func Listen(path string, mode fs.FileMode) (net.Listener, error) {
	if len(path) > maxPath {
		return nil, fault.New(fault.Invalid, nil, fmt.Sprintf("socket path is %d bytes, at most %d work: %s", len(path), maxPath, path)).
			With(fault.SocketPathLong, "choose a shorter folder")
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || !info.IsDir() {
		return nil, fault.New(fault.NotFound, err, "no folder for socket "+path).With(fault.BadConfig, "mkdir -p "+filepath.Dir(path))
	}
	lock, err := acquire(path)
	if err != nil {
		return nil, err
	}
	l, err := open(path, mode)
	if err != nil {
		_ = lock.Close()
		return nil, err
	}
	return &listener{l, lock}, nil
}

// A listener holds its socket's lock until it is closed.
type listener struct {
	net.Listener
	lock *os.File
}

// Close stops listening, then gives up the lock.
func (l *listener) Close() error { return errors.Join(l.Listener.Close(), l.lock.Close()) }

// acquire takes the lock beside path. The kernel drops it with the process, however that ends.
func acquire(path string) (*os.File, error) {
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock socket %s: %w", path, err)
	}
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		_ = lock.Close()
		return nil, inUse(path)
	case err != nil:
		_ = lock.Close()
		return nil, fmt.Errorf("lock socket %s: %w", path, err)
	}
	return lock, nil
}

// open is called with the lock held.
func open(path string, mode fs.FileMode) (net.Listener, error) {
	if err := clear(path); err != nil {
		return nil, err
	}
	c := net.ListenConfig{Control: func(_, _ string, sock syscall.RawConn) error {
		// The socket's own mode bounds that of its file, which is thus never wider than asked for, not even before the chmod.
		return sock.Control(func(fd uintptr) { _ = syscall.Fchmod(int(fd), uint32(mode.Perm())) })
	}}
	l, err := c.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on socket %s: %w", path, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := os.Chmod(path, mode.Perm()); err != nil {
		return nil, errors.Join(fmt.Errorf("set mode of socket %s: %w", path, err), l.Close())
	}
	return l, nil
}

// clear removes a socket that nobody serves, and refuses anything else that stands at path.
func clear(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at socket %s: %w", path, err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fault.New(fault.Conflict, nil, path+" is there and is no socket").With(fault.SocketInUse, "choose another path")
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		_ = c.Close()
		return inUse(path)
	case errors.Is(err, syscall.ECONNREFUSED):
	case errors.Is(err, fs.ErrNotExist):
		return nil
	default: // a full queue, or another kind of socket: somebody is there
		return inUse(path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove stale socket %s: %w", path, err)
	}
	return nil
}

func inUse(path string) error {
	return fault.New(fault.Conflict, nil, "another process listens on "+path).With(fault.SocketInUse, "stop it, or choose another path")
}
