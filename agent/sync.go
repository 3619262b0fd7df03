package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/writ-dev/writ/agent/member"
	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
)

// link is the server that the agent follows now.
type link struct {
	mu  sync.Mutex
	now *member.Server // nil: none; guarded by mu
}

func (l *link) server() *member.Server {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

func (l *link) set(r *member.Server) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now = r
}

// errRenewed ends a session whose connection still shows the agent SVID before the last renewal.
var errRenewed = errors.New("the agent SVID was renewed")

// follow keeps one Sync stream to one of the servers. The first try after a break comes at once, later ones ever more slowly.
func (a *Agent) follow(ctx context.Context) {
	soon, late := member.NewBackoff(100*time.Millisecond, 10*time.Second), member.NewBackoff(10*time.Second, 5*time.Minute)
	for try := int(member.Chance() * 1024); ctx.Err() == nil; {
		held, renewed := a.node.Current()
		if held == nil || !held.Valid(a.now()) {
			a.until(ctx, a.now().Add(time.Second), renewed) // or the clock was wrong, and the one that is held is valid again
			continue
		}
		a.cache.setDomain(held.ID.TrustDomain())
		a.applyFirst(ctx)
		addresses := a.node.Servers()
		heard, err := a.session(ctx, addresses[try%len(addresses)], held, renewed)
		if heard {
			soon.Reset()
			late.Reset()
		}
		if errors.Is(err, errRenewed) || ctx.Err() != nil {
			continue
		}
		a.tally.breaks.Inc()
		a.doubt(ctx, "follow the server", err)
		try++
		wait := soon.Next()
		if member.TurnedAway(err) {
			wait = late.Next() // proving itself anew may mend it, and then renewed wakes us
		}
		a.until(ctx, a.now().Add(wait), renewed)
	}
}

// applyFirst takes the first sync that came with an admission, so that serving waits for no further round trip.
func (a *Agent) applyFirst(ctx context.Context) {
	if messages := a.node.TakeSync(); len(messages) > 0 && !messages[len(messages)-1].GetMore() {
		if err := a.applySync(ctx, messages); err != nil {
			a.log.WarnContext(ctx, "the first sync is asked for again", "err", err)
		}
	}
}

// session follows one server until the stream breaks. It says whether the server was heard at all.
func (a *Agent) session(ctx context.Context, address string, held *member.SVID, renewed <-chan struct{}) (heard bool, err error) {
	server, err := a.node.Dial(address, held)
	if err != nil {
		return false, err
	}
	defer server.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel(nil)
	watch.Go(func() {
		select {
		case <-renewed:
			cancel(errRenewed)
		case <-ctx.Done():
		}
	})
	for ctx.Err() == nil { // once more from nothing when what is held is not what the server thinks
		err = a.stream(ctx, server, &heard)
		if !errors.Is(err, errDigest) {
			break
		}
		a.log.WarnContext(ctx, "a snapshot is asked for", "err", err)
	}
	a.link.set(nil)
	if cause := context.Cause(ctx); cause != nil {
		return heard, cause
	}
	return heard, server.Why(err)
}

// stream opens Sync from what is held and applies what comes.
func (a *Agent) stream(ctx context.Context, server *member.Server, heard *bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := server.Sync(ctx)
	if err != nil {
		return err
	}
	at := a.cache.at()
	open := &nodev1.SyncOpen{Version: 1, Revision: at.Number, Chain: at.Chain}
	if err := stream.Send(&nodev1.SyncRequest{Step: &nodev1.SyncRequest_Open{Open: open}}); err != nil {
		_, err = stream.Recv()
		return err
	}
	a.link.set(server)
	a.poke()
	wake(a.askJWTs)
	var messages []*nodev1.SyncResponse
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		*heard = true
		if messages = append(messages, m); m.GetMore() {
			continue
		}
		if err := a.applySync(ctx, messages); err != nil {
			return err
		}
		messages = nil
		ack := &nodev1.SyncAck{Revision: m.GetRevision()}
		_ = stream.Send(&nodev1.SyncRequest{Step: &nodev1.SyncRequest_Ack{Ack: ack}}) // Recv tells why it did not go
	}
}

// applySync makes the messages of one revision what is held. A digest that does not fit sends us back to nothing held, once: after
// a snapshot there is nothing better to ask for.
func (a *Agent) applySync(ctx context.Context, messages []*nodev1.SyncResponse) error {
	u, bad := readUpdate(messages)
	if bad != nil {
		a.log.ErrorContext(ctx, "the server sent what cannot be read", "revision", u.revision.Number, "err", bad)
	}
	err := a.cache.apply(u, a.now())
	if errors.Is(err, errDigest) {
		a.tally.mismatches.Inc()
		if !u.snapshot {
			a.cache.distrust()
			return err
		}
		a.log.ErrorContext(ctx, "the digest of a snapshot does not fit", "revision", u.revision.Number, "err", err)
	}
	a.setTrouble(nil)
	if own := a.cache.bundleOf(a.node.Domain()); own != nil {
		if err := a.node.KeepRoots(own.anchors.Roots); err != nil {
			a.log.ErrorContext(ctx, "the bundle could not be kept", "err", err)
		}
	}
	if a.cache.isKnown() {
		a.syncOnce.Do(func() { close(a.synced) })
	}
	a.poke()
	wake(a.askJWTs)
	return nil
}

// distrust makes the next open ask for a snapshot; what is held is served meanwhile.
func (c *cache) distrust() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.revision = registration.Revision{}
}

func (c *cache) isKnown() bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.known
}

// doubt logs why the server did not do as asked, and lets the node prove itself where the server does not take it for what it is.
func (a *Agent) doubt(ctx context.Context, doing string, err error) {
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	a.log.WarnContext(ctx, "the server did not serve", "err", errors.Join(errors.New(doing), err))
	kind := fault.KindOf(err)
	if member.HasCode(err, fault.ServerUnproved) || kind != fault.Unauthenticated && kind != fault.Denied && !member.HasCode(err, fault.NodeUnknown) {
		return
	}
	if !member.HasCode(err, fault.NodeUnknown) {
		a.setTrouble(err)
	}
	select {
	case a.kick <- struct{}{}:
	default:
	}
}
