package peer

import (
	"sync"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
)

// Pinned is a process that was pinned by its number. It implements attest.Peer.
type Pinned struct {
	handle  *handle
	done    chan struct{} // closed by watch alone
	closing sync.Once
}

// PinPID pins the process that has this number now, for whoever asks about another process; who calls is pinned by Credentials, since
// a number that a caller gave could be another's by now. The numbers are those of this process's PID namespace. Close lets go of it.
// Its errors carry P2006: fault.NotFound where the process is gone, fault.Invalid where it is none that could ever call.
func PinPID(pid int32) (*Pinned, error) {
	h, err := pinNumber(pid)
	if err != nil {
		return nil, err
	}
	p := &Pinned{handle: h, done: make(chan struct{})}
	go p.watch()
	return p, nil
}

// Process is the process as it was pinned.
func (p *Pinned) Process() attest.Process { return p.handle.process }

// Done is closed when the process ends, or Close was called.
func (p *Pinned) Done() <-chan struct{} { return p.done }

// Verify is nil while the process lives and is what it was.
func (p *Pinned) Verify() error {
	if err := p.handle.verify(); err != nil {
		return unknownProcess(fault.NotFound, err, "the process ended, or changed while it was looked at", "ask again")
	}
	return nil
}

// Close lets go of the process. It may be called more than once.
func (p *Pinned) Close() {
	p.closing.Do(func() {
		_ = p.handle.close()
		<-p.done
	})
}

func (p *Pinned) watch() {
	p.handle.wait()
	close(p.done)
}

func unknownProcess(kind fault.Kind, cause error, what, fix string) error {
	err := fault.New(kind, nil, what).With(fault.ProcessUnknown, fix)
	if cause != nil { // whoever asks may know all of it
		err.Because(cause.Error())
	}
	return err
}
