package server_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/ca"
)

func (d *domain) bundle() *adminv1.GetBundleResponse {
	d.t.Helper()
	return must(d.admin.GetBundle(context.Background(), &adminv1.GetBundleRequest{}))(d.t)
}

// record writes an authority of another server, as it would.
func (d *domain) record(tier, state string) ca.AuthorityRecord {
	d.t.Helper()
	key := newKey(d.t)
	keyID := make([]byte, 20)
	rand.Read(keyID)
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: rand.Text()}, SubjectKeyId: keyID, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{{Scheme: "spiffe", Host: example.Name()}}, NotBefore: d.now().Add(-time.Minute), NotAfter: d.now().Add(time.Hour)}
	der := must(x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key))(d.t)
	r := ca.AuthorityRecord{ID: hex.EncodeToString(keyID), Server: "two", Use: ca.UseX509, Tier: tier, State: state, Certificate: der,
		NotBefore: c.NotBefore, NotAfter: c.NotAfter}
	if err := d.db.RecordAuthority(d.t.Context(), r); err != nil {
		d.t.Fatal(err)
	}
	d.caughtUp()
	return r
}

// spiffe_sequence grows with each change of what others read, however fast they follow, and with nothing else.
func TestTDB_06_TDB_07_SequenceGrowsWithEachChange(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	last := d.bundle().Sequence
	if now := uint64(time.Now().Unix()); last+60 < now || last > now+60 {
		t.Errorf("it begins with %d; only a time is greater than before a restart", last)
	}
	var roots []ca.AuthorityRecord
	for i := range 5 {
		roots = append(roots, d.record(ca.TierRoot, ca.StatePrepared))
		b := d.bundle()
		if len(b.X509Authorities) != i+2 || b.Sequence <= last {
			t.Errorf("%d roots under the sequence %d, the one before was %d", len(b.X509Authorities), b.Sequence, last)
		}
		last = b.Sequence
	}
	d.record(ca.TierIssuing, ca.StateActive)
	d.apply(entry("orders"))
	d.caughtUp()
	if b := d.bundle(); len(b.X509Authorities) != 6 || b.Sequence != last {
		t.Errorf("the same %d roots under the sequence %d and %d", len(b.X509Authorities), last, b.Sequence)
	}
	roots[0].State = ca.StateRevoked
	if err := d.db.RecordAuthority(t.Context(), roots[0]); err != nil {
		t.Fatal(err)
	}
	d.until("the revocation", func() bool { return len(d.bundle().X509Authorities) == 5 })
	if b := d.bundle(); b.Sequence <= last {
		t.Errorf("revoked under the sequence %d, the one before was %d", b.Sequence, last)
	}
	if hint := d.bundle().RefreshHintSeconds; hint != 300 {
		t.Errorf("TDB-09: the refresh hint is %d seconds", hint)
	}
}
