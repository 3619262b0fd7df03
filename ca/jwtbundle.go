package ca

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/writ-dev/writ/svid"
)

// StateRemoved is a JWT authority's last state: its key has left the bundle.
const StateRemoved = "removed"

// jwtSlack is how long a key stays in the bundle after the end of its last token: clients take one for a while after its end, up to
// a minute for those of other people.
const jwtSlack = time.Minute

// jwtKnown is a record with its public key read.
type jwtKnown struct {
	AuthorityRecord
	public crypto.PublicKey
}

// inBundle holds while a token of that key may be valid, or soon will.
func (k jwtKnown) inBundle(now time.Time) bool {
	return k.State != StateRevoked && k.State != StateRemoved && k.NotAfter.Add(jwtSlack).After(now)
}

// Bundle is the JWT keys of the trust domain, all servers' together, as of now.
func (a *JWTAuthority) Bundle() svid.JWTBundle {
	a.mu.RLock()
	defer a.mu.RUnlock()
	b := svid.JWTBundle{TrustDomain: a.config.TrustDomain}
	for _, k := range a.known {
		if k.inBundle(a.config.Now()) {
			b.Keys = append(b.Keys, svid.JWTKey{ID: k.ID, Public: k.public})
		}
	}
	slices.SortFunc(b.Keys, func(x, y svid.JWTKey) int { return cmp.Compare(x.ID, y.ID) })
	return b
}

// Reload reads the ledger again: other servers' keys come into the Bundle by it.
func (a *JWTAuthority) Reload(ctx context.Context) error {
	for {
		a.mu.RLock()
		before := a.written
		a.mu.RUnlock()
		records, err := a.config.Ledger.Authorities(ctx)
		if err != nil {
			return fmt.Errorf("read JWT authorities: %w", err)
		}
		read := make(map[string]jwtKnown)
		for _, r := range records {
			if r.Use != UseJWT {
				continue
			}
			if read[r.ID], err = readJWTRecord(r); err != nil {
				return fmt.Errorf("recorded JWT authority %s: %w", r.ID, err)
			}
		}
		if a.replace(read, before) {
			return nil
		}
	}
}

// replace declines when this process has recorded something since the ledger was read.
func (a *JWTAuthority) replace(read map[string]jwtKnown, before uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.written != before {
		return false
	}
	a.known = read
	return true
}

func readJWTRecord(r AuthorityRecord) (jwtKnown, error) {
	public, err := x509.ParsePKIXPublicKey(r.Certificate)
	if err != nil {
		return jwtKnown{}, err
	}
	id, err := jwtKeyID(public)
	if err != nil {
		return jwtKnown{}, err
	}
	if id != r.ID {
		return jwtKnown{}, errors.New("its key has another id")
	}
	return jwtKnown{AuthorityRecord: r, public: public}, nil
}

// jwtKeyID derives `kid` from the key, as with certificates.
func jwtKeyID(public crypto.PublicKey) (string, error) {
	if _, err := jwtAlgorithmOf(public); err != nil {
		return "", err
	}
	encoded, err := encodeKey(public)
	if err != nil {
		return "", err
	}
	return hex.EncodeToString(encoded.id), nil
}

// record writes to the ledger and, when that holds it, to what is known here.
func (a *JWTAuthority) record(ctx context.Context, k jwtKnown) error {
	if err := a.config.Ledger.RecordAuthority(ctx, k.AuthorityRecord); err != nil {
		return fmt.Errorf("record JWT authority %s: %w", k.ID, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.known[k.ID] = k
	a.written++
	return nil
}

// all lists what is on record, the newest first.
func (a *JWTAuthority) all() []jwtKnown {
	a.mu.RLock()
	defer a.mu.RUnlock()
	list := make([]jwtKnown, 0, len(a.known))
	for _, k := range a.known {
		list = append(list, k)
	}
	slices.SortFunc(list, func(x, y jwtKnown) int { return cmp.Or(y.NotBefore.Compare(x.NotBefore), cmp.Compare(x.ID, y.ID)) })
	return list
}
