package unix

import (
	"context"
	"sync"
)

// turns lets one look at a time happen for each user: who has large or slow executables waits for himself only.
type turns struct {
	mu sync.Mutex
	of map[uint32]*turn
}

// A turn is one user's.
type turn struct {
	taken   chan struct{} // holds one value while a look is under way
	wanting int           // how many hold it or wait for it; guarded by turns.mu
}

// take waits for the user's turn, until ctx ends.
func (t *turns) take(ctx context.Context, uid uint32) error {
	t.mu.Lock()
	mine, ok := t.of[uid]
	if !ok {
		mine = &turn{taken: make(chan struct{}, 1)}
		t.of[uid] = mine
	}
	mine.wanting++
	t.mu.Unlock()
	select {
	case mine.taken <- struct{}{}:
		return nil
	case <-ctx.Done():
		t.leave(uid)
		return ctx.Err()
	}
}

// give ends a turn that was taken.
func (t *turns) give(uid uint32) {
	t.mu.Lock()
	<-t.of[uid].taken
	t.mu.Unlock()
	t.leave(uid)
}

func (t *turns) leave(uid uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of[uid].wanting--; t.of[uid].wanting == 0 {
		delete(t.of, uid)
	}
}
