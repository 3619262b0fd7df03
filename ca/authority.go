// Package ca is the signing authority of one trust domain: a self-signed root, this server's issuing certificate under it, and
// what they sign. Start with Authority: Draft makes the exact certificate that will be signed, Issue signs it. JWTAuthority does
// the same for tokens, with keys of its own.
//
// The caller records a Draft between the two, so that nothing is signed that nobody knows of. A Profile says what is allowed, a
// Request what is wanted.
package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/zmap/zlint/v3/lint"

	"github.com/writ-dev/writ/ca/keystore"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/svid"
)

// What an AuthorityRecord's Use, Tier and State may be.
const (
	UseX509 = "x509"
	UseJWT  = "jwt"

	TierRoot    = "root"
	TierIssuing = "issuing"

	StatePrepared = "prepared" // in the bundle, signs nothing yet
	StateActive   = "active"   // signs
	StateOld      = "old"      // signs no more; what it signed still counts
	StateTainted  = "tainted"  // what it signed has to be replaced
	StateRevoked  = "revoked"  // what it signed counts no more
)

// AuthorityRecord is what is remembered of an authority: what a restart has to find, and what the other servers have to know.
type AuthorityRecord struct {
	ID          string // the certificate's subject key id, lower-case hex; of a JWT key likewise, its `kid`
	Server      string // whose it is
	Use         string // x509 or jwt
	Tier        string // root or issuing; empty for JWT keys, which have no chain
	State       string // prepared, active, old, tainted, revoked; removed for JWT keys
	Certificate []byte // DER; of a JWT key the public key, PKIX
	KeyName     string // in that server's keystore; empty when the key ends with the process
	NotBefore   time.Time
	NotAfter    time.Time
}

// Ledger remembers the authorities of the trust domain, all servers' together.
type Ledger interface {
	// Authorities gives every record, in any order.
	Authorities(ctx context.Context) ([]AuthorityRecord, error)
	// RecordAuthority writes a record, in place of the one of the same ID if there is one. When it returns the record is as
	// durable as the store is: the certificate signs only from then on.
	RecordAuthority(ctx context.Context, r AuthorityRecord) error
}

// Config is what an Authority is made of. TrustDomain, Server, Keys and Ledger are required.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Server      string // this server's name, as in /writ/server/NAME
	Keys        keystore.Store
	Ledger      Ledger
	Now         func() time.Time // time.Now where nil
	Log         *slog.Logger     // discards where nil
	TTL         time.Duration    // of the issuing certificate; 24h where zero
	RootTTL     time.Duration    // ten years where zero
}

// Authority signs for one trust domain, on one server. Its methods may be called from several goroutines.
type Authority struct {
	config Config
	lints  lint.Registry
	root   *issuer // set by New and never again

	mu      sync.RWMutex     // never held over a signature or the ledger
	active  *issuer          // signs leaves
	former  []retiring       // replaced a moment ago, oldest first; only Run changes it
	known   map[string]known // by ID: the x509 authorities of all servers
	written uint64           // how often this process has added to known
}

// known is a record with its certificate read.
type known struct {
	AuthorityRecord
	cert *x509.Certificate
}

// New loads this server's authorities from the ledger. Where there are none, or their keys ended with the last process, it makes
// them; what was there before stays in the bundle while anything it signed may live.
func New(ctx context.Context, c Config) (*Authority, error) {
	c, err := c.complete()
	if err != nil {
		return nil, err
	}
	rules, err := lintRules()
	if err != nil {
		return nil, fmt.Errorf("choose lints: %w", err)
	}
	a := &Authority{config: c, lints: rules}
	if err := a.Reload(ctx); err != nil {
		return nil, err
	}
	if a.root, err = a.findRoot(ctx); err != nil {
		return nil, fmt.Errorf("set up root: %w", err)
	}
	if a.active, err = a.findIssuing(ctx); err != nil {
		return nil, fmt.Errorf("set up issuing certificate: %w", err)
	}
	return a, nil
}

// complete fills in what was left out and refuses what cannot work.
func (c Config) complete() (Config, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.TTL == 0 {
		c.TTL = 24 * time.Hour
	}
	if c.RootTTL == 0 {
		c.RootTTL = 10 * 365 * 24 * time.Hour
	}
	_, err := spiffeid.FromSegments(c.TrustDomain, "writ", "server", c.Server)
	switch {
	case c.Keys == nil || c.Ledger == nil:
		return c, errors.New("set up authority: no keystore or no ledger")
	case c.TrustDomain.IsZero():
		err = errors.New("there is no trust domain")
	case err != nil:
		err = fmt.Errorf("server name %q: %w", c.Server, err)
	case c.TTL < 10*time.Second:
		err = errors.New("ca.ttl is under 10s")
	case c.RootTTL <= c.TTL:
		err = errors.New("ca.root_ttl is not longer than ca.ttl")
	default:
		err = svid.CheckServable(c.TrustDomain)
	}
	if err != nil {
		return c, fault.New(fault.Invalid, nil, "the authority cannot be set up").Because(err.Error()).With(fault.BadConfig, "")
	}
	return c, nil
}

// ID names the authority that signs now: the subject key id of the issuing certificate, lower-case hex.
func (a *Authority) ID() string { return a.current().id }

func (a *Authority) current() *issuer {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.active
}
