// Package durable writes files that are there after a power cut and that nobody else may read. Start with WriteFile; ReadSecret
// and CheckFolder refuse what others could have read or changed.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// WideModeError says that others may read or change what they must not.
type WideModeError struct {
	Path string
	Mode fs.FileMode // as it is
	Most fs.FileMode // the widest that is taken
}

// Error names the path, its mode and what is taken.
func (e *WideModeError) Error() string {
	return fmt.Sprintf("%s has mode %04o, wider than %04o", e.Path, e.Mode.Perm(), e.Most.Perm())
}

// OwnerError says that a folder belongs to somebody else, who could change its mode at any time.
type OwnerError struct {
	Path        string
	Owner, Want int // user ids
}

// Error names the path, its owner and us.
func (e *OwnerError) Error() string {
	return fmt.Sprintf("%s belongs to uid %d, not to uid %d", e.Path, e.Owner, e.Want)
}

// File is what WriteFiles writes.
type File struct {
	Path string
	Data []byte
	Mode fs.FileMode
}

// WriteFile replaces a file in one step and gives it exactly that mode, whatever the umask and whatever mode an older one had.
// When it returns, the new content survives a power cut; when it fails, or the power goes meanwhile, the old one is there whole.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	return WriteFiles(File{path, data, mode})
}

// WriteFiles is WriteFile for files that belong together. None is replaced before all are written, so that a full disk leaves the old ones.
func WriteFiles(files ...File) (err error) {
	var temps []string
	defer func() {
		for _, temp := range temps { // those that were not renamed
			err = errors.Join(err, os.Remove(temp))
		}
	}()
	for _, f := range files {
		temp, err := stage(f)
		if err != nil {
			return fmt.Errorf("write %s: %w", f.Path, err)
		}
		temps = append(temps, temp)
	}
	for _, f := range files {
		if err := os.Rename(temps[0], f.Path); err != nil {
			return fmt.Errorf("write %s: %w", f.Path, err)
		}
		temps = temps[1:]
	}
	synced := ""
	for _, f := range files {
		folder := filepath.Dir(f.Path)
		if folder == synced {
			continue
		}
		if err := syncFolder(folder); err != nil {
			return fmt.Errorf("write %s: it is replaced and may not survive a power cut: %w", f.Path, err)
		}
		synced = folder
	}
	return nil
}

// stage writes a file beside where it shall be, 0600 until all is written, and gives its name.
func stage(f File) (name string, err error) {
	temp, err := os.CreateTemp(filepath.Dir(f.Path), "."+filepath.Base(f.Path)+".*")
	if err != nil {
		return "", err
	}
	if err := fill(temp, f.Data, f.Mode); err != nil {
		return "", errors.Join(err, os.Remove(temp.Name()))
	}
	return temp.Name(), nil
}

// ReadSecret reads a file that only its owner may read; a mode wider than 0600 is a *WideModeError.
func ReadSecret(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe must not hold us up before we know what it is
	if err != nil {
		return nil, fmt.Errorf("read secret: %w", err)
	}
	defer f.Close()
	info, err := f.Stat() // of what was opened, not of what the path names meanwhile
	if err != nil {
		return nil, fmt.Errorf("read secret: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read secret: %s is no regular file", path)
	}
	if info.Mode().Perm()&^0o600 != 0 {
		return nil, &WideModeError{Path: path, Mode: info.Mode(), Most: 0o600}
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("read secret %s: %w", path, err)
	}
	return data, nil
}

// MakeFolder makes a folder with exactly that mode, whatever the umask, and its parents as the umask has it. A folder that is
// there already passes CheckFolder or is an error; a narrower mode is left alone.
func MakeFolder(path string, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(filepath.Clean(path)), 0o755); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	err := os.Mkdir(path, mode.Perm()&0o700) // nobody else enters before the mode is right
	if errors.Is(err, fs.ErrExist) {
		return CheckFolder(path, mode)
	}
	if err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	if err := os.Chmod(path, mode.Perm()); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	return syncFolder(filepath.Dir(filepath.Clean(path)))
}

// CheckFolder refuses what is no folder, what belongs to another user (*OwnerError) and a mode wider than most (*WideModeError).
func CheckFolder(path string, most fs.FileMode) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("check folder: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("check folder: %s is no folder", path)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("check folder: the owner of %s cannot be read", path)
	}
	if owner := int(stat.Uid); owner != os.Geteuid() {
		return &OwnerError{Path: path, Owner: owner, Want: os.Geteuid()}
	}
	if info.Mode().Perm()&^most.Perm() != 0 {
		return &WideModeError{Path: path, Mode: info.Mode(), Most: most}
	}
	return nil
}

// fill writes, gives the mode and syncs; the file is closed in any case.
func fill(f *os.File, data []byte, mode fs.FileMode) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Chmod(mode.Perm())
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncFolder makes a rename or a new name durable.
func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
