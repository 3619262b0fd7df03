package ca_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/ca"
	"github.com/writ-dev/writ/svid"
)

// TestEncodingIsTheStandardLibrarys holds our encoder against crypto/x509's: the same values, the same bytes.
func TestEncodingIsTheStandardLibrarys(t *testing.T) {
	rows := []struct {
		name string
		path string
		dns  []string
		now  time.Time
		key  crypto.PublicKey
	}{
		{"a plain leaf", "/orders", nil, time.Now(), newKey(t, elliptic.P256()).Public()},
		{"DNS names", "/orders", []string{"a.b", "c"}, time.Now(), newKey(t, elliptic.P256()).Public()},
		{"P-384", "/orders", nil, time.Now(), newKey(t, elliptic.P384()).Public()},
		{"RSA", "/orders", nil, time.Now(), must(rsa.GenerateKey(rand.Reader, 2048))(t).Public()},
		{"extensions of over 127 bytes", "/" + strings.Repeat("a", 200), nil, time.Now(), newKey(t, elliptic.P256()).Public()},
		{"extensions of over 255 bytes", "/" + strings.Repeat("a", 400), nil, time.Now(), newKey(t, elliptic.P256()).Public()},
		{"the last UTCTime", "/orders", nil, time.Date(2049, 12, 31, 22, 59, 59, 0, time.UTC), newKey(t, elliptic.P256()).Public()},
		{"a lifetime into GeneralizedTime", "/orders", nil, time.Date(2049, 12, 31, 23, 30, 0, 0, time.UTC), newKey(t, elliptic.P256()).Public()},
		{"GeneralizedTime", "/orders", nil, time.Date(2050, 1, 2, 0, 0, 0, 0, time.UTC), newKey(t, elliptic.P256()).Public()},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			c := config()
			c.Now = func() time.Time { return row.now }
			a := start(t, c)
			wantStandardEncoding(t, a, ca.Request{ID: id(row.path), Key: row.key, DNS: row.dns, TTL: time.Hour})
		})
	}
}

func TestAuthoritiesAreEncodedAsTheStandardLibraryDoes(t *testing.T) {
	b := start(t, config()).Bundle()
	root, issuing := b.Roots[0], b.Issuing[0]
	common := x509.Certificate{KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, URIs: []*url.URL{domain.ID().URL()}}
	self := common
	self.SerialNumber, self.RawSubject, self.NotBefore, self.NotAfter = root.SerialNumber, root.RawSubject, root.NotBefore, root.NotAfter
	self.AuthorityKeyId = root.SubjectKeyId
	wantSame(t, root, &self, &self)
	under := common
	under.SerialNumber, under.RawSubject, under.NotBefore, under.NotAfter = issuing.SerialNumber, issuing.RawSubject, issuing.NotBefore, issuing.NotAfter
	under.MaxPathLenZero = true
	wantSame(t, issuing, &under, root)
}

// FuzzEncodingIsTheStandardLibrarys lets names and lifetimes vary. Whatever is drafted has passed zlint for its own names, too:
// each run has an authority that has linted nothing yet.
func FuzzEncodingIsTheStandardLibrarys(f *testing.F) {
	f.Add("example.org", "/orders", "orders.internal", int64(3600))
	f.Add("127.0.0.1", "/a/b/c", "", int64(5))
	f.Add("-a", "/...", "com", int64(86400*30))
	f.Add("a_b", "/ns/x/sa/y", "xn--bcher-kva,b", int64(59))
	f.Add(strings.Repeat("x", 255), "/y", "a,a", int64(1))
	p256 := newKey(f, elliptic.P256()).Public()
	f.Fuzz(func(t *testing.T, name, path, dns string, seconds int64) {
		td, err := svid.ParseTrustDomain(name)
		if err != nil || svid.CheckServable(td) != nil {
			t.Skip()
		}
		of, err := spiffeid.FromPath(td, path)
		if err != nil || seconds <= 0 || seconds > 86400*365 {
			t.Skip()
		}
		c := config()
		c.TrustDomain = td
		a := start(t, c)
		r := ca.Request{ID: of, Key: p256, TTL: time.Duration(seconds) * time.Second}
		if dns != "" {
			r.DNS = strings.Split(dns, ",")
		}
		if _, err := a.Draft(ca.WorkloadSVID(), r); err != nil {
			if strings.Contains(err.Error(), "breaks a rule") {
				t.Fatal(err)
			}
			t.Skip()
		}
		wantStandardEncoding(t, a, r)
	})
}

func wantStandardEncoding(t *testing.T, a *ca.Authority, r ca.Request) {
	t.Helper()
	leaf := issue(t, a, ca.WorkloadSVID(), r)
	info := must(x509.ParsePKIXPublicKey(leaf.RawSubjectPublicKeyInfo))(t)
	bits := leaf.RawSubjectPublicKeyInfo
	switch key := info.(type) {
	case *ecdsa.PublicKey:
		bits = must(key.Bytes())(t)
	case *rsa.PublicKey:
		bits = x509.MarshalPKCS1PublicKey(key)
	}
	keyID := sha256.Sum256(bits)
	wantSame(t, leaf, &x509.Certificate{
		SerialNumber: leaf.SerialNumber, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		SubjectKeyId:          keyID[:20],
		DNSNames:              leaf.DNSNames, // draft_test.go holds these against the request
		URIs:                  []*url.URL{r.ID.URL()},
	}, a.Bundle().Issuing[0])
}

// wantSame has crypto/x509 build template under parent and compares what it would sign, and how it is wrapped.
func wantSame(t *testing.T, ours, template, parent *x509.Certificate) {
	t.Helper()
	keyless := *parent
	keyless.PublicKey = nil // or it would want the private key
	raw := must(x509.CreateCertificate(rand.Reader, template, &keyless, ours.PublicKey, newKey(t, elliptic.P256())))(t)
	theirs := must(x509.ParseCertificate(raw))(t)
	if !bytes.Equal(ours.RawTBSCertificate, theirs.RawTBSCertificate) {
		t.Errorf("encodings differ:\nours   %x\ntheirs %x", ours.RawTBSCertificate, theirs.RawTBSCertificate)
	}
	if ours.SignatureAlgorithm != theirs.SignatureAlgorithm {
		t.Errorf("signature algorithm %s, want %s", ours.SignatureAlgorithm, theirs.SignatureAlgorithm)
	}
}
