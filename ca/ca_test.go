package ca_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/ca"
	"github.com/writ-dev/writ/ca/keystore"
	"github.com/writ-dev/writ/internal/fault"
)

var domain = spiffeid.RequireTrustDomainFromString("example.org")

// ledger is a Ledger for tests: it keeps records in memory and can be told to fail.
type ledger struct {
	mu      sync.Mutex
	records map[string]ca.AuthorityRecord
	err     error
	writes  int
}

func newLedger() *ledger { return &ledger{records: make(map[string]ca.AuthorityRecord)} }

func (l *ledger) Authorities(context.Context) ([]ca.AuthorityRecord, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Values(l.records)), l.err
}

func (l *ledger) RecordAuthority(_ context.Context, r ca.AuthorityRecord) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.records[r.ID] = r
		l.writes++
	}
	return l.err
}

// config is of a server whose keys and ledger are in memory.
func config() ca.Config {
	return ca.Config{TrustDomain: domain, Server: "a", Keys: keystore.Memory(), Ledger: newLedger()}
}

func start(t testing.TB, c ca.Config) *ca.Authority {
	t.Helper()
	return must(ca.New(t.Context(), c))(t)
}

func id(path string) spiffeid.ID { return spiffeid.RequireFromPath(domain, path) }

func newKey(t testing.TB, curve elliptic.Curve) crypto.Signer {
	t.Helper()
	return must(ecdsa.GenerateKey(curve, rand.Reader))(t)
}

// request is one that every authority grants.
func request(t testing.TB) ca.Request {
	return ca.Request{ID: id("/orders"), Key: newKey(t, elliptic.P256()).Public(), TTL: time.Hour}
}

// issue drafts and signs, and reads the leaf.
func issue(t testing.TB, a *ca.Authority, p ca.Profile, r ca.Request) *x509.Certificate {
	t.Helper()
	chain := must(a.Issue(must(a.Draft(p, r))(t)))(t)
	return must(x509.ParseCertificate(chain[0]))(t)
}

func wantFault(t testing.TB, err error, kind fault.Kind, code fault.Code) {
	t.Helper()
	var f *fault.Error
	if !errors.As(err, &f) || f.Kind != kind || f.Code != code {
		t.Errorf("error = %v, want one of kind %q and code %q", err, kind, code)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// The ledger keeps all that ever was. A year of it must not make every call slower.
func TestWhatEndedLongAgoIsNotGoneThrough(t *testing.T) {
	c := config()
	now := time.Now()
	c.Now = func() time.Time { return now }
	for range 5 { // keys in memory: each start has a root and an issuing certificate of its own
		start(t, c)
	}
	a := start(t, c)
	if n := a.Known(); n != 12 {
		t.Errorf("%d records are known while any of them may be asked about, not 12", n)
	}
	now = now.Add(3 * 24 * time.Hour)
	if err := a.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, roots := a.Known(), len(a.Bundle().Roots); n != 7 || roots != 1 {
		t.Errorf("%d records are known, %d roots in the bundle; want the six roots with the active issuing certificate, and one", n, roots)
	}
	if n := len(c.Ledger.(*ledger).records); n != 12 {
		t.Errorf("the ledger has %d records, not 12", n)
	}
}
