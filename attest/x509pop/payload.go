package x509pop

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	maxCertificates = 8
	maxCertificate  = 16 << 10
	maxSignature    = 1 << 10
)

var errPayload = errors.New("evidence is not a chain and a signature")

// payload is the evidence: a count (1 byte), so many certificates in DER, leaf first, and a signature, each after its length in four
// bytes, big-endian.
type payload struct {
	chain     [][]byte
	signature []byte
}

func (p payload) encode() []byte {
	out := []byte{byte(len(p.chain))}
	for _, der := range append(p.chain[:len(p.chain):len(p.chain)], p.signature) {
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(der))), der...)
	}
	return out
}

// decode takes exactly what encode writes.
func decode(data []byte) (payload, error) {
	if len(data) == 0 || data[0] == 0 || data[0] > maxCertificates {
		return payload{}, errPayload
	}
	var p payload
	var ok bool
	count, rest := int(data[0]), data[1:]
	for range count {
		var der []byte
		if der, rest, ok = next(rest, maxCertificate); !ok {
			return payload{}, errPayload
		}
		p.chain = append(p.chain, der)
	}
	if p.signature, rest, ok = next(rest, maxSignature); !ok || len(rest) > 0 {
		return payload{}, errPayload
	}
	return p, nil
}

func next(data []byte, most uint32) (field, rest []byte, ok bool) {
	if len(data) < 4 {
		return nil, nil, false
	}
	size := binary.BigEndian.Uint32(data)
	if size == 0 || size > most || uint64(size) > uint64(len(data)-4) {
		return nil, nil, false
	}
	return data[4 : 4+size], data[4+size:], true
}

var pss = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}

// digest says how a key signs: what of the message, and with which options. It is the one place where key types are chosen.
func digest(key crypto.PublicKey, message []byte) ([]byte, crypto.SignerOpts, error) {
	switch key := key.(type) {
	case ed25519.PublicKey:
		return message, crypto.Hash(0), nil
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256():
			sum := sha256.Sum256(message)
			return sum[:], crypto.SHA256, nil
		case elliptic.P384():
			sum := sha512.Sum384(message)
			return sum[:], crypto.SHA384, nil
		}
		return nil, nil, fmt.Errorf("certificate's key is on curve %s: it must be P-256 or P-384", key.Params().Name)
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < 2048 || bits > maxRSA {
			return nil, nil, fmt.Errorf("certificate's RSA key has %d bits: it must have 2048 to %d", bits, maxRSA)
		}
		sum := sha256.Sum256(message)
		return sum[:], pss, nil
	}
	return nil, nil, fmt.Errorf("certificate's key is a %T: it must be RSA, ECDSA or Ed25519", key)
}

// maxRSA bounds what a single check can cost, as crypto/tls does.
const maxRSA = 8192

func sign(key crypto.Signer, message []byte) ([]byte, error) {
	sum, opts, err := digest(key.Public(), message)
	if err != nil {
		return nil, err
	}
	return key.Sign(rand.Reader, sum, opts)
}

func verify(key crypto.PublicKey, message, signature []byte) error {
	sum, _, err := digest(key, message)
	if err != nil {
		return err
	}
	ok := false
	switch key := key.(type) {
	case ed25519.PublicKey:
		ok = ed25519.Verify(key, sum, signature)
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(key, sum, signature)
	case *rsa.PublicKey:
		ok = rsa.VerifyPSS(key, crypto.SHA256, sum, signature, pss) == nil
	}
	if !ok {
		return errors.New("signature does not verify")
	}
	return nil
}
