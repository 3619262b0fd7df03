package audit

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// flushEvery bounds how long a record waits before it is written; a record must be readable within a second.
const flushEvery = 100 * time.Millisecond

// writeSize is about how many bytes go to the file at once.
const writeSize = 256 << 10

// RingConfig says how much a Ring holds and what it leaves out. Only Size must be there.
type RingConfig struct {
	Size        int     // the weight that may wait, beside a batch of that weight that is being written
	SkipAllowed float64 // the part of allowed requests that is left out, 0 to 1
	SkipDenied  float64 // the same of all others
	Patient     bool    // a batch that cannot be written is tried again until Close: nothing that was taken is lost to a full disk
}

// Ring carries decisions from requests to a file. Put never waits: what finds no room is dropped and counted. One goroutine turns
// records to JSON and writes them, a tenth of a second after their Put, earlier when a quarter of the ring is in use.
//
// No source may hold more than what is still free. One that floods the ring has half of it at most, two a third each, and
// whoever comes after them still finds room.
type Ring struct {
	config  RingConfig
	w       io.Writer
	counts  [Sampled + 1]atomic.Uint64
	wake    chan struct{} // the first record of a batch came
	soon    chan struct{} // the batch should not wait any longer
	closing chan struct{}
	done    chan struct{}
	failed  error // of the last write; owned by run until done is closed

	mu      sync.Mutex // held for an append or a swap, never across I/O
	waiting []*Decision
	used    int            // the weight of waiting
	held    map[string]int // of it, by source
	closed  bool
}

// Fate is what became of a record that was put.
type Fate uint8

// The fates.
const (
	Written Fate = iota
	Full         // no room in the ring, or the ring was closed
	Crowded      // its source had its share of the ring
	Failed       // it did not turn to JSON, or the file could not be written
	Sampled      // left out as configured
)

// String names the fate as metrics show it.
func (f Fate) String() string {
	names := [...]string{"written", "full", "share", "write", "sampled"}
	if int(f) < len(names) {
		return names[f]
	}
	return "unknown"
}

// NewRing starts a ring over w, usually a *Lines. Close ends it.
func NewRing(w io.Writer, c RingConfig) *Ring {
	c.Size = max(c.Size, 1)
	r := &Ring{config: c, w: w, wake: make(chan struct{}, 1), soon: make(chan struct{}, 1),
		closing: make(chan struct{}), done: make(chan struct{}), held: map[string]int{}}
	go r.run()
	return r
}

// Put hands a record over and says whether it is taken care of, which one that is left out by sampling is too. The record must not
// change afterwards.
func (r *Ring) Put(d *Decision) bool {
	if r.skips(d) {
		r.counts[Sampled].Add(1)
		return true
	}
	fate, before, after := r.admit(d)
	if fate != Written {
		r.counts[fate].Add(1)
		return false
	}
	if before == 0 {
		signal(r.wake)
	}
	if soon := (r.config.Size + 3) / 4; before < soon && after >= soon {
		signal(r.soon)
	}
	return true
}

func (r *Ring) skips(d *Decision) bool {
	part := r.config.SkipDenied
	if d.Allow {
		part = r.config.SkipAllowed
	}
	return part > 0 && rand.Float64() < part
}

// admit appends the record where there is room, and gives the weight that waited before and that waits now. A record too heavy
// for its source's share of an empty ring counts as that share.
func (r *Ring) admit(d *Decision) (fate Fate, before, after int) {
	weight := min(max(d.Weight, 1), (r.config.Size+1)/2)
	r.mu.Lock()
	defer r.mu.Unlock()
	free := r.config.Size - r.used
	switch {
	case r.closed || free < weight:
		return Full, r.used, r.used
	case r.held[d.Source]+weight > free:
		return Crowded, r.used, r.used
	}
	before = r.used
	r.waiting = append(r.waiting, d)
	r.used += weight
	r.held[d.Source] += weight
	return Written, before, r.used
}

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // one signal is enough
	}
}

// Count is how many records had that fate.
func (r *Ring) Count(f Fate) uint64 { return r.counts[f].Load() }

// Dropped counts the records that should be in the file and are not.
func (r *Ring) Dropped() uint64 { return r.Count(Full) + r.Count(Crowded) + r.Count(Failed) }

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
	case <-r.soon:
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
	r.waiting, r.used = spare, 0
	clear(r.held)
	return batch
}

func (r *Ring) write(batch []*Decision) {
	var out bytes.Buffer
	lines := 0
	for i, d := range batch {
		if err := appendLine(&out, d.rendered()); err != nil {
			r.counts[Failed].Add(1)
			r.failed = fmt.Errorf("record %s: %w", d.DecisionID, err)
		} else {
			lines++
		}
		if out.Len() < writeSize && i < len(batch)-1 || out.Len() == 0 {
			continue
		}
		r.failed = r.flush(out.Bytes())
		if r.failed != nil {
			r.counts[Failed].Add(uint64(lines))
		} else {
			r.counts[Written].Add(uint64(lines))
		}
		out.Reset()
		lines = 0
	}
}

// flush writes lines; a patient ring tries again until it is closed, and then once more.
func (r *Ring) flush(lines []byte) error {
	for {
		_, err := r.w.Write(lines)
		if err == nil || !r.config.Patient {
			return err
		}
		select {
		case <-r.closing:
			_, err = r.w.Write(lines)
			return err
		case <-time.After(flushEvery):
		}
	}
}
