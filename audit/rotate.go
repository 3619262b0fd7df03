package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// Rotation bounds what a file of records takes on disk. The zero Rotation does not.
type Rotation struct {
	Size int64 // bytes at which a new file is begun; 0: never
	Keep int   // older files, PATH.1 the newest of them; what is older still is removed
	Sync bool  // every write is synced, so that a power cut takes nothing that was written
}

// OpenRotating is OpenLines for a file that is rotated.
func OpenRotating(path string, r Rotation) (*Lines, error) {
	l, err := OpenLines(path)
	if err == nil {
		l.rotation = r
	}
	return l, err
}

// numbered is the name of an older file.
func numbered(path string, n int) string { return path + "." + strconv.Itoa(n) }

// rotateFor begins a new file where the next write would make this one too large. Where that fails the old one is written on.
func (l *Lines) rotateFor(next int) error {
	if l.rotation.Size <= 0 {
		return nil
	}
	info, err := l.file.Stat()
	if err != nil || info.Size() == 0 || info.Size()+int64(next) <= l.rotation.Size {
		return err
	}
	if err := l.file.Sync(); err != nil {
		return err
	}
	path := l.file.Name()
	if err := shift(path, max(l.rotation.Keep, 1)); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		// Another name for the same file: what is written goes on being found under the one it had.
		return errors.Join(err, os.Rename(numbered(path, 1), path))
	}
	old := l.file
	l.file = f
	return errors.Join(f.Chmod(0o600), old.Close(), syncFolder(filepath.Dir(path)))
}

// shift gives the file the name PATH.1 and every older one the next higher. It begins at the first number that is free, so that
// a crash in the middle leaves every file under some name, and no rename ever falls on a file.
func shift(path string, keep int) error {
	free := 1
	for ; free <= keep; free++ {
		if _, err := os.Lstat(numbered(path, free)); errors.Is(err, fs.ErrNotExist) {
			break
		} else if err != nil {
			return err
		}
	}
	if free > keep {
		if err := os.Remove(numbered(path, keep)); err != nil {
			return fmt.Errorf("remove the oldest records: %w", err)
		}
		free = keep
	}
	for n := keep + 1; os.Remove(numbered(path, n)) == nil; n++ { // fewer are kept than before
		continue
	}
	for n := free; n > 1; n-- {
		if err := os.Rename(numbered(path, n-1), numbered(path, n)); err != nil {
			return err
		}
	}
	return os.Rename(path, numbered(path, 1))
}

func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
