package ca_test

import (
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/ca"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/svid"
)

func TestIssuedChainVerifies(t *testing.T) {
	a := start(t, config())
	longest := id("/" + strings.Repeat("x", svid.MaxIDLength-len("spiffe://example.org/")))
	rows := []struct {
		profile ca.Profile
		id      spiffeid.ID
	}{
		{ca.WorkloadSVID(), id("/orders")},
		{ca.WorkloadSVID(), id("/writ")},
		{ca.WorkloadSVID(), longest},
		{ca.AgentSVID(), id("/writ/agent/join_token/abc")},
		{ca.ServerSVID(), id("/writ/server/a")},
	}
	for _, row := range rows {
		name := "X509-36/" + row.profile.Name()
		if row.id == longest {
			name = "ID-18/2048 bytes"
		}
		t.Run(name, func(t *testing.T) {
			r := request(t)
			r.ID, r.DNS = row.id, []string{"orders.internal"}
			d := must(a.Draft(row.profile, r))(t)
			chain := must(a.Issue(d))(t)
			if len(chain) != 2 { // leaf and issuing certificate, no root
				t.Fatalf("chain has %d certificates", len(chain))
			}
			leaf := must(x509.ParseCertificate(chain[0]))(t)
			issuing := must(x509.ParseCertificate(chain[1]))(t)
			b := a.Bundle()
			got := must(svid.Verify(leaf, []*x509.Certificate{issuing},
				svid.Anchors{TrustDomain: domain, Roots: b.Roots}, time.Now()))(t)
			if got != row.id {
				t.Errorf("certificate is of %s", got)
			}
			wantDescribed(t, d, leaf, a)
		})
	}
}

// wantDescribed checks that what is recorded of a Draft is what was signed.
func wantDescribed(t *testing.T, d *ca.Draft, leaf *x509.Certificate, a *ca.Authority) {
	t.Helper()
	type facts struct {
		serial, authority   string
		notBefore, notAfter time.Time
		digest              [32]byte
	}
	want := facts{leaf.SerialNumber.Text(16), hex.EncodeToString(leaf.AuthorityKeyId), leaf.NotBefore, leaf.NotAfter,
		sha256.Sum256(leaf.RawTBSCertificate)}
	got := facts{d.Serial(), d.AuthorityID(), d.NotBefore(), d.NotAfter(), d.Digest()}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(facts{})); diff != "" {
		t.Errorf("draft does not say what was signed (-signed +draft):\n%s", diff)
	}
	if d.AuthorityID() != a.ID() {
		t.Errorf("draft names authority %s, the active one is %s", d.AuthorityID(), a.ID())
	}
}

func TestDraftRefusesIDs(t *testing.T) {
	a := start(t, config())
	foreign := spiffeid.RequireFromString("spiffe://other.org/orders")
	rows := []struct {
		name    string
		profile ca.Profile
		id      spiffeid.ID
	}{
		{"no profile", ca.Profile{}, id("/orders")},
		{"no ID", ca.WorkloadSVID(), spiffeid.ID{}},
		{"ID-35/foreign trust domain", ca.WorkloadSVID(), foreign},
		{"ID-35/foreign agent", ca.AgentSVID(), spiffeid.RequireFromString("spiffe://other.org/writ/agent/x509pop/a")},
		{"ID-35/trust domain that ours begins", ca.WorkloadSVID(), spiffeid.RequireFromString("spiffe://example.orgs/a")},
		{"X509-05/no path", ca.WorkloadSVID(), domain.ID()},
		{"ID-20/one byte too long", ca.WorkloadSVID(), id("/" + strings.Repeat("x", svid.MaxIDLength+1-len("spiffe://example.org/")))},
		{"workload posing as an agent", ca.WorkloadSVID(), id("/writ/agent/join_token/abc")},
		{"workload posing as a server", ca.WorkloadSVID(), id("/writ/server/a")},
		{"workload under the reserved path", ca.WorkloadSVID(), id("/writ/x")},
		{"agent posing as a server", ca.AgentSVID(), id("/writ/server/a")},
		{"agent without a key", ca.AgentSVID(), id("/writ/agent/join_token")},
		{"agent outside of the reserved path", ca.AgentSVID(), id("/x/agent/join_token/abc")},
		{"server posing as an agent", ca.ServerSVID(), id("/writ/agent/join_token/abc")},
		{"server with a longer path", ca.ServerSVID(), id("/writ/server/a/b")},
		{"server without a name", ca.ServerSVID(), id("/writ/server")},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r := request(t)
			r.ID = row.id
			_, err := a.Draft(row.profile, r)
			wantFault(t, err, fault.Invalid, fault.BadRequestForSVID)
		})
	}
}

func TestX509_49_DraftKeys(t *testing.T) {
	a := start(t, config())
	big1 := big.NewInt(1)
	rsa2048 := must(rsa.GenerateKey(rand.Reader, 2048))(t).Public()
	rsaKey := func(bits int, low int64, e int) *rsa.PublicKey {
		n := new(big.Int).Lsh(big1, uint(bits-1))
		return &rsa.PublicKey{N: n.Add(n, big.NewInt(low)), E: e}
	}
	edKey, _, _ := ed25519.GenerateKey(rand.Reader)
	rows := []struct {
		name string
		key  crypto.PublicKey
		good bool
	}{
		{"P-256", newKey(t, elliptic.P256()).Public(), true},
		{"P-384", newKey(t, elliptic.P384()).Public(), true},
		{"RSA of 2048 bits", rsa2048, true},
		{"no key", nil, false},
		{"P-224", newKey(t, elliptic.P224()).Public(), false},
		{"P-521", newKey(t, elliptic.P521()).Public(), false},
		{"Ed25519", edKey, false},
		{"RSA of 1024 bits", rsaKey(1024, 1, 65537), false},
		{"RSA of 2047 bits", rsaKey(2047, 1, 65537), false},
		{"RSA of 16384 bits", rsaKey(16384, 1, 65537), false},
		{"RSA with an even modulus", rsaKey(2048, 0, 65537), false},
		{"RSA with the exponent 3", rsaKey(2048, 1, 3), false},
		{"RSA without a modulus", &rsa.PublicKey{E: 65537}, false},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r := request(t)
			r.Key = row.key
			d, err := a.Draft(ca.WorkloadSVID(), r)
			if !row.good {
				wantFault(t, err, fault.Invalid, fault.BadRequestForSVID)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			chain := must(a.Issue(d))(t)
			leaf := must(x509.ParseCertificate(chain[0]))(t)
			if !row.key.(interface{ Equal(crypto.PublicKey) bool }).Equal(leaf.PublicKey) {
				t.Error("the certificate has another key")
			}
		})
	}
}

func TestDraftDNSNames(t *testing.T) {
	a := start(t, config())
	long := strings.Repeat("a", 63)
	rows := []struct {
		name string
		dns  []string
		want []string // nil: refused
	}{
		{"a host name", []string{"orders.internal"}, []string{"orders.internal"}},
		{"a single label", []string{"orders"}, []string{"orders"}},
		{"a public suffix", []string{"com"}, []string{"com"}},
		{"the longest", []string{long + "." + long + "." + long + "." + long[:61]}, []string{long + "." + long + "." + long + "." + long[:61]}},
		{"the same twice", []string{"orders", "ORDERS", "b"}, []string{"orders", "b"}},
		{"an internationalised name", []string{"xn--bcher-kva.example"}, []string{"xn--bcher-kva.example"}},
		{"a name of digits that is no address", []string{"1.2.3"}, []string{"1.2.3"}},
		{"empty", []string{""}, nil},
		{"one byte too long", []string{long + "." + long + "." + long + "." + long[:62]}, nil},
		{"a label too long", []string{long + "a"}, nil},
		{"an empty label", []string{"a..b"}, nil},
		{"a final dot", []string{"a."}, nil},
		{"a wildcard", []string{"*.example.org"}, nil},
		{"an underscore", []string{"a_b"}, nil},
		{"a hyphen at the end", []string{"a-.b"}, nil},
		{"an IPv4 address", []string{"10.0.0.1"}, nil},
		{"an IPv6 address", []string{"::1"}, nil},
		{"a NUL", []string{"good.org\x00.evil.org"}, nil},
		{"a line break", []string{"good\n"}, nil},
		{"not ASCII", []string{"bücher"}, nil},
		{"a KELVIN SIGN", []string{"\u212a"}, nil},
		{"a URI", []string{"spiffe://example.org/admin"}, nil},
		{"punycode that decodes to nothing", []string{"xn--999999999"}, nil},
		{"one bad among good", []string{"a", "b", "c d"}, nil},
		{"too many", strings.Split(strings.Repeat("a ", 101), " ")[:101], nil},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r := request(t)
			r.DNS = row.dns
			if row.want == nil {
				_, err := a.Draft(ca.WorkloadSVID(), r)
				wantFault(t, err, fault.Invalid, fault.BadRequestForSVID)
				return
			}
			leaf := issue(t, a, ca.WorkloadSVID(), r)
			if diff := cmp.Diff(row.want, leaf.DNSNames); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDraftIsIssuedOnceByItsAuthority(t *testing.T) {
	c := config()
	a, other := start(t, c), start(t, config())
	d := must(a.Draft(ca.WorkloadSVID(), request(t)))(t)
	_, err := other.Issue(d)
	wantFault(t, err, fault.Invalid, "")
	must(a.Issue(d))(t)
	_, err = a.Issue(d)
	wantFault(t, err, fault.Stale, "")
	_, err = a.Issue(nil)
	wantFault(t, err, fault.Invalid, "")
	_, err = a.Issue(&ca.Draft{})
	wantFault(t, err, fault.Invalid, "")
}

func TestDraftIsIssuedOnceHoweverManyAsk(t *testing.T) {
	a := start(t, config())
	d := must(a.Draft(ca.WorkloadSVID(), request(t)))(t)
	results := make(chan error)
	for range 16 {
		go func() { _, err := a.Issue(d); results <- err }()
	}
	issued := 0
	for range 16 {
		if err := <-results; err == nil {
			issued++
		}
	}
	if issued != 1 {
		t.Errorf("one draft was issued %d times", issued)
	}
}

func TestX509_47_Lifetimes(t *testing.T) {
	now := time.Date(2026, 11, 3, 12, 0, 0, 500e6, time.UTC)
	c := config()
	c.Now = func() time.Time { return now }
	a := start(t, c)
	end := a.Bundle().Issuing[0].NotAfter
	now = now.Add(6 * time.Hour) // the issuing certificate is not of this moment
	whole := now.Truncate(time.Second)
	rows := []struct {
		name       string
		ttl        time.Duration
		bound      time.Time
		start, end time.Time
	}{
		{"an hour", time.Hour, time.Time{}, whole.Add(-time.Minute), whole.Add(time.Hour)},
		{"a minute is set back by a tenth", time.Minute, time.Time{}, whole.Add(-6 * time.Second), whole.Add(time.Minute)},
		{"five seconds", 5 * time.Second, time.Time{}, whole, whole.Add(5 * time.Second)},
		{"longer than the issuing certificate", 48 * time.Hour, time.Time{}, whole.Add(-time.Minute), end},
		{"a bound that comes first", time.Hour, whole.Add(90 * time.Second), whole.Add(-9 * time.Second), whole.Add(90 * time.Second)},
		{"a bound that comes later", time.Hour, whole.Add(90 * time.Minute), whole.Add(-time.Minute), whole.Add(time.Hour)},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r := request(t)
			r.TTL, r.NotAfter = row.ttl, row.bound
			leaf := issue(t, a, ca.WorkloadSVID(), r)
			if !leaf.NotBefore.Equal(row.start) || !leaf.NotAfter.Equal(row.end) {
				t.Errorf("from %s to %s, want %s to %s", leaf.NotBefore, leaf.NotAfter, row.start, row.end)
			}
		})
	}
	for name, r := range map[string]ca.Request{
		"no lifetime":         {TTL: 0},
		"a negative lifetime": {TTL: -time.Hour},
		"a bound in the past": {TTL: time.Hour, NotAfter: now.Add(-time.Second)},
		"a bound of now":      {TTL: time.Hour, NotAfter: now},
	} {
		t.Run(name, func(t *testing.T) {
			r.ID, r.Key = id("/orders"), newKey(t, elliptic.P256()).Public()
			_, err := a.Draft(ca.WorkloadSVID(), r)
			wantFault(t, err, fault.Invalid, fault.BadRequestForSVID)
		})
	}
}

func TestNothingIsSignedPastItsTime(t *testing.T) {
	now := time.Now()
	c := config()
	c.Now = func() time.Time { return now }
	a := start(t, c)
	r := request(t)
	d := must(a.Draft(ca.WorkloadSVID(), r))(t)
	now = now.Add(2 * time.Hour)
	_, err := a.Issue(d)
	wantFault(t, err, fault.Stale, "")
	now = now.Add(24 * time.Hour)
	_, err = a.Draft(ca.WorkloadSVID(), r)
	wantFault(t, err, fault.Unavailable, fault.AuthorityMissing)
}

func TestX509_45_Serials(t *testing.T) {
	a := start(t, config())
	r := request(t)
	seen := make(map[string]bool)
	for range 10_000 {
		d := must(a.Draft(ca.WorkloadSVID(), r))(t)
		raw := must(hex.DecodeString(d.Serial()))(t)
		switch {
		case len(raw) != 16 || raw[0]&0x80 != 0 || raw[0]&0xf0 == 0:
			t.Fatalf("serial %s is not 128 bits, positive, of 32 digits", d.Serial())
		case seen[d.Serial()]:
			t.Fatalf("serial %s came twice", d.Serial())
		}
		seen[d.Serial()] = true
	}
}
