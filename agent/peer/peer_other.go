//go:build !linux && !darwin

package peer

import (
	"errors"
	"syscall"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
)

const maxPath = 103

// A handle does not exist here: no caller is pinned on this system.
type handle struct{ process attest.Process }

func pin(syscall.RawConn, bool) (*handle, error) {
	return nil, errors.New("callers can be told apart on Linux and macOS only")
}

func pinNumber(int32) (*handle, error) {
	return nil, unknownProcess(fault.Unavailable, errors.ErrUnsupported, "processes are looked at on Linux and macOS only", "")
}

func (*handle) verify() error { return errors.ErrUnsupported }
func (*handle) wait()         {}
func (*handle) close() error  { return nil }
