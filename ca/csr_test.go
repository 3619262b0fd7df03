package ca_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"net/url"
	"slices"
	"testing"

	"github.com/writ-dev/writ/ca"
	"github.com/writ-dev/writ/internal/fault"
)

// What a request may say beside its key.
func TestX509_50_X509_01_CheckCSR(t *testing.T) {
	key := newKey(t, elliptic.P256())
	_, edKey, _ := ed25519.GenerateKey(rand.Reader)
	rsa1024 := weakRSA(t)
	orders, admin := id("/orders").URL(), id("/admin").URL()
	extension := func(critical bool, value []byte, oid ...int) []pkix.Extension {
		return []pkix.Extension{{Id: oid, Critical: critical, Value: value}}
	}
	rows := []struct {
		name string
		csr  x509.CertificateRequest
		key  crypto.Signer
		good bool
	}{
		{"a key alone", x509.CertificateRequest{}, key, true},
		{"its own ID", x509.CertificateRequest{URIs: []*url.URL{orders}}, key, true},
		{"CA:FALSE", x509.CertificateRequest{ExtraExtensions: extension(true, []byte{0x30, 0x00}, 2, 5, 29, 19)}, key, true},
		{"P-384", x509.CertificateRequest{}, newKey(t, elliptic.P384()), true},
		{"RSA", x509.CertificateRequest{}, must(rsa.GenerateKey(rand.Reader, 2048))(t), true},
		{"RSA-PSS", x509.CertificateRequest{SignatureAlgorithm: x509.SHA256WithRSAPSS}, must(rsa.GenerateKey(rand.Reader, 2048))(t), true},
		{"another ID", x509.CertificateRequest{URIs: []*url.URL{admin}}, key, false},
		{"another ID beside its own", x509.CertificateRequest{URIs: []*url.URL{orders, admin}}, key, false},
		{"its own ID twice", x509.CertificateRequest{URIs: []*url.URL{orders, orders}}, key, false},
		{"a DNS name", x509.CertificateRequest{DNSNames: []string{"bank.example"}}, key, false},
		{"an address", x509.CertificateRequest{URIs: []*url.URL{orders}, IPAddresses: []net.IP{{10, 0, 0, 1}}}, key, false},
		{"a mail address", x509.CertificateRequest{EmailAddresses: []string{"root@example.org"}}, key, false},
		{"a name of a kind that crypto/x509 passes over",
			x509.CertificateRequest{ExtraExtensions: extension(false, []byte{0x30, 0x03, 0x88, 0x01, 0x2a}, 2, 5, 29, 17)}, key, false},
		{"a subject", x509.CertificateRequest{Subject: pkix.Name{CommonName: "bank.example"}}, key, false},
		{"CA:TRUE", x509.CertificateRequest{ExtraExtensions: extension(true, []byte{0x30, 0x03, 0x01, 0x01, 0xff}, 2, 5, 29, 19)}, key, false},
		{"keyCertSign", x509.CertificateRequest{ExtraExtensions: extension(true, []byte{0x03, 0x02, 0x02, 0x04}, 2, 5, 29, 15)}, key, false},
		{"an extended key usage",
			x509.CertificateRequest{ExtraExtensions: extension(false, extendedKeyUsage(t, 1, 3, 6, 1, 5, 5, 7, 3, 3), 2, 5, 29, 37)}, key, false},
		{"an unknown extension", x509.CertificateRequest{ExtraExtensions: extension(true, []byte{0x05, 0x00}, 1, 2, 3, 4)}, key, false},
		{"P-224", x509.CertificateRequest{}, newKey(t, elliptic.P224()), false},
		{"P-521", x509.CertificateRequest{}, newKey(t, elliptic.P521()), false},
		{"Ed25519", x509.CertificateRequest{}, edKey, false},
		{"RSA of 1024 bits", x509.CertificateRequest{}, rsa1024, false},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			der := must(x509.CreateCertificateRequest(rand.Reader, &row.csr, row.key))(t)
			got, err := ca.CheckCSR(der, id("/orders"))
			if !row.good {
				wantFault(t, err, fault.Invalid, fault.BadRequestForSVID)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !sameKey(row.key.Public(), got) {
				t.Error("it gives another key")
			}
		})
	}
}

func TestX509_50_CheckCSRRefusesBytes(t *testing.T) {
	good := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, newKey(t, elliptic.P256())))(t)
	certificate := start(t, config()).Bundle().Roots[0].Raw
	flipped := append([]byte(nil), good...)
	flipped[len(flipped)-1] ^= 1
	for name, der := range map[string][]byte{
		"nothing":                          nil,
		"noise":                            []byte("\x30\x80\x00\x00noise"),
		"half of it":                       good[:len(good)/2],
		"more after it":                    append(append([]byte(nil), good...), 0),
		"a broken signature":               flipped,
		"another key's proof":              otherSignature(t, good),
		"a point that is not on the curve": offCurve(good),
		"a longer length than DER has":     slices.Concat([]byte{0x30, 0x82, 0x00, good[2]}, good[3:]),
		"a certificate":                    certificate,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ca.CheckCSR(der, id("/orders"))
			wantFault(t, err, fault.Invalid, fault.BadRequestForSVID)
		})
	}
}

// Agents' requests must take the short way, or it is there for nothing.
func TestAgentsRequestsArePlain(t *testing.T) {
	key := newKey(t, elliptic.P256())
	der := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key))(t)
	got, _, _, ok := ca.ReadPlain(der)
	if !ok || !sameKey(key.Public(), got) {
		t.Errorf("ReadPlain = %v, %v", got, ok)
	}
}

// FuzzCheckCSR holds the short way against crypto/x509's reading: what it takes is the same there, and the verdicts are the same.
func FuzzCheckCSR(f *testing.F) {
	key := newKey(f, elliptic.P256())
	for _, r := range []x509.CertificateRequest{{}, {URIs: []*url.URL{id("/orders").URL()}}, {Subject: pkix.Name{CommonName: "x"}}, {SignatureAlgorithm: x509.ECDSAWithSHA384}} {
		f.Add(must(x509.CreateCertificateRequest(rand.Reader, &r, key))(f))
	}
	f.Add(must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, newKey(f, elliptic.P384())))(f))
	f.Fuzz(func(t *testing.T, der []byte) {
		got, err := ca.CheckCSR(der, id("/orders"))
		if (got == nil) == (err == nil) {
			t.Errorf("CheckCSR = %v, %v: neither a key nor a refusal", got, err)
		}
		slow, slowErr := ca.CheckAnyCSR(der, id("/orders"))
		if (err == nil) != (slowErr == nil) || err == nil && !sameKey(slow, got) {
			t.Errorf("CheckCSR = %v, %v; by crypto/x509 %v, %v", got, err, slow, slowErr)
		}
		plain, signed, signature, ok := ca.ReadPlain(der)
		if !ok {
			return
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatalf("crypto/x509 does not read what is plain: %v", err)
		}
		if !sameKey(csr.PublicKey, plain) || !bytes.Equal(csr.RawTBSCertificateRequest, signed) || !bytes.Equal(csr.Signature, signature) ||
			csr.SignatureAlgorithm != x509.ECDSAWithSHA256 || len(csr.RawSubject) != 2 || len(csr.Extensions) != 0 || csr.Version != 0 {
			t.Errorf("crypto/x509 reads what is plain as %+v", csr)
		}
	})
}

func sameKey(a, b crypto.PublicKey) bool {
	return a.(interface{ Equal(crypto.PublicKey) bool }).Equal(b)
}

// offCurve changes the last byte of the point, which stands before the two bytes of no attributes.
func offCurve(der []byte) []byte {
	out := append([]byte(nil), der...)
	out[3+2+98-3] ^= 1
	return out
}

// otherSignature gives the request the signature of another request with another key.
func otherSignature(t *testing.T, der []byte) []byte {
	t.Helper()
	type request struct {
		Info      asn1.RawValue
		Algorithm asn1.RawValue
		Signature asn1.BitString
	}
	var mine, theirs request
	must(asn1.Unmarshal(der, &mine))(t)
	other := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, newKey(t, elliptic.P256())))(t)
	must(asn1.Unmarshal(other, &theirs))(t)
	mine.Signature = theirs.Signature
	return must(asn1.Marshal(mine))(t)
}

func extendedKeyUsage(t *testing.T, oid ...int) []byte {
	t.Helper()
	return must(asn1.Marshal([]asn1.ObjectIdentifier{oid}))(t)
}

// weakRSA signs with 1,024 bits, which crypto/rsa makes only where its own tests need it.
func weakRSA(t *testing.T) crypto.Signer {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	return must(rsa.GenerateKey(rand.Reader, 1024))(t)
}
