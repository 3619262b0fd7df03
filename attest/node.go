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

// Admission is what one accepted attestation commits, all or nothing: its uses are marked and its node is written. The store
// gives the node its generation: 1 to a new one, the next to one that it knows; a Generation other than 0 is judged as a renewal's.
type Admission struct {
	Node Node
	Uses []Use
}

// Ban takes nodes out: one by its agent ID, or all that carry a selector, now and later. It covers their node keys and their
// evidence keys too, so that a banned host does not come back under another name.
type Ban struct {
	Subject string // an agent ID or method:key:value
	Reason  string
	DryRun  bool // only say whom it would touch
}
