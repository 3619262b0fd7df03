package svid_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/writ-dev/writ/svid"
)

var noon = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

// issuer is a certificate and the key that goes with it.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sign makes a certificate of the template, by the parent or by itself where that is nil.
func sign(t testing.TB, template *x509.Certificate, parent *issuer) issuer {
	t.Helper()
	key := newKey(t)
	by := issuer{template, key}
	if parent != nil {
		by = *parent
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, key.Public(), by.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return issuer{c, key}
}

func leafTemplate(uris ...string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(7), NotBefore: noon.Add(-time.Hour), NotAfter: noon.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, ExtraExtensions: []pkix.Extension{names(true, uris...)},
	}
}

func authorityTemplate(name string, uris ...string) *x509.Certificate {
	c := &x509.Certificate{
		SerialNumber: big.NewInt(9), Subject: pkix.Name{CommonName: name}, NotBefore: noon.Add(-2 * time.Hour), NotAfter: noon.Add(2 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, SubjectKeyId: []byte(name),
	}
	if len(uris) > 0 {
		c.ExtraExtensions = []pkix.Extension{names(false, uris...)}
	}
	return c
}

// names is a raw extension of alternative names, since crypto/x509 writes what it parsed.
func names(critical bool, uris ...string) pkix.Extension {
	var raw []asn1.RawValue
	for _, u := range uris {
		raw = append(raw, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(u)})
	}
	return rawNames(critical, raw...)
}

func rawNames(critical bool, raw ...asn1.RawValue) pkix.Extension {
	der, err := asn1.Marshal(raw)
	if err != nil {
		panic(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: critical, Value: der}
}

func dnsName(s string) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte(s)}
}

func uriName(s string) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(s)}
}

const web = "spiffe://example.org/web"

func TestCheckLeaf(t *testing.T) {
	rows := []struct {
		name  string
		spoil func(c *x509.Certificate)
		valid bool
	}{
		{"X509-01/one URI name, everything in place", func(*x509.Certificate) {}, true},
		{"X509-02/a spiffe and an https name", uris(web, "https://example.org/web"), false},
		{"X509-02/the same SPIFFE ID twice", uris(web, web), false},
		{"X509-02/an https name before the SPIFFE ID", uris("https://a.test/", web), false},
		{"X509-03/no alternative names at all", func(c *x509.Certificate) { c.ExtraExtensions = nil }, false},
		{"X509-03/a DNS name only", func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{rawNames(true, dnsName("web.test"))} }, false},
		{"X509-04/three DNS names beside the ID", func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{rawNames(true, dnsName("a.test"), uriName(web), dnsName("b.test"), dnsName("c.test"))}
		}, true},
		{"X509-06/no path", uris("spiffe://example.org"), false},
		{"X509-07/empty subject, alternative names not critical", func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{names(false, web)} }, false},
		{"X509-07/a subject, alternative names not critical", func(c *x509.Certificate) {
			c.Subject.CommonName = "web"
			c.ExtraExtensions = []pkix.Extension{names(false, web)}
		}, true},
		{"X509-08/an https name", uris("https://example.org/web"), false},
		{"X509-09/upper-case scheme, which net/url lowers", uris("SPIFFE://example.org/web"), false},
		{"X509-09/empty fragment, which net/url drops", uris(web + "#"), false},
		{"X509-09/empty query", uris(web + "?"), false},
		{"X509-09/escaped letter", uris("spiffe://example.org/%77eb"), false},
		{"X509-09/trailing slash", uris(web + "/"), false},
		{"X509-09/dot segment", uris("spiffe://example.org/a/../web"), false},
		{"X509-09/user before the trust domain", uris("spiffe://example.org@evil.test/web"), false},
		{"X509-09/port", uris("spiffe://example.org:443/web"), false},
		{"X509-09/trust domain of 256 bytes", uris("spiffe://" + text(256) + "/web"), false},
		{"ID-18/2048 bytes", uris("spiffe://example.org/" + text(2027)), true},
		{"X509-12/no basic constraints, which says no CA", func(c *x509.Certificate) { c.BasicConstraintsValid = false }, true},
		{"X509-10/a signing certificate", func(c *x509.Certificate) { *c = *authorityTemplate("root", "spiffe://example.org") }, false},
		{"X509-13/a CA certificate", func(c *x509.Certificate) { c.IsCA = true }, false},
		{"X509-22/no key usage", func(c *x509.Certificate) { c.KeyUsage = 0 }, false},
		{"X509-23/key usage not critical", func(c *x509.Certificate) {
			c.KeyUsage = 0
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Value: []byte{3, 2, 7, 0x80}})
		}, false},
		{"X509-26/keyEncipherment without digitalSignature", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, false},
		{"X509-27/keyEncipherment beside digitalSignature", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyEncipherment }, true},
		{"X509-29/keyCertSign", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, false},
		{"X509-29/cRLSign", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }, false},
		{"X509-31/no extended key usage", func(c *x509.Certificate) { c.ExtKeyUsage = nil }, true},
		{"X509-32/serverAuth only", func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, false},
		{"X509-32/clientAuth only", func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }, false},
		{"X509-32/codeSigning only", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }, false},
		{"X509-32/an unknown usage only", func(c *x509.Certificate) {
			c.ExtKeyUsage, c.UnknownExtKeyUsage = nil, []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 99999}}
		}, false},
		{"X509-32/anyExtendedKeyUsage only", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, false},
		{"X509-32/both and one more", func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) }, true},
		{"X509-46/unknown critical extension", func(c *x509.Certificate) { c.ExtraExtensions = append(c.ExtraExtensions, unknownExtension(true)) }, false},
		{"X509-46/unknown extension that is not critical", func(c *x509.Certificate) { c.ExtraExtensions = append(c.ExtraExtensions, unknownExtension(false)) }, true},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			template := leafTemplate(web)
			row.spoil(template)
			c := sign(t, template, nil).cert
			id, err := svid.CheckLeaf(c)
			if (err == nil) != row.valid {
				t.Fatalf("CheckLeaf gives %q, %v; want valid %v", id, err, row.valid)
			}
			if err != nil && !id.IsZero() {
				t.Errorf("a refused leaf gave %q", id)
			}
		})
	}
	if _, err := svid.CheckLeaf(nil); err == nil {
		t.Error("no certificate is taken for a leaf")
	}
}

func uris(list ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{names(true, list...)} }
}

func text(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = 'x'
	}
	return string(b)
}

func unknownExtension(critical bool) pkix.Extension {
	return pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Critical: critical, Value: []byte{5, 0}}
}

func TestCheckAuthority(t *testing.T) {
	for _, row := range []struct {
		name  string
		spoil func(c *x509.Certificate)
		valid bool
	}{
		{"X509-14/a CA that is an SVID", func(*x509.Certificate) {}, true},
		{"X509-14/a plain CA", func(c *x509.Certificate) { c.ExtraExtensions = nil }, true},
		{"X509-10/a leaf", func(c *x509.Certificate) { *c = *leafTemplate(web) }, false},
		{"X509-11/no CA", func(c *x509.Certificate) { c.IsCA = false }, false},
		{"X509-11/no basic constraints", func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = false, false }, false},
		{"X509-15/its ID has a path", uris("spiffe://example.org/ca"), false},
		{"X509-16/its ID is of another trust domain", uris("spiffe://other.org"), true},
		{"X509-02/two IDs", uris("spiffe://example.org", "spiffe://other.org"), false},
		{"X509-09/its ID is not canonical", uris("spiffe://example.org/"), false},
		{"X509-24/no key usage", func(c *x509.Certificate) { c.KeyUsage = 0 }, false},
		{"X509-24/cRLSign without keyCertSign", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }, false},
		{"X509-25/cRLSign beside keyCertSign", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }, true},
		{"X509-30/digitalSignature beside keyCertSign", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageDigitalSignature }, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			template := authorityTemplate("root", "spiffe://example.org")
			row.spoil(template)
			if err := svid.CheckAuthority(sign(t, template, nil).cert); (err == nil) != row.valid {
				t.Errorf("CheckAuthority gives %v, want valid %v", err, row.valid)
			}
		})
	}
	if svid.CheckAuthority(nil) == nil {
		t.Error("no certificate is taken for an authority")
	}
}

// FuzzIDFromCert: whatever stands in the alternative names, an ID comes out only if it is there byte for byte, alone.
func FuzzIDFromCert(f *testing.F) {
	for _, e := range []pkix.Extension{names(true, web), names(true, web, web), names(true, web+"#"), rawNames(true, dnsName("a"), uriName(web))} {
		f.Add(e.Value)
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		c := &x509.Certificate{Extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}}}
		id, err := svid.IDFromCert(c)
		if err != nil {
			return
		}
		var raw []asn1.RawValue
		if rest, err := asn1.Unmarshal(value, &raw); err != nil || len(rest) > 0 {
			return // cryptobyte reads strictly; encoding/asn1 has limits of its own
		}
		found := 0
		for _, name := range raw {
			if name.Class == asn1.ClassContextSpecific && name.Tag == 6 {
				found++
				if string(name.Bytes) != id.String() {
					t.Errorf("%q read from %q", id, name.Bytes)
				}
			}
		}
		if found != 1 {
			t.Errorf("%q read from %d URI names", id, found)
		}
		if u, err := url.Parse(id.String()); err != nil || u.String() != id.String() {
			t.Errorf("net/url changes %q to %v, %v", id, u, err)
		}
	})
}
