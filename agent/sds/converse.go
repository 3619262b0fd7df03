package sds

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/writ-dev/writ/agent"
	"github.com/writ-dev/writ/agent/peer"
)

// protocol is one side of one stream. It is used by one goroutine.
type protocol[R any] interface {
	take(R) error                           // a request
	show(agent.View) (sent bool, err error) // sends what the Envoy asked for and does not have
}

// converse runs one stream on one goroutine until the client, the process or the agent ends it. Whatever it shows comes from a view
// that was made after the caller was verified again: a request may come from what the process became.
func converse[R any](h *Handler, stream interface {
	Context() context.Context
	Recv() (R, error)
}, p protocol[R]) error {
	var work sync.WaitGroup
	defer work.Wait()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	caller, err := peer.From(ctx)
	if err != nil {
		return h.answer(ctx, err)
	}
	type opened struct {
		subscription *agent.Subscription // ends with ctx
		err          error
	}
	opening := make(chan opened, 1)
	work.Go(func() {
		subscription, err := h.subscribe(ctx, caller)
		opening <- opened{subscription, err}
	})
	requests := receive(ctx, stream.Recv)
	answered := sync.OnceFunc(func() { peer.Answered(ctx) })
	var s *agent.Subscription
	var changed, done <-chan struct{}
	var grace <-chan time.Time
	for asked, whole := false, false; ; {
		select {
		case r := <-requests:
			if errors.Is(r.err, io.EOF) {
				return nil
			}
			if r.err != nil {
				return r.err
			}
			if err := p.take(r.request); err != nil {
				return err
			}
			asked = true
		case o := <-opening:
			if o.err != nil {
				return h.answer(ctx, o.err)
			}
			s, changed, done, grace = o.subscription, o.subscription.Changed(), o.subscription.Done(), time.After(wholeWithin)
		case <-changed:
		case <-grace:
			whole = true // part of it is better than nothing
		case <-done:
			return h.answer(ctx, s.Err())
		case <-h.stopped:
			return stopping()
		}
		if s == nil || !asked {
			continue
		}
		view := s.View()
		if !view.Known {
			return h.answer(ctx, s.Err())
		}
		if whole = whole || !view.Pending; !whole {
			continue
		}
		sent, err := p.show(view)
		if err != nil {
			return err
		}
		if sent {
			answered()
		}
	}
}

type received[R any] struct {
	request R
	err     error // the last
}

// receive reads requests until the stream ends, which it does when its handler returns.
func receive[R any](ctx context.Context, recv func() (R, error)) <-chan received[R] {
	out := make(chan received[R])
	go func() {
		for {
			r, err := recv()
			select {
			case out <- received[R]{r, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return out
}
