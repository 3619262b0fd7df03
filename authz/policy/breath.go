package policy

import (
	"os"
	"runtime"
	"sync"
	"time"
)

// breathEvery is how often others get a turn between two judgements.
const breathEvery = 500 * time.Microsecond

// A breath is a pause before a judgement, with its place held, in which whoever waits for a core comes as far as the gate. Without
// it the gate would see no line where there are as many judgements as cores: each runs to its end, and the line is the Go
// scheduler's own and the sockets', where nobody is refused.
type breath struct {
	mu      sync.Mutex
	last    time.Time
	in, out *os.File // a pipe
}

// yield lets those run who could.
func (b *breath) yield() {
	if b.due(false) {
		runtime.Gosched()
	}
}

// look lets those run too who have something to read. The scheduler looks at the network when it has nothing else to run, and otherwise every
// 10 ms; with a line there always is something. To read a pipe that is yet to be written to ends when it has looked.
func (b *breath) look() {
	if b.due(true) {
		go b.in.Write([]byte{0})
		b.out.Read(make([]byte, 1))
	}
}

// due says whether it is time for a breath. There is none without a pipe, when no more files may be open.
func (b *breath) due(pipe bool) bool {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if now.Sub(b.last) < breathEvery {
		return false
	}
	b.last = now
	if pipe && b.in == nil {
		var err error
		if b.out, b.in, err = os.Pipe(); err != nil {
			b.out, b.in = nil, nil
			return false
		}
	}
	return true
}
