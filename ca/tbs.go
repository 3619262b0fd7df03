package ca

import (
	"crypto/x509"
	"encoding/asn1"
	"math/bits"
	"time"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// certificate is all that stands in one. crypto/x509 would verify what it has just signed and encode every part anew, which is
// several times the cost of the signature; here most parts are bytes already. What comes out is what crypto/x509 makes of the
// same values, byte for byte.
type certificate struct {
	profile   Profile
	by        *issuer
	serial    []byte
	notBefore time.Time
	notAfter  time.Time
	subject   []byte // DER; emptyName for leaves
	key       publicKey
	dns       []string
	uri       string
}

var emptyName = []byte{0x30, 0x00}

// tbs is the TBSCertificate of RFC 5280 section 4.1.
func (c *certificate) tbs() ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, 1024))
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(casn1.Tag(0).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) { b.AddASN1Int64(2) })
		b.AddASN1(casn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(c.serial) })
		b.AddBytes(c.by.algorithm)
		b.AddBytes(c.by.name)
		b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addTime(b, c.notBefore)
			addTime(b, c.notAfter)
		})
		b.AddBytes(c.subject)
		b.AddBytes(c.key.der)
		b.AddASN1(casn1.Tag(3).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) {
			b.AddASN1(casn1.SEQUENCE, c.addExtensions)
		})
	})
	return b.Bytes()
}

func (c *certificate) addExtensions(b *cryptobyte.Builder) {
	b.AddBytes(c.profile.extensions)
	addExtension(b, oidSubjectKeyID, false, func(b *cryptobyte.Builder) { b.AddASN1OctetString(c.key.id) })
	addExtension(b, oidAuthorityKeyID, false, func(b *cryptobyte.Builder) { // in a root's certificate, its own
		b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(casn1.Tag(0).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(c.by.keyID) })
		})
	})
	// RFC 5280 section 4.2.1.6: critical if and only if the subject is empty.
	addExtension(b, oidSubjectAltName, len(c.subject) == len(emptyName), func(b *cryptobyte.Builder) {
		b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, name := range c.dns {
				b.AddASN1(casn1.Tag(2).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(name)) })
			}
			b.AddASN1(casn1.Tag(6).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(c.uri)) })
		})
	})
}

// assemble joins signed bytes and signature to a Certificate.
func assemble(tbs, algorithm, signature []byte) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+len(algorithm)+len(signature)+16))
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddBytes(algorithm)
		b.AddASN1BitString(signature)
	})
	return b.Bytes()
}

// addTime follows RFC 5280 section 4.1.2.5: UTCTime until 2049.
func addTime(b *cryptobyte.Builder, t time.Time) {
	if t = t.UTC(); t.Year() < 2050 {
		b.AddASN1UTCTime(t)
		return
	}
	b.AddASN1GeneralizedTime(t)
}

func addExtension(b *cryptobyte.Builder, oid asn1.ObjectIdentifier, critical bool, value func(*cryptobyte.Builder)) {
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		if critical {
			b.AddASN1Boolean(true)
		}
		b.AddASN1(casn1.OCTET_STRING, value)
	})
}

// addKeyUsage is for usages of the first eight bits, of which X.509 counts from the other end.
func addKeyUsage(b *cryptobyte.Builder, usage x509.KeyUsage) {
	octet := bits.Reverse8(byte(usage))
	addExtension(b, oidKeyUsage, true, func(b *cryptobyte.Builder) {
		b.AddASN1(casn1.BIT_STRING, func(b *cryptobyte.Builder) {
			b.AddUint8(uint8(bits.TrailingZeros8(octet)))
			b.AddUint8(octet)
		})
	})
}

// der encodes what is fixed when the program is built.
func der(add func(*cryptobyte.Builder)) []byte {
	var b cryptobyte.Builder
	add(&b)
	return b.BytesOrPanic()
}
