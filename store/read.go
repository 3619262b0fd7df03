package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// reader asks the writer's transaction or a snapshot.
type reader interface {
	query(text string, args ...any) (*sql.Rows, error)
}

// snapshot reads on one connection or transaction of the pool.
type snapshot struct {
	ctx context.Context
	on  interface {
		QueryContext(ctx context.Context, text string, args ...any) (*sql.Rows, error)
	}
}

func (s snapshot) query(text string, args ...any) (*sql.Rows, error) {
	return s.on.QueryContext(s.ctx, text, args...)
}

// read runs do on one consistent state of the store.
func (db *DB) read(ctx context.Context, do func(reader) error) error {
	tx, err := db.reads.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return db.fault(fmt.Errorf("read the store: %w", err))
	}
	defer func() { _ = tx.Rollback() }() // it wrote nothing
	return db.fault(do(snapshot{ctx, tx}))
}

// collect gives every row of a query.
func collect[T any](r reader, scan func(*sql.Rows) (T, error), text string, args ...any) (all []T, err error) {
	rows, err := r.query(text, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		one, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

// first gives a query's first row, and whether there is one.
func first[T any](r reader, scan func(*sql.Rows) (T, error), text string, args ...any) (one T, ok bool, err error) {
	all, err := collect(r, scan, text, args...)
	if err != nil || len(all) == 0 {
		return one, false, err
	}
	return all[0], true, nil
}

// micros is how a time is kept; the zero time is 0.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// ofMicros reads what micros gave.
func ofMicros(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(n).UTC()
}
