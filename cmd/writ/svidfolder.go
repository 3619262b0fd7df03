package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/writ-dev/writ/internal/durable"
	"github.com/writ-dev/writ/internal/fault"
)

const (
	pendingFile = ".changed" // what changed until the command has run, so that a watch that was killed between the two runs it when it is back
	lockFile    = ".lock"
)

// keptFolder is the folder of the files, for one watch alone: two would take each other's files away.
type keptFolder struct {
	path string
	lock *os.File // the kernel drops it with the process, however that ends
}

type file struct {
	name    string
	content []byte
}

func (k *keptFolder) file(name string) string { return filepath.Join(k.path, name) }

// hold makes the folder where it is not there, and takes its lock; both anew where somebody removed them. A folder that is there may
// be open to readers: the files are not.
func (k *keptFolder) hold() error {
	if k.held() {
		return nil
	}
	k.release()
	if err := durable.CheckFolder(k.path, 0o755); errors.Is(err, fs.ErrNotExist) {
		if err := durable.MakeFolder(k.path, 0o700); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	lock, err := os.OpenFile(k.file(lockFile), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("lock folder %s: %w", k.path, err)
	}
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		_ = lock.Close()
		return fault.New(fault.Conflict, nil, "another `writ svid watch` keeps its files in "+k.path).
			With("", "end that one, or give each a folder of its own")
	case err != nil:
		_ = lock.Close()
		return fmt.Errorf("lock folder %s: %w", k.path, err)
	}
	k.lock = lock
	return nil
}

// held says whether the lock that we have is the one that another watch would meet.
func (k *keptFolder) held() bool {
	if k.lock == nil {
		return false
	}
	ours, err := k.lock.Stat()
	there, thereErr := os.Lstat(k.file(lockFile))
	return err == nil && thereErr == nil && os.SameFile(ours, there)
}

func (k *keptFolder) release() {
	if k.lock != nil {
		_ = k.lock.Close()
		k.lock = nil
	}
}

// differing leaves the files that are not there with their content.
func (k *keptFolder) differing(files []file) []file {
	return slices.DeleteFunc(slices.Clone(files), func(f file) bool {
		before, err := os.ReadFile(k.file(f.name))
		return err == nil && bytes.Equal(before, f.content)
	})
}

func (k *keptFolder) write(files []file) error {
	var all []durable.File
	for _, f := range files {
		all = append(all, durable.File{Path: k.file(f.name), Data: f.content, Mode: 0o600})
	}
	return durable.WriteFiles(all...)
}

// remember notes what the command has still to be told.
func (k *keptFolder) remember(names []string) error {
	if len(names) > 0 {
		return durable.WriteFile(k.file(pendingFile), []byte(strings.Join(names, " ")+"\n"), 0o600)
	}
	if err := os.Remove(k.file(pendingFile)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// remembered is what an earlier watch left to tell.
func (k *keptFolder) remembered() []string {
	left, _ := os.ReadFile(k.file(pendingFile))
	return merged(nil, strings.Fields(string(left)))
}

// merged adds names, each once, in the order of the files.
func merged(names, more []string) (out []string) {
	for _, name := range []string{"svid.pem", "key.pem", "bundle.pem"} {
		if slices.Contains(names, name) || slices.Contains(more, name) {
			out = append(out, name)
		}
	}
	return out
}
