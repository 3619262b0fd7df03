package store

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"iter"
	"slices"
	"strings"

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

// RecordIssuances is RecordIssuance for many in one write. Each stands alone: the errors are in the order of the intents.
func (db *DB) RecordIssuances(ctx context.Context, intents []audit.Issuance) []error {
	if len(intents) == 0 {
		return nil
	}
	var judged []error // the writer's until write returns without an error
	if err := db.write(ctx, func(t *tx) (err error) { judged, err = t.issue(intents); return err }); err != nil {
		return slices.Repeat([]error{err}, len(intents))
	}
	for i, err := range judged {
		judged[i] = db.fault(err)
	}
	return judged
}

// issue judges each intent alone and takes the serials of those that pass. Statements are for many rows: one for each row costs
// more than the signature that follows. An error means that nothing of it is written.
func (t *tx) issue(intents []audit.Issuance) (judged []error, err error) {
	judged = make([]error, len(intents))
	held, err := t.holding(intents)
	if err != nil {
		return nil, err
	}
	var good []issuing
	for i, intent := range intents {
		if judged[i] = held.judge(intent); judged[i] != nil {
			continue
		}
		serial, err := hex.DecodeString(intent.Serial)
		if err != nil || len(serial) == 0 {
			judged[i] = fault.New(fault.Invalid, err, "an issuance needs a serial, in hex")
			continue
		}
		intent.Server = t.db.config.Server
		if intent.Time.IsZero() {
			intent.Time = t.db.config.Now()
		}
		good = append(good, issuing{intent, serial, &judged[i]})
	}
	if err := t.takeSerials(good); err != nil {
		return nil, err
	}
	return judged, t.recordIssuances(good)
}

// issuing is an intent that may be signed so far, and where its error goes.
type issuing struct {
	audit.Issuance
	serial []byte
	err    *error
}

// takeSerials takes all at once, and one by one only where one of them is taken.
func (t *tx) takeSerials(all []issuing) error {
	for part := range parts(all) {
		args := make([]any, 0, 2*len(part))
		for _, i := range part {
			args = append(args, i.serial, micros(i.NotAfter))
		}
		_, err := t.exec("INSERT INTO serials (serial, not_after) VALUES "+list("(?, ?)", len(part)), args...)
		switch {
		case err == nil:
		case !duplicate(err):
			return fmt.Errorf("take serials: %w", err)
		case len(part) == 1:
			*part[0].err = fault.New(fault.Conflict, err, "the serial is taken")
		default:
			for _, one := range part {
				if err := t.takeSerials([]issuing{one}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// recordIssuances writes the audit rows of those whose serial is theirs.
func (t *tx) recordIssuances(all []issuing) error {
	taken := slices.DeleteFunc(all, func(i issuing) bool { return *i.err != nil })
	records := make([]record, len(taken))
	for n, i := range taken {
		records[n] = record{i.Time, i.Issuance}
	}
	return t.recordAll(audit.KindIssuance, records)
}

// The numbers of rows that statements are prepared for.
var rowsAtOnce = []int{64, 8, 1}

// parts cuts a list into the lengths that statements are prepared for.
func parts[T any](all []T) iter.Seq[[]T] {
	return func(yield func([]T) bool) {
		for _, n := range rowsAtOnce {
			for len(all) >= n {
				if !yield(all[:n:n]) {
					return
				}
				all = all[n:]
			}
		}
	}
}

// list is one text n times, between commas.
func list(one string, n int) string { return one + strings.Repeat(", "+one, n-1) }

// stale is the answer to who decided on what is gone: read again and decide again.
func stale(what string) error { return fault.New(fault.Stale, nil, what) }

// holding is what entries, nodes and authorities are at this moment, as far as intents name them.
type holding struct {
	entries     map[string]heldEntry
	nodes       map[string]heldNode
	authorities map[string]string // to their states
}

type heldEntry struct {
	name, spiffeID string
	revision       uint64
}

type heldNode struct {
	state      string
	generation uint64
}

func (t *tx) holding(intents []audit.Issuance) (h holding, err error) {
	h = holding{map[string]heldEntry{}, map[string]heldNode{}, map[string]string{}}
	var names []any
	for _, i := range intents {
		if i.Entry != "" {
			names = append(names, i.Entry)
		}
		if _, read := h.nodes[i.Node]; !read {
			h.nodes[i.Node], _, err = first(t, func(rows *sql.Rows) (n heldNode, err error) { return n, rows.Scan(&n.state, &n.generation) },
				"SELECT state, generation FROM nodes WHERE id = ?", i.Node)
		}
		if _, read := h.authorities[i.AuthorityID]; !read && err == nil {
			h.authorities[i.AuthorityID], _, err = first(t, func(rows *sql.Rows) (state string, err error) { return state, rows.Scan(&state) },
				"SELECT state FROM authorities WHERE id = ?", i.AuthorityID)
		}
		if err != nil {
			return h, err
		}
	}
	for part := range parts(names) {
		found, err := collect(t, func(rows *sql.Rows) (e heldEntry, err error) { return e, rows.Scan(&e.name, &e.spiffeID, &e.revision) },
			"SELECT name, spiffe_id, revision FROM entries WHERE name IN ("+list("?", len(part))+")", part...)
		if err != nil {
			return h, err
		}
		for _, e := range found {
			h.entries[e.name] = e
		}
	}
	return h, nil
}

// judge says what of an intent is no longer as its sender read it.
func (h holding) judge(i audit.Issuance) error {
	n := h.nodes[i.Node]
	switch {
	case i.Entry != "" && h.entries[i.Entry] != heldEntry{i.Entry, i.SPIFFEID, i.EntryRevision}: // agent and server SVIDs have none
		return stale("the entry changed meanwhile")
	case i.Node != "" && n.state != string(attest.Attested): // server SVIDs have none
		return stale("the node is no longer attested")
	case i.Node != "" && i.NodeGeneration != 0 && n.generation != i.NodeGeneration:
		return stale("the node renewed meanwhile")
	case h.authorities[i.AuthorityID] != ca.StateActive:
		return stale("the authority is no longer active")
	}
	return nil
}
