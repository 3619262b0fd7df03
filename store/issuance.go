package store

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/ca"
	"github.com/writ-dev/writ/internal/fault"
)

// RecordIssuance takes the serial and records the intent, only while entry, node and authority are what they were when the
// caller read them; else it is fault.Stale. A serial that was taken before is fault.Conflict.
func (db *DB) RecordIssuance(ctx context.Context, intent audit.Issuance) error {
	return db.RecordIssuances(ctx, []audit.Issuance{intent})[0]
}

// RecordIssuances is RecordIssuance for many that share one fsync. Each stands alone: the errors are in the order of the intents.
func (db *DB) RecordIssuances(ctx context.Context, intents []audit.Issuance) []error {
	writes := make([]*write, len(intents))
	errs := make([]error, len(intents))
	for i, intent := range intents {
		writes[i], errs[i] = db.enqueue(ctx, func(t *tx) error { return t.issue(intent) })
	}
	for i, w := range writes {
		if w != nil {
			errs[i] = db.await(w)
		}
	}
	return errs
}

func (t *tx) issue(i audit.Issuance) error {
	for _, unchanged := range []func(audit.Issuance) error{t.sameEntry, t.sameNode, t.sameAuthority} {
		if err := unchanged(i); err != nil {
			return err
		}
	}
	if i.Serial == "" {
		return fault.New(fault.Invalid, nil, "an issuance needs a serial")
	}
	i.Server = t.db.config.Server
	if i.Time.IsZero() {
		i.Time = t.db.config.Now()
	}
	_, err := t.exec("INSERT INTO issuance (serial, spiffe_id, entry, node, authority, not_after, server) VALUES (?, ?, ?, ?, ?, ?, ?)",
		i.Serial, i.SPIFFEID, i.Entry, i.Node, i.AuthorityID, micros(i.NotAfter), i.Server)
	if duplicate(err) {
		return fault.New(fault.Conflict, err, "the serial is taken")
	}
	if err != nil {
		return fmt.Errorf("take serial %s: %w", i.Serial, err)
	}
	return t.record(audit.KindIssuance, i.Time, i)
}

// stale is the answer to who decided on what is gone: read again and decide again.
func stale(what string) error { return fault.New(fault.Stale, nil, what) }

func (t *tx) sameEntry(i audit.Issuance) error {
	if i.Entry == "" {
		return nil // agent and server SVIDs have none
	}
	revision, found, err := first(t, func(rows *sql.Rows) (n uint64, err error) { return n, rows.Scan(&n) },
		"SELECT revision FROM entries WHERE name = ? AND spiffe_id = ?", i.Entry, i.SPIFFEID)
	if err == nil && (!found || revision != i.EntryRevision) {
		err = stale("the entry changed meanwhile")
	}
	return err
}

func (t *tx) sameNode(i audit.Issuance) error {
	if i.Node == "" {
		return nil // server SVIDs have none
	}
	type row struct {
		state      string
		generation uint64
	}
	n, found, err := first(t, func(rows *sql.Rows) (n row, err error) { return n, rows.Scan(&n.state, &n.generation) },
		"SELECT state, generation FROM nodes WHERE id = ?", i.Node)
	switch {
	case err != nil:
		return err
	case !found || n.state != string(attest.Attested):
		return stale("the node is no longer attested")
	case i.NodeGeneration != 0 && n.generation != i.NodeGeneration:
		return stale("the node renewed meanwhile")
	}
	return nil
}

func (t *tx) sameAuthority(i audit.Issuance) error {
	state, found, err := first(t, func(rows *sql.Rows) (state string, err error) { return state, rows.Scan(&state) },
		"SELECT state FROM authorities WHERE id = ?", i.AuthorityID)
	if err == nil && (!found || state != ca.StateActive) {
		err = stale("the authority is no longer active")
	}
	return err
}
