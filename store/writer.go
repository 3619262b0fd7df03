package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"

	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
)

const (
	queueLength = 1024 // writes that wait
	groupLength = 256  // writes that share a transaction
)

// write is one exported method's work. It runs on the writer, inside a savepoint; an error takes back all it did.
type write struct {
	ctx  context.Context
	do   func(*tx) error
	err  error // set before done is closed
	done chan struct{}
}

// history is where the registry's history stands.
type history struct {
	registration.Revision
	position int  // of the next change in this revision
	begun    bool // this process's first change is written
}

// tx is the writer's view of the transaction under way.
type tx struct {
	db      *DB
	conn    *sql.Conn
	stmts   map[string]*sql.Stmt // by text; they live as long as conn
	stopped error                // an fsync failed: nothing is written any more

	kept history // as committed
	now  history // within this transaction
	op   uint64  // the revision's number before this write
	rows bool    // audit rows were written
}

// write runs do on the writer and waits until it is on disk. Where ctx ends first, the outcome is not known.
func (db *DB) write(ctx context.Context, do func(*tx) error) error {
	w, err := db.enqueue(ctx, do)
	if err != nil {
		return err
	}
	return db.await(w)
}

func (db *DB) enqueue(ctx context.Context, do func(*tx) error) (*write, error) {
	w := &write{ctx: ctx, do: do, done: make(chan struct{})}
	select {
	case db.queue <- w:
		return w, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the store: %w", ctx.Err())
	case <-db.closing:
		return nil, errClosed()
	}
}

func (db *DB) await(w *write) error {
	select {
	case <-w.done:
	case <-w.ctx.Done():
		return fmt.Errorf("write to the store: %w", w.ctx.Err())
	case <-db.ended:
		select {
		case <-w.done:
		default:
			return errClosed()
		}
	}
	return db.fault(w.err)
}

func errClosed() error {
	return fault.New(fault.Unavailable, nil, "the store is closed").With(fault.StoreBusy, "try again")
}

// startWriter reads where history stands and starts the one goroutine that writes.
func (db *DB) startWriter(ctx context.Context) error {
	conn, err := db.writes.Conn(ctx)
	if err != nil {
		return db.fault(fmt.Errorf("open the store: %w", err))
	}
	t := &tx{db: db, conn: conn, stmts: map[string]*sql.Stmt{}}
	if t.kept.Revision, err = newest(t); err != nil {
		return errors.Join(db.fault(fmt.Errorf("read the revision: %w", err)), conn.Close())
	}
	go t.run()
	return nil
}

// run commits what waits until the store closes, and then what waited before that.
func (t *tx) run() {
	defer close(t.db.ended)
	defer t.close()
	for {
		select {
		case first := <-t.db.queue:
			t.commit(t.gather(first))
			continue
		default:
		}
		select {
		case first := <-t.db.queue:
			t.commit(t.gather(first))
		case <-t.db.closing:
			return
		}
	}
}

func (t *tx) close() {
	for _, stmt := range t.stmts {
		_ = stmt.Close() // the connection goes right after
	}
	_ = t.conn.Close() // only gives it back to its pool
}

// gather takes the writes that wait already.
func (t *tx) gather(first *write) []*write {
	group := []*write{first}
	for len(group) < groupLength {
		select {
		case w := <-t.db.queue:
			group = append(group, w)
		default:
			return group
		}
	}
	return group
}

// commit does a group in one transaction and tells each writer what became of its write.
func (t *tx) commit(group []*write) {
	err := t.transaction(group)
	if err != nil {
		t.db.failed(err)
		_, _ = t.exec("ROLLBACK") // SQLite may have done so itself
		if unsynced(err) {
			t.stopped = err
			t.db.failure.forGood()
			t.db.config.Log.Error("the disk did not take a write; the store writes no more", "err", err)
		}
	} else {
		if t.kept.Number != t.now.Number {
			defer t.db.moved.raise()
		}
		if t.rows {
			defer t.db.audited.raise()
		}
		t.kept = t.now
		defer t.db.Writable() // whoever wrote need not wait for it
	}
	for _, w := range group {
		if w.err == nil {
			w.err = err
		}
		close(w.done)
	}
}

// transaction runs each write in its savepoint. An error means that nothing of the group is in the store.
func (t *tx) transaction(group []*write) error {
	if t.stopped != nil {
		return fault.New(fault.Unavailable, t.stopped, "the store stopped writing").With(fault.StoreDamaged, "check the disk, then start again")
	}
	t.now, t.rows = t.kept, false
	if _, err := t.exec("BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	for _, w := range group {
		if w.err = w.ctx.Err(); w.err != nil {
			continue // whoever asked is gone
		}
		if err := t.savepoint(w); err != nil {
			return err
		}
	}
	if t.now.Number != t.kept.Number {
		if _, err := t.exec("UPDATE revision SET number = ?, chain = ? WHERE one = 1", t.now.Number, t.now.Chain); err != nil {
			return fmt.Errorf("move the revision: %w", err)
		}
	}
	if _, err := t.exec("COMMIT"); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// savepoint runs one write. Its error is the write's own; a returned one ends the group.
func (t *tx) savepoint(w *write) error {
	if _, err := t.exec("SAVEPOINT one"); err != nil {
		return err
	}
	before, rows := t.now, t.rows
	t.op = before.Number
	w.err = w.do(t)
	switch {
	case w.err == nil:
	case spoils(w.err):
		err := w.err
		w.err = nil // the group's error becomes everybody's
		return err
	default:
		t.now, t.rows = before, rows
		if _, err := t.exec("ROLLBACK TO one"); err != nil {
			return err
		}
	}
	_, err := t.exec("RELEASE one")
	return err
}

// revise gives the revision that this write makes. All changes of one write share it.
func (t *tx) revise() (uint64, error) {
	if t.now.Number != t.op {
		return t.now.Number, nil
	}
	t.now.Number++
	t.now.position = 0
	if t.now.begun {
		return t.now.Number, nil
	}
	t.now.begun = true
	return t.now.Number, t.change(KindStore, rand.Text())
}

// change adds to this write's revision what it touched.
func (t *tx) change(kind, id string) error {
	number, err := t.revise()
	if err != nil {
		return err
	}
	t.now.Chain = registration.NextChain(t.now.Chain, number, kind, id)
	t.now.position++
	_, err = t.exec("INSERT INTO changes (revision, position, chain, kind, id) VALUES (?, ?, ?, ?, ?)",
		number, t.now.position, t.now.Chain, kind, id)
	if err != nil {
		return fmt.Errorf("note the change of %s %s: %w", kind, id, err)
	}
	return nil
}

// stmt prepares each text once.
func (t *tx) stmt(text string) (*sql.Stmt, error) {
	if s := t.stmts[text]; s != nil {
		return s, nil
	}
	s, err := t.conn.PrepareContext(context.Background(), text)
	if err == nil {
		t.stmts[text] = s
	}
	return s, err
}

// exec runs a statement and gives how many rows it touched. No context: a write that began ends.
func (t *tx) exec(text string, args ...any) (int64, error) {
	s, err := t.stmt(text)
	if err != nil {
		return 0, err
	}
	result, err := s.Exec(args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func (t *tx) query(text string, args ...any) (*sql.Rows, error) {
	s, err := t.stmt(text)
	if err != nil {
		return nil, err
	}
	return s.Query(args...)
}
