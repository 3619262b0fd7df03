package audit

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// flushEvery bounds how long a record waits before it is written; a record must be readable within a second.
const flushEvery = 100 * time.Millisecond

// writeSize is about how many bytes go to the file at once.
const writeSize = 256 << 10

// Ring carries decisions from requests to a file. Put never waits: what finds the ring full is dropped and counted. One
// goroutine turns records to JSON and writes them, a tenth of a second after their Put, earlier when the ring is half full.
type Ring struct {
	w       io.Writer
	size    int
	dropped atomic.Uint64
	wake    chan struct{} // the first record of a batch came
	half    chan struct{} // the batch should not wait any longer
	closing chan struct{}
	done    chan struct{}
	failed  error // of the last write; owned by run until done is closed

	mu      sync.Mutex // held for an append or a swap, never across I/O
	waiting []*Decision
	closed  bool
}

// NewRing starts a ring of that size over w, usually a *Lines. While one batch is written another of that size may wait.
// Close ends it.
func NewRing(w io.Writer, size int) *Ring {
	r := &Ring{w: w, size: max(size, 1), wake: make(chan struct{}, 1), half: make(chan struct{}, 1),
		closing: make(chan struct{}), done: make(chan struct{})}
	go r.run()
	return r
}

// Put hands a record over and says whether it was taken. The record must not change afterwards.
func (r *Ring) Put(d *Decision) bool {
	r.mu.Lock()
	taken := !r.closed && len(r.waiting) < r.size
	if taken {
		r.waiting = append(r.waiting, d)
	}
	n := len(r.waiting)
	r.mu.Unlock()
	if !taken {
		r.dropped.Add(1)
		return false
	}
	if n == 1 {
		signal(r.wake)
	}
	if n == (r.size+1)/2 {
		signal(r.half)
	}
	return true
}

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // one signal is enough
	}
}

// Dropped counts the records that are in no file: the ring was full or closed, or the file could not be written.
func (r *Ring) Dropped() uint64 { return r.dropped.Load() }

// Close writes what was put before, and ends. A Put after Close is dropped. The error is that of the last write.
func (r *Ring) Close() error {
	r.mu.Lock()
	if !r.closed {
		r.closed = true
		close(r.closing)
	}
	r.mu.Unlock()
	<-r.done
	return r.failed
}

func (r *Ring) run() {
	defer close(r.done)
	var spare []*Decision
	for open := true; open; {
		open = r.await()
		batch := r.take(spare)
		r.write(batch)
		clear(batch)
		spare = batch[:0]
	}
}

// await returns when a batch is due; false says that it is the last.
func (r *Ring) await() bool {
	select {
	case <-r.wake:
	case <-r.closing:
		return false
	}
	timer := time.NewTimer(flushEvery)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.half:
	case <-r.closing:
		return false
	}
	return true
}

// take gives what waits and leaves an empty slice in its place.
func (r *Ring) take(spare []*Decision) []*Decision {
	r.mu.Lock()
	defer r.mu.Unlock()
	batch := r.waiting
	r.waiting = spare
	return batch
}

func (r *Ring) write(batch []*Decision) {
	var out bytes.Buffer
	lines := 0
	for i, d := range batch {
		if err := appendLine(&out, d); err != nil {
			r.dropped.Add(1)
			r.failed = fmt.Errorf("record %s: %w", d.DecisionID, err)
		} else {
			lines++
		}
		if out.Len() < writeSize && i < len(batch)-1 || out.Len() == 0 {
			continue
		}
		_, r.failed = r.w.Write(out.Bytes())
		if r.failed != nil {
			r.dropped.Add(uint64(lines))
		}
		out.Reset()
		lines = 0
	}
}
