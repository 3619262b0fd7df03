package agent

import (
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/svid"
)

// View is all that one workload may hold at one moment. Its slices are shared between views and never changed; a reader must not
// change them either.
type View struct {
	Known   bool // the entries are known; false only before the first full sync, and once the subscription has ended
	Pending bool // entitled to at least one identity whose SVID is still being signed
	// Identities are ordered as registration.Match orders them, by the age of their entry. The order holds over every update and restart,
	// so the default identity, which is the first, changes only when its own entry goes. Of several entries with the same hint only the
	// first keeps it.
	Identities []Identity
	Bundles    []Bundle // the own trust domain's first, then those that these entries federate with, by name
}

// Identity is one X.509-SVID with its key.
type Identity struct {
	Entry    string // the entry's name
	ID       spiffeid.ID
	Hint     string
	Chain    [][]byte // DER, leaf first
	Key      PrivateKey
	NotAfter time.Time
}

// Bundle is one trust domain's bundle.
type Bundle struct {
	TrustDomain spiffeid.TrustDomain
	Roots       [][]byte       // DER
	Issuing     [][]byte       // DER; own trust domain only: a proxy hands over a bare leaf
	JWT         svid.JWTBundle // without keys: no JWT-SVIDs of that trust domain can be verified
	RefreshHint time.Duration
	Sequence    uint64
}

// PrivateKey is a PKCS#8 DER key. It does not print.
type PrivateKey []byte

// String hides the key.
func (PrivateKey) String() string { return "[key]" }

// GoString hides the key.
func (PrivateKey) GoString() string { return "[key]" }

// LogValue hides the key.
func (PrivateKey) LogValue() slog.Value { return slog.StringValue("[key]") }
