// Package member is a node's membership of its trust domain, seen from the node: which files make it the node that it is, which
// server it believes, how it proves itself, and how it asks for workloads' SVIDs. Start with Node.
package member

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/durable"
	"github.com/writ-dev/writ/internal/fault"
)

// Config is what a Node is made of; agent.Config says what each field means.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	DataDir     string
	Server      string
	Roots       []byte
	Pins        [][32]byte
	Attestors   []attest.Attestor
	Now         func() time.Time
	Log         *slog.Logger
}

// Node is this node in its trust domain. All methods are safe to call concurrently, but for Prove and Join, which one goroutine
// calls.
type Node struct {
	config     Config
	folder     folder
	nodeKey    *ecdsa.PrivateKey
	nodeKeyDER []byte              // its public half, PKIX
	configured []*x509.Certificate // Config.Roots, read

	disk sync.Mutex // one writer of the bundle file at a time; no reader waits for it

	mu      sync.Mutex
	held    *SVID
	renewed chan struct{} // closed and replaced when held is
	first   []*nodev1.SyncResponse
	roots   []*x509.Certificate // of the bundle file
}

// New reads the data directory. It makes the directory and the node key the first time.
func New(c Config) (*Node, error) {
	n := &Node{config: c, folder: folder(c.DataDir), renewed: make(chan struct{})}
	if c.DataDir == "" {
		return nil, misconfigured(nil, "the agent has no data directory", "set data_dir")
	}
	if err := durable.MakeFolder(c.DataDir, 0o700); err != nil {
		return nil, n.folder.refuse(err)
	}
	var err error
	if len(c.Roots) > 0 {
		if n.configured, err = parsePEM(c.Roots); err != nil {
			return nil, misconfigured(err, "the configured bundle cannot be read", "give a file of PEM certificates")
		}
	}
	if n.nodeKey, err = n.folder.nodeKey(); err != nil {
		return nil, err
	}
	if n.nodeKeyDER, err = x509.MarshalPKIXPublicKey(n.nodeKey.Public()); err != nil {
		return nil, err
	}
	if n.held, err = n.folder.svid(); err != nil {
		return nil, err
	}
	n.roots, err = n.folder.roots()
	return n, err
}

func misconfigured(cause error, what, fix string) error {
	return fault.New(fault.Invalid, cause, what).With(fault.BadConfig, fix)
}

// Current gives the agent SVID, nil before the first admission, and a channel that is closed when there is another.
func (n *Node) Current() (*SVID, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.held, n.renewed
}

// TakeSync gives the first sync that came with the last admission, once.
func (n *Node) TakeSync() []*nodev1.SyncResponse {
	n.mu.Lock()
	defer n.mu.Unlock()
	first := n.first
	n.first = nil
	return first
}

// Domain is the configured trust domain or else that of the SVID; zero when neither is there.
func (n *Node) Domain() spiffeid.TrustDomain {
	if held, _ := n.Current(); n.config.TrustDomain.IsZero() && held != nil {
		return held.ID.TrustDomain()
	}
	return n.config.TrustDomain
}

// RenewAt is when the agent SVID is due; at once when there is none.
func (n *Node) RenewAt() time.Time {
	if held, _ := n.Current(); held != nil {
		return held.renewAt(n.nodeKeyDER)
	}
	return time.Time{}
}

// Servers are the configured addresses, or else those that a join left.
func (n *Node) Servers() []string {
	if n.config.Server == "" {
		if held, _ := n.Current(); held != nil {
			return held.servers
		}
		return nil
	}
	list := strings.Split(n.config.Server, ",")
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	return list
}

// trust is the held bundle; the configured roots and pins count only until there is one, since they do not follow a rotation.
func (n *Node) trust() Trust {
	t := Trust{Domain: n.Domain(), Now: n.config.Now}
	n.mu.Lock()
	defer n.mu.Unlock()
	if t.Roots = n.roots; len(t.Roots) == 0 {
		t.Roots, t.Pins = n.configured, n.config.Pins
	}
	return t
}

// Dial prepares a connection to a server that shows the agent SVID.
func (n *Node) Dial(address string, shown *SVID) (*Server, error) {
	return dial(address, n.trust(), shown.certificate())
}

// Check says what no waiting would mend.
func (n *Node) Check() error {
	held, _ := n.Current()
	t := n.trust()
	switch {
	case held == nil && len(n.config.Attestors) == 0:
		return misconfigured(nil, "this node has not joined", "writ agent join -, or an attest section")
	case held != nil && held.ID.TrustDomain() != n.Domain():
		return misconfigured(nil, fmt.Sprintf("%s holds a node of %s, not of %s", n.config.DataDir, held.ID.TrustDomain().Name(),
			n.Domain().Name()), "set trust_domain or data_dir right")
	case len(n.Servers()) == 0:
		return misconfigured(nil, "no server address is known", "set server: HOST:PORT")
	case len(t.Roots) == 0 && len(t.Pins) == 0:
		return misconfigured(nil, "nothing says by what to believe the server", "set bundle: FILE")
	}
	return nil
}

// Join attests with the configured attestors. The pins and roots of the configuration count here even beside a held bundle. It tries
// again while no server answers, a few times.
func (n *Node) Join(ctx context.Context) error {
	if len(n.config.Attestors) == 0 {
		return misconfigured(nil, "there is nothing to join with", "writ agent join - reads a join token")
	}
	n.mu.Lock()
	roots := slices.Concat(n.roots, n.configured)
	n.mu.Unlock()
	t := Trust{Domain: n.config.TrustDomain, Roots: roots, Pins: n.config.Pins, Now: n.config.Now}
	retry := NewBackoff(100*time.Millisecond, time.Second)
	for {
		err := n.proveBy(ctx, n.config.Attestors, t)
		if err == nil || TurnedAway(err) || HasCode(err, fault.ServerUnproved) || retry.tries == 4 {
			return err
		}
		select {
		case <-time.After(retry.Next()):
		case <-ctx.Done():
			return err
		}
	}
}

// Prove renews or attests, whichever is called for, and attests where renewing finds that the node is not known.
func (n *Node) Prove(ctx context.Context) error {
	held, _ := n.Current()
	able := len(n.config.Attestors) > 0
	if held == nil || able && held.Reattestable && !held.Valid(n.config.Now()) {
		return n.proveBy(ctx, n.config.Attestors, n.trust())
	}
	err := n.proveBy(ctx, nil, n.trust())
	if able && HasCode(err, fault.NodeUnknown) {
		n.config.Log.WarnContext(ctx, "the server does not know this node, it attests anew", "agent_id", held.ID.String())
		return n.proveBy(ctx, n.config.Attestors, n.trust())
	}
	return err
}

// proveBy tries each server in turn; no attestors means renewal. It goes on to the next only where one did not answer.
func (n *Node) proveBy(ctx context.Context, attestors []attest.Attestor, t Trust) error {
	err := misconfigured(nil, "no server address is known", "set server: HOST:PORT")
	for _, address := range n.Servers() {
		if err = n.proveAt(ctx, address, attestors, t); err == nil || TurnedAway(err) || ctx.Err() != nil {
			return err
		}
	}
	return err
}

func (n *Node) proveAt(ctx context.Context, address string, attestors []attest.Attestor, t Trust) error {
	held, _ := n.Current()
	q := asking{attestors: attestors, held: held, nodeKey: n.nodeKey}
	var generation uint64
	if len(attestors) == 0 {
		generation = held.Generation + 1
	}
	var err error
	if q.svidKey, err = n.folder.pending(generation, held); err != nil {
		return fmt.Errorf("keep the key of generation %d: %w", generation, err)
	}
	server, err := dial(address, t, nil)
	if err != nil {
		return err
	}
	defer server.Close()
	got, err := q.prove(ctx, server, t)
	if err != nil {
		return err
	}
	return n.admit(ctx, got)
}

// admit puts on the disk what was given, the roots first: an SVID without roots could believe no server.
func (n *Node) admit(ctx context.Context, got admitted) error {
	if err := n.KeepRoots(got.roots); err != nil {
		return err
	}
	got.svid.servers = n.Servers()
	if err := n.folder.keep(got.svid); err != nil {
		return fmt.Errorf("keep the agent SVID: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held, n.first = got.svid, got.sync
	close(n.renewed)
	n.renewed = make(chan struct{})
	n.config.Log.InfoContext(ctx, "node proved itself", "agent_id", got.svid.ID.String(),
		"serial", got.svid.leaf.SerialNumber.Text(16), "not_after", got.svid.NotAfter)
	return nil
}

// KeepRoots writes the roots of our trust domain when they are others than before. Without any it keeps those it has: no roots
// would be no way back.
func (n *Node) KeepRoots(roots []*x509.Certificate) error {
	n.disk.Lock()
	defer n.disk.Unlock()
	n.mu.Lock()
	same := slices.EqualFunc(n.roots, roots, (*x509.Certificate).Equal)
	n.mu.Unlock()
	if same || len(roots) == 0 {
		return nil
	}
	if err := n.folder.keepRoots(roots); err != nil {
		return fmt.Errorf("keep the bundle: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.roots = roots
	return nil
}
