package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"github.com/writ-dev/writ/audit"
)

const (
	feedLength = 500         // rows that a sink gets at once
	feedAgain  = time.Second // until a sink that failed is tried again
)

// record is what an audit row says, and when it was.
type record struct {
	at   time.Time
	what any
}

// record writes an audit row in the transaction of what it is about.
func (t *tx) record(kind string, at time.Time, what any) error {
	return t.recordAll(kind, []record{{at, what}})
}

// recordAll writes audit rows of one kind, in order.
func (t *tx) recordAll(kind string, all []record) error {
	for part := range parts(all) {
		args := make([]any, 0, 4*len(part))
		for _, r := range part {
			text, err := json.Marshal(r.what)
			if err != nil {
				return fmt.Errorf("record the %s: %w", kind, err)
			}
			args = append(args, micros(r.at), t.db.config.Server, kind, string(text))
		}
		if _, err := t.exec("INSERT INTO audit (time, server, kind, record) VALUES "+list("(?, ?, ?, ?)", len(part)), args...); err != nil {
			return fmt.Errorf("record the %s: %w", kind, err)
		}
		t.rows = true
	}
	return nil
}

// recordAdmin adds what the store knows of an act.
func (t *tx) recordAdmin(by audit.Admin) error {
	by.Time, by.Server = t.db.config.Now(), t.db.config.Server
	if t.now.Number != t.op {
		by.Revision = t.now.Number
	}
	return t.record(audit.KindAdmin, by.Time, by)
}

// AuditRows are the audit rows after one, oldest first, at most limit.
func (db *DB) AuditRows(ctx context.Context, after uint64, limit int) (rows []audit.Row, err error) {
	err = db.read(ctx, func(r reader) (err error) {
		rows, err = collect(r, scanRow, "SELECT id, time, server, kind, record FROM audit WHERE id > ? ORDER BY id LIMIT ?", after, limit)
		return err
	})
	return rows, err
}

func scanRow(rows *sql.Rows) (row audit.Row, err error) {
	var at int64
	var record string
	err = rows.Scan(&row.ID, &at, &row.Server, &row.Kind, &record)
	row.Time, row.Record = ofMicros(at), json.RawMessage(record)
	return row, err
}

// Sink takes audit rows in order. Last is the newest row that it holds. *audit.Lines is one.
type Sink interface {
	Last() uint64
	Feed(rows []audit.Row) error
}

// Follow feeds a sink from the rows until ctx ends, which is no error. It begins after what the sink holds, so nothing is lost
// to a crash; a sink that fails is tried again, and says itself what is wrong.
func (db *DB) Follow(ctx context.Context, s Sink) error {
	after, err := db.resume(ctx, s)
	if err != nil {
		return err
	}
	for failing := false; ctx.Err() == nil; {
		came := db.audited.wait()
		rows, err := db.AuditRows(ctx, after, feedLength)
		switch {
		case err != nil && !failing && ctx.Err() == nil:
			db.config.Log.ErrorContext(ctx, "audit rows cannot be read", "err", err)
		case err == nil && failing:
			db.config.Log.WarnContext(ctx, "audit rows are read again")
		}
		failing = err != nil
		if err == nil && len(rows) > 0 {
			err = s.Feed(rows)
		}
		if err != nil {
			pause(ctx, feedAgain)
			continue
		}
		if len(rows) > 0 {
			after = rows[len(rows)-1].ID
			continue
		}
		select {
		case <-came:
		case <-ctx.Done():
		}
	}
	return nil
}

// resume says where feeding goes on. A sink that is ahead of the store was fed by what the store was restored from.
func (db *DB) resume(ctx context.Context, s Sink) (after uint64, err error) {
	after = s.Last()
	err = db.read(ctx, func(r reader) error {
		last, _, err := first(r, func(rows *sql.Rows) (n uint64, err error) { return n, rows.Scan(&n) },
			"SELECT COALESCE(MAX(id), 0) FROM audit")
		if err == nil && after > last {
			db.config.Log.WarnContext(ctx, "the audit file holds rows that the store does not: it is older than the file")
			after = last
		}
		return err
	})
	return after, err
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
