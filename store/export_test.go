package store

import (
	"context"
	"database/sql"
)

// WriterSays asks the connection that writes, which is not to be had otherwise.
func (db *DB) WriterSays(ctx context.Context, query string) (answer string, err error) {
	err = db.write(ctx, func(t *tx) (err error) {
		answer, _, err = first(t, func(r *sql.Rows) (s string, err error) { return s, r.Scan(&s) }, query)
		return err
	})
	return answer, err
}

// ReadersSay asks one of the connections that read.
func (db *DB) ReadersSay(ctx context.Context, query string) (answer string, err error) {
	err = db.read(ctx, func(r reader) (err error) {
		answer, _, err = first(r, func(r *sql.Rows) (s string, err error) { return s, r.Scan(&s) }, query)
		return err
	})
	return answer, err
}

// Migrations are what brings an older store up.
var Migrations = migrations

// Fails is what the writer does with a failed transaction; for good, where the disk did not take what was written.
func (db *DB) Fails(err error, forGood bool) {
	db.failed(err)
	if forGood {
		db.failure.forGood()
	}
}
