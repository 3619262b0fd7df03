package attest

import (
	"crypto/ed25519"
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Node is a host as the server remembers it.
type Node struct {
	ID            spiffeid.ID // the agent ID
	Method        string      // methods joined by plus signs
	Key           []byte      // the node key, PKIX DER; made on the node and never certified
	SVIDKey       []byte      // the agent SVID's key of this generation, PKIX DER
	Generation    uint64      // begins at 1; each renewal names the next
	State         NodeState
	Selectors     []Selector // sorted
	Assurance     Assurance
	Reattestable  bool
	EvidenceKey   []byte // see Result
	AttestedAt    time.Time
	AttestedUntil time.Time // the agent SVID's end
	Serial        string    // the agent SVID's, lower-case hex
	Server        string    // the server that wrote the row
}

// NodeState says whether a node may ask for anything.
type NodeState string

// The states. A locked node had two copies of one data directory; a banned one was taken out by an operator.
const (
	Attested NodeState = "attested"
	Locked   NodeState = "locked"
	Banned   NodeState = "banned"
)

// Token is a join token as the store keeps it: the seed stays with whoever will join.
type Token struct {
	ID      string
	Key     ed25519.PublicKey
	Expires time.Time
	Name    string       // of the node; empty: any
	CIDR    netip.Prefix // from where; invalid: from anywhere
	Server  string       // the server that made it
}
