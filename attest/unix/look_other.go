//go:build !linux

package unix

import (
	"context"

	"github.com/writ-dev/writ/attest"
)

// look finds nothing here: executables and supplementary groups are told on Linux only.
func (a *Attestor) look(context.Context, attest.Process) ([]attest.KeyValue, error) { return nil, nil }
