package policy

import (
	"container/list"
	"context"
	"errors"
	"runtime"
	"sync"
	"time"
)

// The bounds of a gate. With judgements of up to half a millisecond for each place, and the transport, they keep what is accepted of
// a flood within 10 ms.
const (
	// In line, while it is calm; and for how long a line may stand before it is not.
	patience = 50 * time.Millisecond
	// In line, while it is not.
	soon = 2 * time.Millisecond
	// A line in which some wait less does not stand: callers who wait for their answers before they ask again make one as long as
	// they are many, and nothing is gained by refusing them.
	bearable = 20 * time.Millisecond
	// So many may be in line however long it takes, and both times grow to fit: otherwise an hour that is only busy would refuse many,
	// and a machine that stalls for a moment everybody.
	minLine = 5
	maxSoon = 50 * time.Millisecond
	// More than so many in line are refused whatever the line does.
	maxLine = 512
	// So are requests that are large, beyond a few: each in line is held whole, in bytes.
	maxHeld = 64 << 20
	// Judgements of a set with a network mostly wait for it and not for a core.
	networkPlaces = 256
)

// errShed is what refused callers get.
var errShed = errors.New("overload: more requests than can be judged in time")

// A gate lets no more requests of one policy set be judged at once than there are places. Whoever finds none waits in line, the
// longest waiting first. It follows CoDel (Nichols and Jacobson, Controlling Queue Delay, ACM Queue 2012) as Facebook took it to
// requests (Maurer, Fail at Scale, ACM Queue 2015): a line that goes down again is a burst, and is served; one that stands serves
// nobody better by being long, so then only who gets a place soon is let into it, and the others are refused as they come.
//
// Such a state goes on while more than one request in 16 is refused: not for one lull in a flood, and no longer for the few that
// a busy hour has too many.
type gate struct {
	breath breath

	mu     sync.Mutex    // guards what follows
	places int           // how many may be inside
	inside int           // how many are
	line   list.List     // of *waiter
	held   int           // bytes of the requests in line
	eased  bool          // somebody found a free place, or the last in line was given one, since anybody joined the line
	good   time.Time     // when that was so, or when somebody who left the line for a place had waited no longer than is bearable
	moved  time.Time     // when somebody left the line for a place, or it began
	pace   time.Duration // usual between two such moves
	paced  time.Time     // when moves, which pace is taken from, began to count
	moves  int

	stands bool      // the line does
	since  time.Time // when came and shed began to count, by which it is seen whether it still does
	came   int
	shed   int
}

// waiter is one in line. What it gets is nil with a place, or errShed; at is nil from then on.
type waiter struct {
	since time.Time
	size  int // of its request, in bytes
	at    *list.Element
	got   chan error
}

func newGate(places int) *gate { return &gate{places: places} }

// places is how many requests of a set may be judged at once.
func (m manifest) places() int {
	if len(m.Network) > 0 {
		return networkPlaces
	}
	return runtime.GOMAXPROCS(0)
}

// enter waits for a place, with a request of so many bytes. Who gets nil must leave; the error is errShed or that of ctx.
func (g *gate) enter(ctx context.Context, size int) error {
	w, wait, err := g.join(size)
	if w == nil {
		if err == nil {
			g.breath.yield()
		}
		return err
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case err = <-w.got:
	case <-timer.C:
		err = g.lose(ctx, w)
	case <-ctx.Done():
		err = g.giveUp(w, ctx.Err())
	}
	if err == nil {
		g.breath.look()
	}
	return err
}

// join gives no waiter to whom it gave a place, or refused. The clock is read only when there is no place.
func (g *gate) join(size int) (*waiter, time.Duration, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.came++
	if g.inside < g.places {
		g.inside++
		g.eased = true
		return nil, 0, nil
	}
	now := time.Now()
	if g.line.Len() == 0 && g.eased {
		g.good, g.moved, g.paced, g.moves = now, now, now, 0
	}
	g.eased = false
	g.judge(now)
	stuck := g.stands && now.Sub(g.moved) > g.patience()
	n := g.line.Len()
	if n >= maxLine || n >= minLine && (g.held+size > maxHeld || stuck || time.Duration(n+1)*g.pace > g.limit()) {
		g.shed++
		return nil, 0, errShed
	}
	w := &waiter{since: now, size: size, got: make(chan error, 1)}
	w.at = g.line.PushBack(w)
	g.held += size
	return w, g.patience(), nil
}

// leave gives the place back.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	g.admit()
}

// resize changes how many may be inside. Those who are stay.
func (g *gate) resize(places int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.places = places
	g.admit()
}

// admit fills free places from the line. Whoever waited for much longer than foreseen, mostly because it came while the line was
// calm, is refused; one of few is served even then.
func (g *gate) admit() {
	if g.line.Len() == 0 || g.inside >= g.places {
		return
	}
	now := time.Now()
	g.judge(now)
	for g.line.Len() > 0 && g.inside < g.places {
		w := g.line.Front().Value.(*waiter)
		waited := now.Sub(w.since)
		if g.stands && waited > 2*g.soon() && g.line.Len() > minLine {
			g.shed++
			g.answer(w, errShed)
			continue
		}
		g.inside++
		g.answer(w, nil)
		g.move(now)
		if waited < max(bearable, g.soon()) {
			g.good = now
		}
		g.eased = g.line.Len() == 0
	}
}

// answer takes a waiter out of the line.
func (g *gate) answer(w *waiter, got error) {
	g.line.Remove(w.at)
	g.held -= w.size
	w.at = nil
	w.got <- got
}

// lose is for a waiter whose patience is over. It is refused, unless it has few behind and before it.
func (g *gate) lose(ctx context.Context, w *waiter) error {
	g.mu.Lock()
	if w.at != nil && g.line.Len() > minLine {
		g.shed++
		g.answer(w, errShed)
	}
	g.mu.Unlock()
	select {
	case err := <-w.got:
		return err
	case <-ctx.Done():
		return g.giveUp(w, ctx.Err())
	}
}

// giveUp is for a waiter that waits no longer. A place that it was given at the same moment goes to the next.
func (g *gate) giveUp(w *waiter, why error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case w.at != nil:
		g.answer(w, why)
	case <-w.got == nil:
		g.inside--
		g.admit()
	}
	return why
}

// judge finds out whether the line stands.
func (g *gate) judge(now time.Time) {
	age := now.Sub(g.since)
	switch {
	case !g.stands:
		if now.Sub(g.good) <= g.patience() {
			return
		}
		g.stands = true
	case age < g.patience():
		return
	case age > 2*g.patience() || g.shed*16 <= g.came: // nobody was in line meanwhile, or few too many
		g.stands, g.good = false, now
	}
	g.since, g.came, g.shed = now, 0, 0
}

// move counts somebody who left the line for a place. One long pause is no pace, and neither are places that become free together.
func (g *gate) move(now time.Time) {
	g.moved = now
	if g.moves++; g.moves < 8 {
		return
	}
	took := now.Sub(g.paced) / time.Duration(g.moves)
	if g.pace == 0 {
		g.pace = took
	}
	g.pace += (min(took, 2*g.pace) - g.pace) / 4
	g.paced, g.moves = now, 0
}

// limit is how long a request that comes now may have before it.
func (g *gate) limit() time.Duration {
	if g.stands {
		return g.soon()
	}
	return g.patience()
}

func (g *gate) soon() time.Duration { return min(max(soon, minLine*g.pace), maxSoon) }

func (g *gate) patience() time.Duration { return max(patience, 2*g.soon()) }
