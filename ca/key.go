package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// publicKey is a key that may stand in a certificate.
type publicKey struct {
	der  []byte // SubjectPublicKeyInfo
	id   []byte // for subject and authority key identifiers
	kind string
}

// The bounds of RSA keys: beneath they are weak, above they cost verifiers too much.
const minRSABits, maxRSABits = 2048, 8192

// kindOf is the one place that says which keys are certified: P-256, P-384, and RSA of 2048 bits or more, which every client in
// the field can read. Ed25519 is not among them: Java's and Envoy's common builds refuse it.
func kindOf(key crypto.PublicKey) (string, error) {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256():
			return "P-256", nil
		case elliptic.P384():
			return "P-384", nil
		}
		return "", errors.New("elliptic curve keys must be P-256 or P-384")
	case *rsa.PublicKey:
		if key.N == nil || key.N.BitLen() < minRSABits || key.N.BitLen() > maxRSABits {
			return "", fmt.Errorf("RSA keys must have %d to %d bits", minRSABits, maxRSABits)
		}
		if key.N.Bit(0) == 0 || key.E < 65537 || key.E%2 == 0 {
			return "", errors.New("RSA keys must have an odd modulus and an odd exponent of at least 65537")
		}
		return "RSA", nil
	}
	return "", errors.New("keys must be P-256, P-384 or RSA")
}

// encodeKey refuses weak keys.
func encodeKey(key crypto.PublicKey) (publicKey, error) {
	kind, err := kindOf(key)
	if err != nil {
		return publicKey{}, err
	}
	var info, bits []byte
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		if bits, err = key.Bytes(); err == nil { // not of a point that is not on the curve
			info = slices.Concat(curveInfo[kind], bits)
		}
	case *rsa.PublicKey:
		bits = x509.MarshalPKCS1PublicKey(key)
		info, err = x509.MarshalPKIXPublicKey(key)
	}
	if err != nil {
		return publicKey{}, err
	}
	sum := sha256.Sum256(bits) // RFC 7093 section 2, method 1
	return publicKey{der: info, id: sum[:20], kind: kind}, nil
}

// curveInfo is how the SubjectPublicKeyInfo of a curve's keys begins (RFC 5480 section 2); the point ends it.
var curveInfo = map[string][]byte{
	"P-256": []byte("\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00"),
	"P-384": []byte("\x30\x76\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22\x03\x62\x00"),
}

// signatureOf says how a key of ours signs: the AlgorithmIdentifier and the hash.
func signatureOf(key crypto.PublicKey) (algorithm []byte, hash crypto.Hash, err error) {
	kind, err := kindOf(key)
	switch {
	case err != nil:
		return nil, 0, err
	case kind == "P-256":
		return ecdsaWithSHA256, crypto.SHA256, nil
	case kind == "P-384":
		return ecdsaWithSHA384, crypto.SHA384, nil
	}
	return nil, 0, errors.New("authorities sign with P-256 or P-384 keys")
}

// The AlgorithmIdentifiers of RFC 5758 section 3.2.
var (
	ecdsaWithSHA256 = ecdsaWith(2)
	ecdsaWithSHA384 = ecdsaWith(3)
)

func ecdsaWith(hash int) []byte {
	return der(func(b *cryptobyte.Builder) {
		b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, hash})
		})
	})
}

// throwAway gives a signature of a key that exists for this call only, of the curve of key: what a certificate is judged with
// before the real key moves.
func throwAway(key crypto.PublicKey) ([]byte, error) {
	like, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return nil, errors.New("authorities sign with elliptic curve keys")
	}
	other, err := ecdsa.GenerateKey(like.Curve, rand.Reader)
	if err != nil {
		return nil, err
	}
	return ecdsa.SignASN1(rand.Reader, other, make([]byte, sha256.Size))
}

// newSerial gives 128 random bits, but for the first byte: its top bit is clear, so the number is positive in 16 octets, and its
// first hex digit is not zero, so that it reads as 32 digits wherever it is printed.
func newSerial() []byte {
	serial := make([]byte, 16)
	for serial[0] < 0x10 || serial[0] > 0x7f {
		rand.Read(serial) // never fails, by its documentation
	}
	return serial
}
