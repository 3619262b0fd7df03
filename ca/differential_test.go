package ca_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
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
		{"RSA", "/orders", nil, time.Now(), must(rsa.GenerateKey(crand.Reader, 2048))(t).Public()},
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
			wantStandardEncoding(t, a, ca.WorkloadSVID(), ca.Request{ID: id(row.path), Key: row.key, DNS: row.dns, TTL: time.Hour})
		})
	}
}

// TestEncodingOfAnyEntryIsTheStandardLibrarys goes through every profile and key, with names of every length and lifetimes on either
// side of what UTCTime can say.
func TestEncodingOfAnyEntryIsTheStandardLibrarys(t *testing.T) {
	keys := someKeys(t)
	var now time.Time
	c := config()
	c.Now = func() time.Time { return now }
	for _, now = range []time.Time{time.Now(), time.Date(2049, 12, 31, 23, 0, 0, 0, time.UTC), time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2262, 1, 1, 0, 0, 0, 0, time.UTC)} {
		a := start(t, c)
		for seed := range uint64(150) {
			r := rand.New(rand.NewPCG(seed, 0))
			p := []ca.Profile{ca.WorkloadSVID(), ca.AgentSVID(), ca.ServerSVID()}[r.IntN(3)]
			request := ca.Request{ID: someID(r, p), Key: keys[r.IntN(len(keys))], DNS: someNames(r), TTL: time.Duration(1+r.IntN(23*3600)) * time.Second}
			wantStandardEncoding(t, a, p, request)
			if t.Failed() {
				t.Fatalf("at %s: %s %+v, seed %d", now, p.Name(), request, seed)
			}
		}
	}
}

// someKeys are of every kind that is certified.
func someKeys(t testing.TB) (keys []crypto.PublicKey) {
	t.Helper()
	for range 3 { // a coordinate may begin with a zero
		keys = append(keys, newKey(t, elliptic.P256()).Public(), newKey(t, elliptic.P384()).Public())
	}
	for _, bits := range []int{2048, 3072} {
		keys = append(keys, must(rsa.GenerateKey(crand.Reader, bits))(t).Public())
	}
	return keys
}

// someID is one that the profile admits, up to the longest.
func someID(r *rand.Rand, p ca.Profile) spiffeid.ID {
	start := map[string]string{"workload-svid": "/", "agent-svid": "/writ/agent/x509pop/", "server-svid": "/writ/server/"}[p.Name()]
	most := svid.MaxIDLength - len(domain.IDString()) - len(start)
	if r.IntN(2) == 0 {
		most = 100 // where lengths of one byte end
	}
	return id(start + someText(r, "abcxyzABC019-_", 1+r.IntN(most)))
}

// someNames are up to as many DNS names as are allowed.
func someNames(r *rand.Rand) (names []string) {
	if r.IntN(2) == 0 {
		return nil
	}
	for i := range 1 + r.IntN([]int{3, 100}[r.IntN(2)]) {
		name := fmt.Sprintf("n%d", i) // none twice
		for range r.IntN(4) {
			name += "." + someText(r, "abcxyzABC019", 1+r.IntN(60))
		}
		names = append(names, name)
	}
	return names
}

func someText(r *rand.Rand, letters string, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = letters[r.IntN(len(letters))]
	}
	return string(b)
}

func TestAuthoritiesAreEncodedAsTheStandardLibraryDoes(t *testing.T) {
	for _, now := range []time.Time{time.Now(), time.Date(2049, 12, 31, 12, 0, 0, 0, time.UTC), time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC)} {
		t.Run(now.Format(time.DateOnly), func(t *testing.T) {
			c := config()
			c.Now = func() time.Time { return now }
			wantStandardAuthorities(t, start(t, c).Bundle())
		})
	}
}

func wantStandardAuthorities(t *testing.T, b ca.Bundle) {
	t.Helper()
	root, issuing := b.Roots[0], b.Issuing[0]
	common := x509.Certificate{KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, URIs: []*url.URL{b.TrustDomain.ID().URL()}}
	self := common
	self.SerialNumber, self.RawSubject, self.NotBefore, self.NotAfter = root.SerialNumber, root.RawSubject, root.NotBefore, root.NotAfter
	self.AuthorityKeyId = root.SubjectKeyId
	wantSame(t, root, &self, &self)
	under := common
	under.SerialNumber, under.RawSubject, under.NotBefore, under.NotAfter = issuing.SerialNumber, issuing.RawSubject, issuing.NotBefore, issuing.NotAfter
	under.MaxPathLenZero = true
	wantSame(t, issuing, &under, root)
}

// FuzzEncodingIsTheStandardLibrarys lets profile, names, key, time and lifetime vary. Whatever is drafted has passed zlint for its own
// names, too: each run has an authority that has linted nothing yet.
func FuzzEncodingIsTheStandardLibrarys(f *testing.F) {
	f.Add("example.org", "/orders", "orders.internal", int64(3600), int64(1_800_000_000), uint8(0))
	f.Add("127.0.0.1", "/a/b/c", "", int64(5), int64(1_800_000_000), uint8(1))
	f.Add("-a", "/...", "com", int64(86400*30), int64(1_800_000_000), uint8(2))
	f.Add("a_b", "/ns/x/sa/y", "xn--bcher-kva,b", int64(59), int64(2_524_607_999), uint8(3)) // the last second of 2049
	f.Add(strings.Repeat("x", 255), "/y", "a,a", int64(1), int64(2_524_608_000), uint8(0))
	f.Add("example.org", "/writ/agent/x509pop/0123", "", int64(3600), int64(2_524_607_000), uint8(4))
	f.Add("example.org", "/writ/server/one", "one.internal", int64(3600), int64(253_402_300_000), uint8(8)) // the end of 9999
	keys := someKeys(f)
	f.Fuzz(func(t *testing.T, name, path, dns string, seconds, now int64, choice uint8) {
		td, err := svid.ParseTrustDomain(name)
		if err != nil || svid.CheckServable(td) != nil || now < 0 || now > 253_402_300_799 {
			return
		}
		of, err := spiffeid.FromPath(td, path)
		if err != nil || seconds <= 0 || seconds > 86400*365 {
			return
		}
		c := config()
		c.TrustDomain, c.Now = td, func() time.Time { return time.Unix(now, 0) }
		a, err := ca.New(t.Context(), c)
		if err != nil {
			return // a root of that time could not end
		}
		p := []ca.Profile{ca.WorkloadSVID(), ca.AgentSVID(), ca.ServerSVID()}[int(choice/4)%3]
		r := ca.Request{ID: of, Key: keys[int(choice)%len(keys)], TTL: time.Duration(seconds) * time.Second}
		if dns != "" {
			r.DNS = strings.Split(dns, ",")
		}
		if _, err := a.Draft(p, r); err != nil {
			if strings.Contains(err.Error(), "breaks a rule") {
				t.Fatal(err)
			}
			return
		}
		wantStandardAuthorities(t, a.Bundle())
		wantStandardEncoding(t, a, p, r)
	})
}

func wantStandardEncoding(t *testing.T, a *ca.Authority, p ca.Profile, r ca.Request) {
	t.Helper()
	leaf := issue(t, a, p, r)
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
	raw := must(x509.CreateCertificate(crand.Reader, template, &keyless, ours.PublicKey, newKey(t, elliptic.P256())))(t)
	theirs := must(x509.ParseCertificate(raw))(t)
	if !bytes.Equal(ours.RawTBSCertificate, theirs.RawTBSCertificate) {
		t.Errorf("encodings differ:\nours   %x\ntheirs %x", ours.RawTBSCertificate, theirs.RawTBSCertificate)
	}
	if ours.SignatureAlgorithm != theirs.SignatureAlgorithm {
		t.Errorf("signature algorithm %s, want %s", ours.SignatureAlgorithm, theirs.SignatureAlgorithm)
	}
}
