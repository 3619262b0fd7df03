// Package agent is the node daemon: it holds the node's own SVID, follows the server's Sync stream, keeps an X.509-SVID for every
// entry that this node may serve, and tells subscribers when what their workload holds has changed. Start with Agent; Run is the
// daemon, Subscribe is what the surfaces below (workloadapi, sds) call.
//
// The agent answers from what it holds: nothing that a workload asks for waits on the server, except the first SVID of an entry.
// Private keys are made here and never leave, neither towards the server nor onto the disk.
package agent

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/registration"
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
type Agent struct{}

// New reads what the data directory holds and gives an Agent that has not yet spoken to anybody.
func New(c Config) (*Agent, error) { return nil, errors.New("agent: not written yet") }

// Join attests the node with the configured attestors, writes what it was given into the data directory, and returns. It is
// `writ agent join`.
func (a *Agent) Join(ctx context.Context) error { return nil }

// Run attests where it must, follows the server and keeps SVIDs fresh until ctx ends, which is no error. Every goroutine that it
// started has ended when it returns.
func (a *Agent) Run(ctx context.Context) error { return nil }

// Synced is closed once the entries of this node are known.
func (a *Agent) Synced() <-chan struct{} { return nil }

// Ready is nil when the agent can do its job now: entries are known, its own SVID is valid and the server has not turned it away.
func (a *Agent) Ready() error { return nil }

// Subscribe attests the process and gives what it may hold, from now on. It fails with fault.Unavailable while entries are
// unknown, and with what the workload attestors found wrong. The subscription ends with ctx, with the process, with the agent,
// or by Close, whichever is first.
func (a *Agent) Subscribe(ctx context.Context, p attest.Peer) (*Subscription, error) { return nil, nil }

// Facts gives what holds for every holder of that SPIFFE ID, where the server told this node of it.
func (a *Agent) Facts(id spiffeid.ID) (registration.Facts, bool) { return registration.Facts{}, false }

// VerifyPeer checks a bare leaf, as a proxy hands it over, against the held bundle and issuing certificates.
func (a *Agent) VerifyPeer(der []byte) (spiffeid.ID, error) { return spiffeid.ID{}, nil }

// Status is what health and `writ status` show of an agent.
type Status struct {
	AgentID       string    `json:"agent_id,omitempty"`
	TrustDomain   string    `json:"trust_domain,omitempty"`
	Generation    uint64    `json:"generation"`
	Server        string    `json:"server,omitempty"` // the address it follows now; empty: none
	Connected     bool      `json:"connected"`
	Synced        bool      `json:"synced"`
	Revision      uint64    `json:"revision"`
	Entries       int       `json:"entries"`
	SVIDs         int       `json:"svids"`   // held and valid
	Pending       int       `json:"pending"` // wanted and not held
	Subscriptions int       `json:"subscriptions"`
	NotAfter      time.Time `json:"agent_svid_not_after"` // of the agent SVID
	SafeUntil     time.Time `json:"safe_without_server_until"`
	Degraded      string    `json:"degraded,omitempty"` // why, in a sentence
}

// Status is the agent as it is now.
func (a *Agent) Status() Status { return Status{} }
