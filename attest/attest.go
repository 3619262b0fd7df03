// Package attest holds the words of attestation: a Binding ties evidence to one connection and one pair of keys, an Attestor
// makes the evidence on the node, a Verifier judges it on the server, and a Result is what was found. Start with Binding.
// Methods stand in folders below, both halves of one method side by side; attesttest is the suite that each passes.
//
// The terms are those of RFC 9334 (RATS): evidence is never believed, it is verified.
package attest

import (
	"context"
	"net/netip"
	"time"
)

// An Attestor makes a node's evidence. Attest gives the payload for this binding: a signature over Binding.Bytes, or a document
// that carries Binding.Digest where it has a field for no more. It is called once per attestation, from one goroutine.
type Attestor interface {
	Method() string
	Attest(ctx context.Context, b Binding) ([]byte, error)
}

// A Verifier judges a node's evidence. Verify must hold, for every implementer: it gives a Result only if the payload proves
// possession of what it names for exactly this binding; it trusts no field before its signature is checked; it changes nothing,
// and names in Result.Consumed what must never serve again; it is safe to call concurrently; what does not verify is
// fault.Unauthenticated, and only what could not be looked up is fault.Unavailable. attesttest.Run checks all of it.
type Verifier interface {
	Method() string
	Verify(ctx context.Context, c Claim) (Result, error)
}

// A Claim is evidence as it reached the server, for one binding.
type Claim struct {
	Binding Binding
	Payload []byte
	From    netip.Addr // the connection's other end
	Now     time.Time
}

// Result is what a Verifier found out.
type Result struct {
	Key          string     // the last part of /writ/agent/METHOD/KEY: from stable, verified fields only
	Selectors    []KeyValue // without the method's name; the server puts it before each
	Assurance    Assurance
	Reattestable bool      // the same evidence source can prove itself anew
	EvidenceKey  []byte    // what a ban covers: PKIX DER of the key that proved itself, or a digest of what stands for it
	Digest       [32]byte  // of the evidence, for the audit record
	Consumed     []Use     // the server commits these with the node and the audit record
	Until        time.Time // the evidence itself ends then; zero: it does not say
}

// A Use marks a piece of evidence as used. The store takes the same Kind and Digest again only from the same Holder, which makes
// a lost answer repeatable and every other second use Stale.
type Use struct {
	Kind    string   // the method
	Digest  [32]byte // of what may be used once
	Holder  [32]byte // SHA-256 of the node key
	Expires time.Time
}

// KeyValue is a selector before its method's name.
type KeyValue struct{ Key, Value string }

// Assurance says how hard an identity is to steal.
type Assurance uint8

// The levels, lowest first.
const (
	None     Assurance = iota // nothing was proved
	Bearer                    // whoever holds the bytes
	KeyFile                   // a key in a file
	Platform                  // signed by the platform and bound to our nonce
	Hardware                  // a key that hardware does not give away
)
