// Package store keeps what must outlive a server: the registry, nodes, tokens, used evidence, bans, authorities, and the audit
// rows. Start with Open; every exported method of DB that writes is one transaction, on disk when it returns.
//
// There is one writer. Writes that wait share a transaction and its fsync, each in a savepoint of its own, so that one that is
// refused does not spoil the rest. Reads go past the writer and see whole transactions only.
package store

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Config says where the store is and who writes to it.
type Config struct {
	URL     string // "sqlite" (writ.db in DataDir) or "sqlite:PATH"; empty: "sqlite"
	DataDir string // made with mode 0700 where it is not there
	Server  string // names this server in every row that it writes
	Now     func() time.Time
	Log     *slog.Logger
}

// DB is the store of one server. All methods are safe to call concurrently.
type DB struct {
	config Config
	path   string
	lock   *os.File // held while the store is open
	writes *sql.DB  // one connection, the writer's
	reads  *sql.DB

	queue   chan *write
	closing chan struct{}
	ended   chan struct{} // closed when the writer has ended
	close   sync.Once
	closed  error // what Close gave

	moved   signal // the revision moved
	audited signal // audit rows came
	failure failure
}

// Open opens the store, or makes it. A damaged one is P5003, one that another process holds fault.Conflict P5004.
func Open(ctx context.Context, c Config) (*DB, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	path, err := c.path()
	if err != nil {
		return nil, err
	}
	db := &DB{config: c, path: path, queue: make(chan *write, queueLength), closing: make(chan struct{}), ended: make(chan struct{})}
	if err := db.open(ctx); err != nil {
		return nil, errors.Join(err, db.closeFiles())
	}
	return db, nil
}

func (db *DB) open(ctx context.Context) (err error) {
	if db.lock, err = lockStore(db.path); err != nil {
		return err
	}
	if err := prepareFiles(db.path); err != nil {
		return err
	}
	if db.writes, err = sql.Open("sqlite", address(db.path)); err != nil {
		return err
	}
	db.writes.SetMaxOpenConns(1)
	if err := db.check(ctx); err != nil {
		return err
	}
	if err := db.migrate(ctx); err != nil {
		return err
	}
	if db.reads, err = sql.Open("sqlite", address(db.path, "query_only(1)")); err != nil {
		return err
	}
	db.reads.SetMaxOpenConns(readers)
	db.reads.SetMaxIdleConns(readers)
	return db.startWriter(ctx)
}

// Close waits for the writes under way and closes the store.
func (db *DB) Close() error {
	db.close.Do(func() {
		close(db.closing)
		<-db.ended
		db.closed = db.closeFiles()
	})
	return db.closed
}

// closeFiles lets go of the lock last.
func (db *DB) closeFiles() error {
	var errs []error
	for _, pool := range []*sql.DB{db.reads, db.writes} {
		if pool != nil {
			errs = append(errs, pool.Close())
		}
	}
	if db.lock != nil {
		errs = append(errs, db.lock.Close())
	}
	return errors.Join(errs...)
}

// signal wakes whoever waits, as often as it is raised.
type signal struct {
	mu sync.Mutex
	c  chan struct{}
}

// wait gives a channel that the next raise closes.
func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		s.c = make(chan struct{})
	}
	return s.c
}

func (s *signal) raise() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c != nil {
		close(s.c)
		s.c = nil
	}
}
