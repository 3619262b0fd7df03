package store

import (
	"context"
	"database/sql"
	"fmt"
	"math"

	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
)

// KindNode is the kind of a change that touched a node: it came, was banned, locked or evicted, or its selectors changed. The
// ID is the agent ID. A renewal makes none.
const KindNode = "node"

// KindStore is the kind of the change that begins the first revision after the store was opened. Its random ID makes the
// histories of a store and of its restored copy differ from there on, whatever both do next. Followers pass over it.
const KindStore = "store"

// Newest is the registry's revision.
func (db *DB) Newest(ctx context.Context) (at registration.Revision, err error) {
	err = db.read(ctx, func(r reader) (err error) {
		at, err = newest(r)
		return err
	})
	return at, err
}

func newest(r reader) (registration.Revision, error) {
	at, ok, err := first(r, func(rows *sql.Rows) (at registration.Revision, err error) {
		return at, rows.Scan(&at.Number, &at.Chain)
	}, "SELECT number, chain FROM revision WHERE one = 1")
	if err == nil && !ok {
		err = damaged(nil).Because("it has no revision")
	}
	return at, err
}

// Changes are what happened after a revision, oldest first: at most limit, but the whole of the first revision. No revision is
// ever cut in two.
func (db *DB) Changes(ctx context.Context, after uint64, limit int) (changes []registration.Change, err error) {
	limit, after = max(limit, 1), min(after, math.MaxInt64)
	err = db.read(ctx, func(r reader) (err error) {
		const text = "SELECT revision, chain, kind, id FROM changes WHERE revision > ? ORDER BY revision, position LIMIT ?"
		if changes, err = collect(r, scanChange, text, after, limit+1); err != nil || len(changes) <= limit {
			return err
		}
		last := changes[limit].Revision.Number // may go on behind the limit
		whole := limit
		for whole > 0 && changes[whole-1].Revision.Number == last {
			whole--
		}
		if changes = changes[:whole]; whole > 0 {
			return nil
		}
		changes, err = collect(r, scanChange, "SELECT revision, chain, kind, id FROM changes WHERE revision = ? ORDER BY position", last)
		return err
	})
	return changes, err
}

func scanChange(rows *sql.Rows) (c registration.Change, err error) {
	return c, rows.Scan(&c.Revision.Number, &c.Revision.Chain, &c.Kind, &c.ID)
}

// ChainAt is the chain after a revision's last change, fault.NotFound where this history has no such revision. Who resumes with
// another chain comes from another history, such as that of a store which was restored since.
func (db *DB) ChainAt(ctx context.Context, revision uint64) (chain []byte, err error) {
	if revision == 0 {
		return nil, nil // nothing happened yet, in every history
	}
	err = db.read(ctx, func(r reader) error {
		revision := min(revision, math.MaxInt64) // a follower may name any
		at, ok, err := first(r, scanChange,
			"SELECT revision, chain, kind, id FROM changes WHERE revision = ? ORDER BY position DESC LIMIT 1", revision)
		if err == nil && !ok {
			return fault.New(fault.NotFound, nil, fmt.Sprintf("revision %d is not in this store's history", revision))
		}
		chain = at.Revision.Chain
		return err
	})
	return chain, err
}

// Moved is closed when the revision next moves. Take it before reading, then wait.
func (db *DB) Moved() <-chan struct{} { return db.moved.wait() }
