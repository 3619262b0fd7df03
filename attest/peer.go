package attest

import "context"

// Peer is the process at the other end of a Unix socket, pinned when it connected. Process never changes; Verify says whether
// the caller is still that process, and is asked at each call and each push. All methods are safe to call concurrently.
type Peer interface {
	// Process is the caller as it was when it connected.
	Process() Process
	// Verify is nil while the pinned process lives and is what it was: same start time, executable, uid and namespaces.
	Verify() error
	// Done is closed when the process ends, or its connection is closed.
	Done() <-chan struct{}
}

// Process is what was read of a caller when it connected.
type Process struct {
	PID        int32
	UID, GID   uint32
	StartTime  uint64 // clock ticks since boot, where the system tells
	Executable FileID // zero where it could not be read
	Path       string // of the executable as the process's own mount namespace names it; empty where it could not be read
}

// FileID names a file on this host whatever its path.
type FileID struct{ Device, Inode uint64 }

// A WorkloadAttestor finds the selectors of a process. It reads through the pinned process only, checks Verify after reading, and
// gives its selectors with the method's name. No selectors and no error means that it has nothing to say of this process.
type WorkloadAttestor interface {
	Attest(ctx context.Context, p Peer) ([]Selector, error)
}
