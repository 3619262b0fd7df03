// Package agent is the node daemon: it holds the node's own SVID, follows the server's Sync stream, keeps an X.509-SVID for every
// entry that this node may serve, and tells subscribers when what their workload holds has changed. Start with Agent; Run is the
// daemon, Subscribe is what the surfaces below (workloadapi, sds) call.
//
// The agent answers from what it holds: nothing that a workload asks for waits on the server, except the first SVID of an entry.
// Workload keys are made here and never leave, neither towards the server nor onto the disk.
package agent

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/agent/member"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
	"github.com/writ-dev/writ/svid"
)

// Config is what an Agent is made of. DataDir is required, and so is a way to know the server: either what a join left in
// DataDir, or Server with Roots or Pins.
type Config struct {
	TrustDomain spiffeid.TrustDomain // zero: the one that DataDir holds, or that of the pinned server
	DataDir     string               // 0700; made when it is not there
	Server      string               // host:port, several with commas between; empty: those that DataDir holds
	Roots       []byte               // PEM certificates under which a server is believed while DataDir holds no bundle
	Pins        [][32]byte           // SHA-256 of a root's public key (SPKI), likewise

	Attestors []attest.Attestor         // all of them prove the node, in one stream and one binding
	Workload  []attest.WorkloadAttestor // all of them are asked about each caller

	Now        func() time.Time      // nil: time.Now
	Log        *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // nil: no metrics
}

// An Agent is the daemon of one node in one trust domain. All methods are safe to call concurrently; Join and Run are called once.
type Agent struct {
	config  Config
	log     *slog.Logger
	now     func() time.Time
	node    *member.Node
	cache   *cache
	callers *callers
	misses  misses
	tally   *tally
	link    link

	kick     chan struct{} // capacity 1: the node shall prove itself now
	work     chan struct{} // capacity 1: there may be something to sign
	askJWTs  chan struct{} // capacity 1: there may be a JWT-SVID to ask for
	synced   chan struct{} // closed by syncOnce
	syncOnce sync.Once

	mu       sync.Mutex
	trouble  error          // why the server turned this node away; guarded by mu
	unproven error          // why the node could not prove itself at its last try; guarded by mu
	running  sync.WaitGroup // added to under mu and only before stopped is closed
	stopped  chan struct{}  // closed under mu
	stopping bool           // guarded by mu
}

// New reads what the data directory holds and gives an Agent that has not yet spoken to anybody.
func New(c Config) (*Agent, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	node, err := member.New(member.Config{TrustDomain: c.TrustDomain, DataDir: c.DataDir, Server: c.Server, Roots: c.Roots, Pins: c.Pins,
		Attestors: c.Attestors, Now: c.Now, Log: c.Log})
	if err != nil {
		return nil, err
	}
	a := &Agent{config: c, log: c.Log, now: c.Now, node: node, cache: newCache(node.Domain()), callers: newCallers(), kick: make(chan struct{}, 1),
		work: make(chan struct{}, 1), askJWTs: make(chan struct{}, 1), synced: make(chan struct{}), stopped: make(chan struct{})}
	a.tally = newTally(a)
	return a, a.tally.register(c.Registerer)
}

// Join attests the node with the configured attestors, writes what it was given into the data directory, and returns. It is
// `writ agent join`. A node that had joined before joins anew, with the same node key. It tries again while no server answers, for
// as long as ctx lets it and a few times at most.
func (a *Agent) Join(ctx context.Context) error { return a.node.Join(ctx) }

// Run attests where it must, follows the server and keeps SVIDs fresh until ctx ends, which is no error. Every goroutine that it
// started has ended when it returns, and so has every subscription.
func (a *Agent) Run(ctx context.Context) error {
	if err := a.node.Check(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, work := range []func(context.Context){a.keepProven, a.follow, a.keepSigned, a.keepJWTs} {
		a.goWhileRunning(func() { work(ctx) })
	}
	<-ctx.Done()
	a.mu.Lock()
	if !a.stopping {
		a.stopping = true
		close(a.stopped)
	}
	a.mu.Unlock()
	a.running.Wait()
	return nil
}

// goWhileRunning starts a goroutine that Run waits for; it says false once the agent stops.
func (a *Agent) goWhileRunning(work func()) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.stopping {
		a.running.Go(work)
	}
	return !a.stopping
}

// poke lets the signer look.
func (a *Agent) poke() { wake(a.work) }

// wake tells a loop that there may be something to do.
func wake(loop chan<- struct{}) {
	select {
	case loop <- struct{}{}:
	default:
	}
}

// setTrouble notes why the server turned this node away. A node that is banned or locked hands out no further JWT-SVID: nobody can
// take one back.
func (a *Agent) setTrouble(err error) {
	if member.HasCode(err, fault.NodeBanned) || member.HasCode(err, fault.NodeLocked) {
		a.cache.dropAllJWTs()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.trouble = err
}

func (a *Agent) troubled() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.trouble
}

func (a *Agent) setUnproven(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.unproven = err
}

func (a *Agent) whyUnproven() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.unproven
}

// Synced is closed once the entries of this node are known.
func (a *Agent) Synced() <-chan struct{} { return a.synced }

// Ready is nil when the agent can do its job now: entries are known, its own SVID is valid, the server has not turned it away,
// and no workload that is being served waits with an SVID that ended.
func (a *Agent) Ready() error {
	s := a.Status()
	switch {
	case s.Degraded != "":
		return fault.New(fault.Unavailable, a.troubled(), "the server turned this node away")
	case s.AgentID == "":
		return fault.New(fault.Unavailable, a.whyUnproven(), "the node has not proved itself yet")
	case !a.now().Before(s.NotAfter):
		return fault.New(fault.Unavailable, a.whyUnproven(), "the agent SVID has ended")
	case !s.Synced:
		return fault.New(fault.Unavailable, nil, "the agent does not know its entries yet").With(fault.AgentStarting, "see what /healthz of the agent waits for")
	case s.Ended > 0:
		return fault.New(fault.Unavailable, nil, fmt.Sprintf("%d SVIDs that workloads use have ended", s.Ended))
	}
	return nil
}

// Facts gives what holds for every holder of that SPIFFE ID, where the server told this node of it.
func (a *Agent) Facts(id spiffeid.ID) (registration.Facts, bool) {
	a.cache.mu.RLock()
	defer a.cache.mu.RUnlock()
	facts, ok := a.cache.facts[id]
	return facts, ok
}

// VerifyToken reads a JWT-SVID that verifies with the held bundle of its own trust domain, for one of the audiences.
func (a *Agent) VerifyToken(token string, audience []string) (*svid.JWT, error) {
	claimed, err := svid.ParseJWT(token)
	if err != nil {
		return nil, fault.New(fault.Invalid, err, "the token cannot be read")
	}
	bundles := map[spiffeid.TrustDomain]svid.JWTBundle{}
	if b := a.cache.bundleOf(claimed.ID.TrustDomain()); b != nil {
		bundles[b.bundle.TrustDomain] = b.bundle.JWT
	}
	verified, err := svid.VerifyJWT(token, bundles, audience, a.now())
	if err != nil {
		return nil, fault.New(fault.Unauthenticated, err, "the token does not verify")
	}
	return verified, nil
}

// VerifyPeer checks a bare leaf, as a proxy hands it over, against the held bundle and issuing certificates of its trust domain.
func (a *Agent) VerifyPeer(der []byte) (spiffeid.ID, error) {
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return spiffeid.ID{}, fault.New(fault.Invalid, err, "the peer's certificate cannot be read")
	}
	claimed, err := svid.IDFromCert(leaf)
	if err != nil {
		return spiffeid.ID{}, fault.New(fault.Unauthenticated, err, "the peer's certificate is no SVID")
	}
	// SPIFFE-ID section 3: the anchors are those of the ID's own trust domain, never all of them.
	b := a.cache.bundleOf(claimed.TrustDomain())
	if b == nil {
		return spiffeid.ID{}, fault.New(fault.Unauthenticated, nil, fmt.Sprintf("no bundle of %s is held", claimed.TrustDomain().Name()))
	}
	id, err := svid.Verify(leaf, nil, b.anchors, a.now())
	if err != nil {
		return spiffeid.ID{}, fault.New(fault.Unauthenticated, err, "the peer's certificate does not verify")
	}
	return id, nil
}
