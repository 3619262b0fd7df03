// Package ca is the signing authority of one trust domain: a self-signed root, this server's issuing certificate under it, and
// what they sign. Start with Authority: Draft makes the exact certificate that will be signed, Issue signs it.
//
// The caller records a Draft between the two, so that nothing is signed that nobody knows of. A Profile says what is allowed, a
// Request what is wanted.
package ca

import (
	"context"
	"crypto/x509"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/ca/keystore"
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
	ID          string // the certificate's subject key id, lower-case hex
	Server      string // whose it is
	Use         string // x509 or jwt
	Tier        string // root or issuing
	State       string // prepared, active, old, tainted, revoked
	Certificate []byte // DER
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

// Bundle is what others need to verify SVIDs of this trust domain, as of now.
type Bundle struct {
	TrustDomain spiffeid.TrustDomain
	Roots       []*x509.Certificate // the trust anchors
	Issuing     []*x509.Certificate // all servers', for whoever is shown a leaf alone; anchors of nothing
}
