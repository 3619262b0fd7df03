package peer_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/writ-dev/writ/agent/peer"
	"github.com/writ-dev/writ/internal/fault"
)

func codeOf(err error) fault.Code {
	var e *fault.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// answers says whether anybody serves a socket.
func answers(path string) bool {
	c, err := net.Dial("unix", path)
	if err == nil {
		_ = c.Close()
	}
	return err == nil
}

func TestWEP_27_ListenGivesExactlyTheMode(t *testing.T) {
	for _, mask := range []int{0, 0o077, 0o777} {
		for _, mode := range []fs.FileMode{0o600, 0o660, 0o777} {
			path := filepath.Join(t.TempDir(), "s")
			old := syscall.Umask(mask)
			l, err := peer.Listen(path, mode)
			syscall.Umask(old)
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != mode {
				t.Errorf("umask %03o: mode %v, want %v (%v)", mask, info.Mode(), mode, err)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestWEP_27_CLIENT_22_ListenReplacesWhatNobodyServes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for range 3 {
		l, err := peer.Listen(path, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if !answers(path) {
			t.Error("nobody answers")
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("the path is gone between two starts: %v", err)
		}
	}
}

func TestListenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	ours, foreign := filepath.Join(dir, "ours"), filepath.Join(dir, "foreign")
	mine, err := peer.Listen(ours, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mine.Close() }()
	other, err := net.Listen("unix", foreign) // by a program that knows nothing of our lock
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(ours, link); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(dir, strings.Repeat("x", 108))
	for _, row := range []struct {
		name, path string
		code       fault.Code
	}{
		{"a path over 107 bytes", long, fault.SocketPathLong},
		{"a socket that we serve", ours, fault.SocketInUse},
		{"a socket that another program serves", foreign, fault.SocketInUse},
		{"a file", file, fault.SocketInUse},
		{"a symbolic link", link, fault.SocketInUse},
		{"a folder that is not there", filepath.Join(dir, "none", "s"), fault.BadConfig},
	} {
		t.Run(row.name, func(t *testing.T) {
			l, err := peer.Listen(row.path, 0o600)
			if err == nil {
				_ = l.Close()
			}
			if codeOf(err) != row.code || !strings.Contains(err.Error(), row.path) {
				t.Errorf("%v, want %s and the path", err, row.code)
			}
		})
	}
	if !answers(ours) || !answers(foreign) {
		t.Error("a refused start took a live socket away")
	}
	if data, err := os.ReadFile(file); string(data) != "kept" {
		t.Errorf("the file holds %q (%v)", data, err)
	}
}

// Of many that start at once over a stale socket one wins, and no loser touches what it serves.
func TestListenRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for range 50 {
		stale, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", path)
		if err == nil {
			stale.(*net.UnixListener).SetUnlinkOnClose(false)
			_ = stale.Close()
		}
		var all sync.WaitGroup
		won := make(chan net.Listener, 20)
		for range cap(won) {
			all.Go(func() {
				l, err := peer.Listen(path, 0o600)
				if err == nil {
					won <- l
				} else if codeOf(err) != fault.SocketInUse {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if len(won) != 1 || !answers(path) {
			t.Fatalf("%d won, and somebody answers: %t", len(won), answers(path))
		}
		if err := (<-won).Close(); err != nil {
			t.Fatal(err)
		}
	}
}
