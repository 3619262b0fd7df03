package policy

import (
	"math"
	"runtime"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// An evaluation that ended by then was not looked at.
	watchAfter = 10 * time.Millisecond
	watchEvery = 5 * time.Millisecond
)

// A watch ends an evaluation under which the heap grows past a limit. Go does not say what one goroutine allocates, so the growth is
// that of the process since the first look: a long evaluation may end for what another one took, and the heap is bounded whoever
// it was. Readings of a live heap are those of the last collection; one that falls behind shows in the objects that wait for it.
type watch struct {
	limit uint64
	end   func()

	mu    sync.Mutex // guards what follows
	timer *time.Timer
	first heap
	over  bool

	stopped bool
}

// watchHeap calls end once, if the heap grows by more than limit bytes before stop is called.
func watchHeap(limit uint64, end func()) *watch {
	w := &watch{limit: limit, end: end}
	w.mu.Lock() // the timer's function looks at timer
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(watchAfter, w.look)
	return w
}

func (w *watch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer == nil {
		return
	}
	now := readHeap()
	if w.first.live == 0 {
		w.first = now
	}
	if now.grown(w.first, w.limit) {
		w.over, w.timer = true, nil
		w.end()
		return
	}
	w.timer.Reset(watchEvery)
}

// stop ends the watch and says whether it had ended the evaluation. What that made is collected then: the next evaluation would take it
// for what there was before, and the heap would grow by a limit each time.
func (w *watch) stop() (over bool) {
	w.mu.Lock()
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
	over = w.over
	collect := over && !w.stopped
	w.stopped = true
	w.mu.Unlock()
	if collect {
		runtime.GC()
	}
	return over
}

// heap is what is known of the process's heap, in bytes.
type heap struct {
	live    uint64  // reachable at the last collection
	objects uint64  // reachable or not yet collected
	slack   float64 // what objects may be of live before the next collection
}

func readHeap() heap {
	samples := [...]metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/gogc:percent"}}
	metrics.Read(samples[:])
	h := heap{live: max(samples[0].Value.Uint64(), 1), objects: samples[1].Value.Uint64(), slack: math.Inf(1)}
	if percent := samples[2].Value.Uint64(); percent < math.MaxInt32 { // it is far over that when collecting by growth is off
		h.slack = 1 + float64(percent)/100
	}
	return h
}

// grown says whether more than limit bytes became reachable since before.
func (h heap) grown(before heap, limit uint64) bool {
	return h.live > before.live+limit || float64(h.objects) > h.slack*float64(max(before.live, smallHeap)+limit)
}

// smallHeap is what the collector lets a heap grow to at the least.
const smallHeap = 4 << 20
