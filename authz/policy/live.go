package policy

import (
	"context"
	"io/fs"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-dev/writ/authz"
)

// LiveConfig says which folder is followed.
type LiveConfig struct {
	Name       string // of the set, in metrics and records; empty: default
	Folder     string
	Files      fs.FS // instead of Folder, for a tree that is not on disk
	Config           // what its sets need
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Live is the newest good set of a folder, and answers 503 while there is none.
type Live struct{}

// NewLive reads the folder once. A set that is broken is no error: Live denies, LastError says why, and Watch goes on looking.
func NewLive(ctx context.Context, c LiveConfig) (*Live, error) { return &Live{}, nil }

// Watch looks at the folder every 100 ms until ctx ends, and swaps in what is new and good.
func (l *Live) Watch(ctx context.Context) error { <-ctx.Done(); return nil }

// Decide implements authz.Decider.
func (l *Live) Decide(ctx context.Context, set string, request []byte) authz.Decision {
	return authz.Decision{}
}

// Revision is the live set's, empty while there is none.
func (l *Live) Revision() string { return "" }

// LastError says why the folder as it stands is not what is live; nil when it is.
func (l *Live) LastError() error { return nil }
