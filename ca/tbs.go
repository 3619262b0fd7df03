package ca

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"math/bits"
	"slices"
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

// What stands in every certificate, DER.
var (
	version3            = []byte{0xa0, 0x03, 0x02, 0x01, 0x02}
	subjectKeyIDStart   = []byte{0x30, 0x1d, 0x06, 0x03, 0x55, 0x1d, 0x0e, 0x04, 0x16, 0x04, 0x14}             // key ids have 20 bytes
	authorityKeyIDStart = []byte{0x30, 0x1f, 0x06, 0x03, 0x55, 0x1d, 0x23, 0x04, 0x18, 0x30, 0x16, 0x80, 0x14} // likewise
	subjectAltName      = []byte{0x06, 0x03, 0x55, 0x1d, 0x11}
	critical            = []byte{0x01, 0x01, 0xff}
)

// tbs is the TBSCertificate of RFC 5280 section 4.1.
func (c *certificate) tbs() ([]byte, error) {
	validity, err := appendTime(make([]byte, 0, 34), c.notBefore)
	if err != nil {
		return nil, err
	}
	if validity, err = appendTime(validity, c.notAfter); err != nil {
		return nil, err
	}
	return element(0x30, version3, element(0x02, c.serial), c.by.algorithm, c.by.name, element(0x30, validity), c.subject, c.key.der,
		element(0xa3, element(0x30, c.profile.extensions,
			subjectKeyIDStart, c.key.id,
			authorityKeyIDStart, c.by.keyID, // in a root's certificate, its own
			c.names()))), nil
}

// names is the extension that holds them.
func (c *certificate) names() []byte {
	var names []byte
	for _, name := range c.dns {
		names = appendElement(names, 0x82, []byte(name))
	}
	names = appendElement(names, 0x86, []byte(c.uri))
	value := element(0x04, element(0x30, names))
	if len(c.subject) == len(emptyName) { // RFC 5280 section 4.2.1.6: critical if and only if the subject is empty
		return element(0x30, subjectAltName, critical, value)
	}
	return element(0x30, subjectAltName, value)
}

// assemble joins signed bytes and signature to a Certificate.
func assemble(tbs, algorithm, signature []byte) []byte {
	return element(0x30, tbs, algorithm, element(0x03, []byte{0}, signature)) // no unused bits
}

// element is the DER of a tag of one byte around parts (X.690 sections 8.1 and 10.1).
func element(tag byte, parts ...[]byte) []byte { return appendElement(nil, tag, parts...) }

func appendElement(b []byte, tag byte, parts ...[]byte) []byte {
	length := 0
	for _, part := range parts {
		length += len(part)
	}
	b = append(slices.Grow(b, 4+length), tag)
	switch {
	case length < 0x80:
		b = append(b, byte(length))
	case length < 0x100:
		b = append(b, 0x81, byte(length))
	case length < 0x10000:
		b = append(b, 0x82, byte(length>>8), byte(length))
	default:
		panic("more than 64 KiB in a certificate") // names are bounded by maxNames and svid.MaxIDLength
	}
	for _, part := range parts {
		b = append(b, part...)
	}
	return b
}

// appendTime follows RFC 5280 section 4.1.2.5: UTCTime until 2049.
func appendTime(b []byte, t time.Time) ([]byte, error) {
	t = t.UTC()
	switch year := t.Year(); {
	case year < 1950 || year > 9999:
		return nil, fmt.Errorf("no certificate can name the year %d", year)
	case year < 2050:
		return t.AppendFormat(append(b, 0x17, 13), "060102150405Z"), nil
	}
	return t.AppendFormat(append(b, 0x18, 15), "20060102150405Z"), nil
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
