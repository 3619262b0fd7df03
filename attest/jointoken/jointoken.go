// Package jointoken lets a node join with a token that an operator made for it. The token's text holds where the server is, which
// roots it is known by and a seed; the seed never travels, the node signs the binding with it. Start with Text, which is what the
// operator hands over; New makes one, Attestor uses it on the node, Verifier judges it on the server.
//
// A token is bearer evidence: whoever reads the text can join in its place. It serves one node key and ends soon.
package jointoken

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/writ-dev/writ/attest"
)

// Method is the method's name.
const Method = "join_token"

// SeedSize is the length of a seed in bytes.
const SeedSize = ed25519.SeedSize

// Seed is a token's secret. It prints as [key], whatever prints it.
type Seed [SeedSize]byte

const redacted = "[key]"

// String is [key].
func (Seed) String() string { return redacted }

// Format prints [key] for every verb.
func (Seed) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue is [key].
func (Seed) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText gives [key], so that no encoder shows the seed either.
func (Seed) MarshalText() ([]byte, error) { return []byte(redacted), nil }

func (s Seed) private() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(s[:]) }

// Text is what a token says to the node that joins with it. Encode writes it, Decode reads it.
type Text struct {
	Addresses []string            // of the servers, host:port, in the order to try them
	Pins      [][sha256.Size]byte // SHA-256 of the public key (SubjectPublicKeyInfo) of each root the server may be known by
	ID        string              // names the token on the server; 32 lower-case hex digits, no secret
	Expires   time.Time           // to the second
	Seed      Seed
}

// Request is what an operator asks of a token.
type Request struct {
	Addresses []string
	Pins      [][sha256.Size]byte
	TTL       time.Duration
	Name      string       // of the node that shall join, which becomes its selector name:NAME; empty: any
	CIDR      netip.Prefix // from where it may join; the zero value: from anywhere
	Server    string       // the name of the server that makes it
	Now       time.Time
}

// New makes a token: the record that the store keeps, which holds the seed's public key only, and the text for the operator,
// which is a secret.
func New(r Request) (attest.Token, string, error) {
	if r.TTL < time.Second {
		return attest.Token{}, "", fmt.Errorf("token ttl %s is under a second", r.TTL)
	}
	if err := checkName(r.Name); err != nil {
		return attest.Token{}, "", err
	}
	var id [idSize / 2]byte
	t := Text{Addresses: r.Addresses, Pins: r.Pins, Expires: r.Now.Add(r.TTL).Truncate(time.Second).UTC()}
	_, _ = rand.Read(id[:]) // never fails: crypto/rand ends the process instead
	_, _ = rand.Read(t.Seed[:])
	t.ID = hex.EncodeToString(id[:])
	text, err := Encode(t)
	if err != nil {
		return attest.Token{}, "", err
	}
	return attest.Token{
		ID: t.ID, Key: t.Seed.private().Public().(ed25519.PublicKey), Expires: t.Expires, Name: r.Name, CIDR: r.CIDR, Server: r.Server,
	}, text, nil
}

// checkName keeps what would be unreadable or ambiguous out of a selector's value.
func checkName(name string) error {
	if len(name) > 253 {
		return fmt.Errorf("node name of %d bytes is over 253", len(name))
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c >= 0x7f {
			return fmt.Errorf("node name %q holds a space or a character that is not ASCII", name)
		}
	}
	return nil
}
