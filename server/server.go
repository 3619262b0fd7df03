// Package server is the authority's gRPC surface: the node API, where agents prove themselves, follow the registry and have
// SVIDs signed, and the admin API. Start with Server; Attest in attest.go is how a node gets in, registry.go is what every other
// call is judged by.
//
// Nothing single-use lives in this process: what must happen once is a transaction of the store.
package server

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/ca"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
	"github.com/writ-dev/writ/svid"
)

// Config is what a Server is made of. TrustDomain, Name, Authority and every part of Store are required.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Name        string // of this server: its SPIFFE ID is /writ/server/NAME
	Authority   *ca.Authority
	JWT         *ca.JWTAuthority // nil: no JWT-SVIDs are issued
	Store       Store
	Verifiers   map[string]attest.Verifier // by the method's name in the configuration; others are turned away
	Tokens      TokenMaker                 // nil: no join tokens are made
	Addresses   []string                   // host:port of the node API, as join tokens name them
	SVIDTTL     time.Duration              // of SVIDs whose entry names none; 1h where zero
	MaxTTL      time.Duration              // the longest that an entry may ask for; none where zero
	JWTTTL      time.Duration              // of JWT-SVIDs whose entry names none; 5m where zero
	MaxJWTTTL   time.Duration              // the longest that an entry may ask for; none where zero
	OIDC        *OIDC                      // nil: nothing is served for OIDC clients; needs JWT

	Now        func() time.Time      // nil: time.Now
	Log        *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // nil: no metrics
}

// TokenMaker writes a join token for these addresses and roots (SHA-256 of each public key), with the end, node name, CIDR and server
// that are wanted, and refuses what its method cannot keep. It gives what the store keeps of it and the text that travels.
type TokenMaker func(addresses []string, pins [][32]byte, wanted attest.Token) (kept attest.Token, text string, err error)

// Store is the durable state as this package needs it: one value usually fills all parts.
type Store struct {
	Feed       Feed
	Entries    Entries
	Nodes      Nodes
	Admissions Admissions
	Operator   Operator
	Issuances  Issuances
	Ledger     ca.Ledger
}

// Feed tells what changed in the registry, in commit order.
type Feed interface {
	Newest(ctx context.Context) (registration.Revision, error)
	// Changes are those after a revision, oldest first, about limit; a revision is never cut in two.
	Changes(ctx context.Context, after uint64, limit int) ([]registration.Change, error)
	// ChainAt is fault.NotFound where this history has no such revision.
	ChainAt(ctx context.Context, revision uint64) ([]byte, error)
	// Moved is closed when the revision next moves. Take it before reading, then wait.
	Moved() <-chan struct{}
}

// Entries reads and changes registration entries.
type Entries interface {
	Entries(ctx context.Context) ([]registration.Entry, registration.Revision, error)
	EntriesNamed(ctx context.Context, names []string) ([]registration.Entry, error)
	Apply(ctx context.Context, b registration.Batch, by audit.Admin) (registration.Applied, error)
}

// Nodes reads nodes.
type Nodes interface {
	Node(ctx context.Context, id string) (attest.Node, error)
	Nodes(ctx context.Context) ([]attest.Node, error)
}

// Admissions commits what a node proved, with its audit record and its uses of evidence in one transaction.
type Admissions interface {
	Admit(ctx context.Context, a attest.Admission, record audit.Attestation) (attest.Node, error)
	Renew(ctx context.Context, n attest.Node, record audit.Attestation) (attest.Node, error)
}

// Operator commits what an operator does to nodes and tokens.
type Operator interface {
	Ban(ctx context.Context, b attest.Ban, by audit.Admin) ([]string, error)
	Evict(ctx context.Context, id string, by audit.Admin) error
	CreateToken(ctx context.Context, t attest.Token, by audit.Admin) error
}

// Issuances records the intents to sign. Each stands alone: the errors are in the order of the intents, fault.Stale where entry,
// node or authority are no longer what the caller read.
type Issuances interface {
	RecordIssuances(ctx context.Context, intents []audit.Issuance) []error
}

// Server is one authority process's API. All methods are safe to call concurrently; Run is called once.
type Server struct {
	config   Config
	id       spiffeid.ID // /writ/server/NAME
	registry *registry
	identity *identity
	limits   *limits
	proven   proven
	tally    *tally
	stopped  chan struct{} // closed when Run ends: every stream ends Unavailable
}

// New reads the registry and makes this server's own SVID. The Server follows the store once Run is called.
func New(ctx context.Context, c Config) (*Server, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.SVIDTTL == 0 {
		c.SVIDTTL = time.Hour
	}
	if c.JWTTTL == 0 {
		c.JWTTTL = 5 * time.Minute
	}
	if err := svid.CheckServable(c.TrustDomain); err != nil {
		return nil, fault.New(fault.Invalid, err, "trust domain").With(fault.BadConfig, "choose another name as `trust_domain`")
	}
	id, err := spiffeid.FromSegments(c.TrustDomain, "writ", "server", c.Name)
	if err != nil {
		return nil, fault.New(fault.Invalid, err, "server name").With(fault.BadConfig, "choose another `name`")
	}
	if c.OIDC != nil {
		if _, err := CheckIssuer(c.OIDC.Issuer); err != nil || c.JWT == nil {
			return nil, fault.New(fault.Invalid, err, "OIDC issuer").With(fault.BadConfig, "set oidc.issuer to an https URL")
		}
	}
	s := &Server{config: c, id: id, stopped: make(chan struct{}), limits: newLimits()}
	s.registry = newRegistry(c)
	s.tally = newTally(c.Registerer, s.registry)
	s.identity = &identity{}
	if err := s.registry.load(ctx); err != nil {
		return nil, err
	}
	return s, s.renewIdentity(ctx)
}

// Run follows the store and renews this server's SVID until ctx ends, which is no error; then it ends every open stream with
// Unavailable. Every goroutine that it started has ended when it returns.
func (s *Server) Run(ctx context.Context) error {
	defer close(s.stopped)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.registry.follow(ctx) })
	g.Go(func() error { return s.keepIdentity(ctx) })
	g.Go(func() error { return s.watchKeys(ctx) })
	return g.Wait()
}

// Ready is nil when this server can do its job now: its registry is read without error, and its own SVID is valid.
func (s *Server) Ready() error {
	if err := s.registry.trouble(); err != nil {
		return err
	}
	if !s.config.Now().Before(s.identity.current().Leaf.NotAfter) {
		return fault.New(fault.Unavailable, nil, "this server's own SVID has ended").With(fault.AuthorityMissing, "look into the log for why it is not renewed")
	}
	return nil
}
