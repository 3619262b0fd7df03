package server

import (
	"bytes"
	"context"
	"time"

	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
)

const (
	// catchUpPatience is how long an agent that knows more than this server waits for it to read the store.
	catchUpPatience = 5 * time.Second
	// openPatience is how long a stream may be silent before it says what the agent holds.
	openPatience = 10 * time.Second
)

// Sync implements nodev1.NodeServer: it pushes what concerns the calling node until the node, its SVID, the stream or the server ends.
func (s *nodeAPI) Sync(stream nodev1.Node_SyncServer) error {
	ctx := stream.Context()
	node, err := s.caller(ctx)
	if err != nil {
		return err
	}
	open, err := s.opened(stream)
	if err != nil {
		return err
	}
	held := registration.Revision{Number: open.Revision, Chain: open.Chain}
	resumed, err := s.knows(ctx, held)
	if err != nil {
		return err
	}
	f, err := s.registry.enter(node.ID)
	if err != nil {
		return err
	}
	defer s.registry.leave(f)
	var since []registration.Change
	if resumed {
		if since, resumed, err = s.since(ctx, node, held.Number); err != nil {
			return err
		}
	}
	ended := time.NewTimer(s.lifeOf(ctx)) // an agent that renewed has another connection
	defer ended.Stop()
	go s.takeAcks(stream, f) // ends with the stream, which ends when this returns
	for messages := s.registry.open(f, since, resumed); ; messages = s.registry.next(f) {
		if err := s.send(stream, f, messages); err != nil {
			return err
		}
		select {
		case <-f.wake:
		case <-f.over:
			return f.why()
		case <-ended.C:
			return errEnded(nil)
		case <-ctx.Done():
			return ctx.Err()
		case <-s.stopped:
			return errStopping()
		}
	}
}

// opened waits for a stream's first message.
func (s *nodeAPI) opened(stream nodev1.Node_SyncServer) (*nodev1.SyncOpen, error) {
	type received struct {
		*nodev1.SyncRequest
		err error
	}
	came := make(chan received, 1)
	go func() { // ends with the stream at the latest
		m, err := stream.Recv()
		came <- received{m, err}
	}()
	timer := time.NewTimer(openPatience)
	defer timer.Stop()
	select {
	case first := <-came:
		if open := first.GetOpen(); first.err != nil || open.GetVersion() == 1 {
			return open, first.err
		}
		return nil, fault.New(fault.Invalid, nil, "the stream does not begin with an open message of version 1")
	case <-timer.C:
		return nil, fault.New(fault.Invalid, nil, "the stream did not begin within 10 s")
	case <-s.stopped:
		return nil, errStopping()
	}
}

// send waits for an agent that does not read, but not beyond the stream's end.
func (s *nodeAPI) send(stream nodev1.Node_SyncServer, f *follower, messages []*nodev1.SyncResponse) error {
	if len(messages) == 0 {
		return nil
	}
	sent := make(chan error, 1)
	go func() { // ends with the stream at the latest
		for _, m := range messages {
			if err := stream.Send(m); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	select {
	case err := <-sent:
		return err
	case <-f.over:
		return f.why()
	case <-s.stopped:
		return errStopping()
	}
}

// takeAcks notes what the agent holds.
func (s *nodeAPI) takeAcks(stream nodev1.Node_SyncServer, f *follower) {
	for {
		m, err := stream.Recv()
		if err != nil {
			return
		}
		f.mu.Lock()
		f.acked = max(f.acked, m.GetAck().GetRevision())
		f.mu.Unlock()
		s.registry.announce()
	}
}

// announce wakes whoever waits for agents to catch up.
func (r *registry) announce() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.moved)
	r.moved = make(chan struct{})
}

// knows says whether what an agent holds is of this store's history, and waits until this server has read as much of it. Not known,
// with no error, means a snapshot: the agent holds nothing, or what a store held that was restored since.
func (s *nodeAPI) knows(ctx context.Context, held registration.Revision) (bool, error) {
	if held.Number == 0 {
		return false, nil
	}
	chain, err := s.config.Store.Feed.ChainAt(ctx, held.Number)
	if fault.Is(err, fault.NotFound) || err == nil && !bytes.Equal(chain, held.Chain) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, s.registry.await(ctx, held.Number, catchUpPatience)
}

// since gives what changed after a revision, as far as the store has it now, and waits until this server has read it. Not resumed,
// with no error, means a snapshot: too much happened, or the node's selectors changed.
func (s *nodeAPI) since(ctx context.Context, n attest.Node, after uint64) (since []registration.Change, resumed bool, err error) {
	for {
		changes, err := s.config.Store.Feed.Changes(ctx, after, 1000)
		if err != nil {
			return nil, false, err
		}
		if len(changes) == 0 || len(since) > 10_000 {
			return since, len(changes) == 0, s.registry.await(ctx, after, catchUpPatience)
		}
		for _, c := range changes {
			if c.Kind == kindNode && c.ID == n.ID.String() {
				return nil, false, nil
			}
		}
		since, after = append(since, changes...), changes[len(changes)-1].Revision.Number
	}
}

// await waits until the registry holds a revision.
func (r *registry) await(ctx context.Context, revision uint64, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		r.mu.RLock()
		at, moved := r.revision.Number, r.moved
		r.mu.RUnlock()
		if at >= revision {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fault.New(fault.Unavailable, ctx.Err(), "this server has not read that revision yet; try again")
		}
	}
}

func errStopping() error { return fault.New(fault.Unavailable, nil, "the server is stopping") }

func errEvicted() error {
	return fault.New(fault.Unauthenticated, nil, "the node was evicted").With(fault.NodeUnknown, "let the node attest anew")
}
