package ca

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/svid"
)

// Bundle is what others need to verify SVIDs of this trust domain, as of now.
type Bundle struct {
	TrustDomain spiffeid.TrustDomain
	Roots       []*x509.Certificate // the trust anchors, the active one first
	Issuing     []*x509.Certificate // all servers', for whoever is shown a leaf alone; anchors of nothing
}

// Bundle takes a snapshot. An old root is in it while an issuing certificate of its may live, an issuing certificate until it
// ends.
func (a *Authority) Bundle() Bundle {
	a.mu.RLock()
	defer a.mu.RUnlock()
	now := a.config.Now()
	b := Bundle{TrustDomain: a.config.TrustDomain}
	for _, k := range sorted(a.known) {
		switch {
		case !k.counts(now):
		case k.Tier == TierIssuing:
			b.Issuing = append(b.Issuing, k.cert)
		case k.State != StateOld || a.hasIssued(k, now):
			b.Roots = append(b.Roots, k.cert)
		}
	}
	return b
}

// hasIssued says whether an issuing certificate under that root may live. The caller holds mu.
func (a *Authority) hasIssued(root known, now time.Time) bool {
	for _, k := range a.known {
		if k.Tier == TierIssuing && k.counts(now) && bytes.Equal(k.cert.AuthorityKeyId, root.cert.SubjectKeyId) {
			return true
		}
	}
	return false
}

func (k known) counts(now time.Time) bool { return k.State != StateRevoked && k.NotAfter.After(now) }

// sorted orders active ones first, then the newest, so that a bundle of the same certificates has them in the same order.
func sorted(records map[string]known) []known {
	list := make([]known, 0, len(records))
	for _, k := range records {
		list = append(list, k)
	}
	slices.SortFunc(list, func(x, y known) int {
		if xActive, yActive := x.State == StateActive, y.State == StateActive; xActive != yActive {
			if xActive {
				return -1
			}
			return 1
		}
		return cmp.Or(y.NotBefore.Compare(x.NotBefore), cmp.Compare(x.ID, y.ID))
	})
	return list
}

// Reload reads the ledger again. Whoever follows the store calls it when authorities have changed: other servers' issuing
// certificates come into the Bundle by it.
func (a *Authority) Reload(ctx context.Context) error {
	for {
		before := a.writes()
		records, err := a.config.Ledger.Authorities(ctx)
		if err != nil {
			return fmt.Errorf("read authorities: %w", err)
		}
		read, err := a.readAll(records)
		if err != nil {
			return err
		}
		if a.replace(read, before) {
			return nil
		}
	}
}

func (a *Authority) writes() uint64 {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.written
}

// replace declines when this process has recorded something since the ledger was read.
func (a *Authority) replace(read map[string]known, before uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.written != before {
		return false
	}
	a.known = read
	return true
}

func (a *Authority) readAll(records []AuthorityRecord) (map[string]known, error) {
	read := make(map[string]known, len(records))
	for _, r := range records {
		if r.Use != UseX509 || a.longOver(r) {
			continue
		}
		k, err := a.read(r)
		if err != nil {
			return nil, fmt.Errorf("recorded authority %s: %w", r.ID, err)
		}
		read[r.ID] = k
	}
	return read, nil
}

// longOver leaves out what signs no more and ended over a day ago, by which clocks may differ: the ledger keeps everything, and each
// call of an agent goes through what is known.
func (a *Authority) longOver(r AuthorityRecord) bool {
	signs := r.State == StateActive || r.State == StatePrepared
	return !signs && r.NotAfter.Before(a.config.Now().Add(-24*time.Hour))
}

// read checks a record against its certificate, whose word counts.
func (a *Authority) read(r AuthorityRecord) (known, error) {
	cert, err := x509.ParseCertificate(r.Certificate)
	if err != nil {
		return known{}, err
	}
	if err := svid.CheckAuthority(cert); err != nil {
		return known{}, err
	}
	id, err := svid.IDFromCert(cert)
	switch {
	case err != nil:
		return known{}, err
	case !id.MemberOf(a.config.TrustDomain):
		return known{}, fault.New(fault.Invalid, nil, "the store is of trust domain "+id.TrustDomain().Name()+", not "+a.config.TrustDomain.Name()).
			With(fault.BadConfig, "set trust_domain to what it was, or take another data directory")
	case r.ID != hex.EncodeToString(cert.SubjectKeyId):
		return known{}, errors.New("its certificate has another key id")
	}
	r.NotBefore, r.NotAfter = cert.NotBefore, cert.NotAfter
	return known{AuthorityRecord: r, cert: cert}, nil
}

// record writes to the ledger and, when that holds it, to what is known here.
func (a *Authority) record(ctx context.Context, k known) error {
	if err := a.config.Ledger.RecordAuthority(ctx, k.AuthorityRecord); err != nil {
		return fmt.Errorf("record authority %s: %w", k.ID, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.known[k.ID] = k
	a.written++
	return nil
}
