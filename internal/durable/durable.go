// Package durable writes files that are there after a power cut and that nobody else may read. Start with WriteFile.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
)

// WideModeError says that others may read or change what they must not.
type WideModeError struct {
	Path string
	Mode fs.FileMode
	Most fs.FileMode
}

// Error names the file, its mode and the widest that is taken.
func (e *WideModeError) Error() string {
	return fmt.Sprintf("%s has mode %04o, wider than %04o", e.Path, e.Mode.Perm(), e.Most.Perm())
}

// WriteFile replaces a file as one act.
func WriteFile(path string, data []byte, mode fs.FileMode) error { return errors.ErrUnsupported }

// ReadSecret reads a file that only its owner may read.
func ReadSecret(path string) ([]byte, error) { return nil, errors.ErrUnsupported }

// MakeFolder makes a folder with exactly that mode.
func MakeFolder(path string, mode fs.FileMode) error { return errors.ErrUnsupported }

// CheckFolder refuses a folder of another owner or with a wider mode.
func CheckFolder(path string, most fs.FileMode) error { return errors.ErrUnsupported }
