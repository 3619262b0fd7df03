package store

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"

	"github.com/writ-dev/writ/ca"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
)

var _ ca.Ledger = (*DB)(nil)

const selectAuthorities = "SELECT id, server, usage, tier, state, certificate, key_name, not_before, not_after FROM authorities "

// Authorities are those of all servers, by their start.
func (db *DB) Authorities(ctx context.Context) (all []ca.AuthorityRecord, err error) {
	err = db.read(ctx, func(r reader) (err error) {
		all, err = collect(r, scanAuthority, selectAuthorities+"ORDER BY not_before, id")
		return err
	})
	return all, err
}

// RecordAuthority writes an authority by its ID; what moved makes a revision, of kind bundle. Nothing that it signed may be
// used before.
func (db *DB) RecordAuthority(ctx context.Context, a ca.AuthorityRecord) error {
	if a.ID == "" {
		return fault.New(fault.Invalid, nil, "an authority needs an id")
	}
	return db.write(ctx, func(t *tx) error {
		if err := t.putAuthority(a); err != nil {
			return fmt.Errorf("write authority %s: %w", a.ID, err)
		}
		return nil
	})
}

func (t *tx) putAuthority(a ca.AuthorityRecord) error {
	if a.Server == "" {
		a.Server = t.db.config.Server
	}
	old, found, err := first(t, scanAuthority, selectAuthorities+"WHERE id = ?", a.ID)
	if err != nil || found && sameAuthority(old, a) {
		return err
	}
	_, err = t.exec(`INSERT INTO authorities (id, server, usage, tier, state, certificate, key_name, not_before, not_after)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET server = excluded.server, usage = excluded.usage, tier = excluded.tier, state = excluded.state,
		certificate = excluded.certificate, key_name = excluded.key_name, not_before = excluded.not_before,
		not_after = excluded.not_after`,
		a.ID, a.Server, a.Use, a.Tier, a.State, filled(a.Certificate), a.KeyName, micros(a.NotBefore), micros(a.NotAfter))
	if err != nil {
		return err
	}
	return t.change(registration.KindBundle, a.ID)
}

func sameAuthority(a, b ca.AuthorityRecord) bool {
	return a.Server == b.Server && a.Use == b.Use && a.Tier == b.Tier && a.State == b.State && a.KeyName == b.KeyName &&
		bytes.Equal(a.Certificate, b.Certificate) && micros(a.NotBefore) == micros(b.NotBefore) && micros(a.NotAfter) == micros(b.NotAfter)
}

func scanAuthority(rows *sql.Rows) (a ca.AuthorityRecord, err error) {
	var from, until int64
	err = rows.Scan(&a.ID, &a.Server, &a.Use, &a.Tier, &a.State, &a.Certificate, &a.KeyName, &from, &until)
	a.NotBefore, a.NotAfter = ofMicros(from), ofMicros(until)
	return a, err
}
