package attest

import (
	"crypto/sha256"
	"encoding/binary"
	"strings"
)

// ExporterLabel is the label of the TLS exporter (RFC 8446 section 7.5) that binds evidence to its connection; the context is
// empty and the length 32 bytes.
const ExporterLabel = "EXPORTER-writ-attest-v1"

// NonceSize is the length in bytes of the server's nonce, and of the exporter's output.
const NonceSize = 32

// Binding is what every key and every proof of an attestation signs, so that evidence serves over no other connection, for no
// other server, and for no other key.
type Binding struct {
	Methods     []string // in the order of the evidence; Renewal alone when the node key renews
	TrustDomain string   // the name, without scheme
	Exporter    []byte   // of this TLS connection
	Nonce       []byte   // the server's
	NodeKey     []byte   // PKIX DER
	SVIDKey     []byte   // PKIX DER
}

// Renewal stands in Binding.Methods when the node key alone proves who asks.
const Renewal = "renewal"

// Bytes is the signed form: writ/attest/v1, methods joined by plus signs, trust domain, exporter, nonce, node key and SVID key,
// each preceded by its length in four bytes, big-endian. No field can run into the next.
func (b Binding) Bytes() []byte {
	var out []byte
	for _, field := range [][]byte{[]byte("writ/attest/v1"), []byte(strings.Join(b.Methods, "+")), []byte(b.TrustDomain),
		b.Exporter, b.Nonce, b.NodeKey, b.SVIDKey} {
		out = binary.BigEndian.AppendUint32(out, uint32(len(field)))
		out = append(out, field...)
	}
	return out
}

// Digest is the SHA-256 of Bytes, for proofs that have a field for no more.
func (b Binding) Digest() [32]byte { return sha256.Sum256(b.Bytes()) }

// Holder names the node key in a Use.
func (b Binding) Holder() [32]byte { return sha256.Sum256(b.NodeKey) }
