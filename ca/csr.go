package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// CheckCSR takes the public key from a certificate signing request whose sender proves that it holds the private one. Nothing
// else is taken from it: names and usages come from the registration entry. A request that asks for other names than id, for a
// CA certificate or for any usage is refused all the same, since its sender expects what it will not get.
func CheckCSR(der []byte, id spiffeid.ID) (crypto.PublicKey, error) {
	if plain, ok := readPlain(der); ok {
		digest := sha256.Sum256(plain.signed)
		if !ecdsa.VerifyASN1(plain.key, digest[:], plain.signature) {
			return nil, refuse(errors.New("its signature does not verify"), "the certificate signing request is refused")
		}
		return plain.key, nil
	}
	return checkAnyCSR(der, id)
}

// plainCSR is a request as writ's agents send it: it asks for nothing, and is signed by its P-256 key with SHA-256.
type plainCSR struct {
	key               *ecdsa.PublicKey
	signed, signature []byte
}

// How the signed part of a plainCSR begins, up to the key's point (RFC 2986 section 4.1: version 0, an empty subject, the key), and
// how it ends: no attributes.
var plainStart, plainEnd = slices.Concat([]byte{0x30, 0x62, 0x02, 0x01, 0x00, 0x30, 0x00}, curveInfo["P-256"]), []byte{0xa0, 0x00}

// readPlain reads a plainCSR by comparing bytes: crypto/x509's reading costs a fifth of the signature's check. What it does not take
// may be good all the same.
func readPlain(der []byte) (plain plainCSR, ok bool) {
	var request, signed, algorithm cryptobyte.String
	whole := cryptobyte.String(der)
	if !whole.ReadASN1(&request, casn1.SEQUENCE) || !whole.Empty() ||
		!request.ReadASN1Element(&signed, casn1.SEQUENCE) || !request.ReadASN1Element(&algorithm, casn1.SEQUENCE) ||
		!request.ReadASN1BitStringAsBytes(&plain.signature) || !request.Empty() {
		return plain, false
	}
	point, starts := bytes.CutPrefix(signed, plainStart)
	point, ends := bytes.CutSuffix(point, plainEnd)
	if !starts || !ends || !bytes.Equal(algorithm, ecdsaWithSHA256) {
		return plain, false
	}
	var err error
	plain.key, err = ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	plain.signed = signed
	return plain, err == nil
}

// checkAnyCSR is CheckCSR for requests of any form.
func checkAnyCSR(der []byte, id spiffeid.ID) (crypto.PublicKey, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, refuse(errors.New("it cannot be read"), "the certificate signing request is refused")
	}
	if _, err := kindOf(csr.PublicKey); err != nil { // before a signature of a huge key is verified
		return nil, refuse(err, "the certificate signing request is refused")
	}
	if !slices.Contains(goodSignatures, csr.SignatureAlgorithm) || csr.CheckSignature() != nil {
		return nil, refuse(errors.New("its signature does not verify"), "the certificate signing request is refused")
	}
	if !bytes.Equal(csr.RawSubject, emptyName) {
		return nil, refuse(errors.New("it asks for a subject"), "the certificate signing request is refused")
	}
	for _, e := range csr.Extensions {
		if err := checkWish(e, id); err != nil {
			return nil, refuse(err, "the certificate signing request is refused")
		}
	}
	return csr.PublicKey, nil
}

// goodSignatures leaves out SHA-1, which crypto/x509 takes in requests.
var goodSignatures = []x509.SignatureAlgorithm{x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512,
	x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA, x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS}

// checkWish lets pass what the certificate will have anyway.
func checkWish(e pkix.Extension, id spiffeid.ID) error {
	switch {
	case e.Id.Equal(oidSubjectAltName):
		if !onlyName(e.Value, id) {
			return fmt.Errorf("it asks for other names than %s", id)
		}
	case e.Id.Equal(oidBasicConstraints):
		if !bytes.Equal(e.Value, []byte{0x30, 0x00}) {
			return errors.New("it asks for a CA certificate")
		}
	default:
		return fmt.Errorf("it asks for the extension %s", e.Id)
	}
	return nil
}

// onlyName says whether subject alternative names are the one URI and nothing else, by their bytes: crypto/x509 passes over the
// kinds of names that it does not know.
func onlyName(value []byte, id spiffeid.ID) bool {
	outer, names, name := cryptobyte.String(value), cryptobyte.String(nil), cryptobyte.String(nil)
	return outer.ReadASN1(&names, casn1.SEQUENCE) && outer.Empty() &&
		names.ReadASN1(&name, casn1.Tag(6).ContextSpecific()) && names.Empty() &&
		string(name) == id.String()
}
