// Package store keeps what must outlive a server: the registry, nodes, tokens, used evidence, bans, authorities, and the audit
// rows. Start with Open; every exported method of DB that writes is one transaction, on disk when it returns.
//
// There is one writer. Writes that wait share a transaction and its fsync, each in a savepoint of its own, so that one that is
// refused does not spoil the rest. Reads go past the writer and see whole transactions only.
package store

import (
	"context"
	"log/slog"
	"time"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/registration"
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
type DB struct{}

// Open opens the store, or makes it. A damaged one is fault.Internal P5003, one that another process holds fault.Conflict P5004.
func Open(ctx context.Context, c Config) (*DB, error) { return &DB{}, nil }

// Close waits for the writes under way and closes the store.
func (db *DB) Close() error { return nil }

// KindNode is the kind of a change that touched a node: it came, was banned, locked or evicted, or its selectors changed. The
// ID is the agent ID. A renewal makes none.
const KindNode = "node"

// KindStore is the kind of the change that begins the first revision after the store was opened. Its random ID makes the
// histories of a store and of its restored copy differ from there on. Followers pass over it.
const KindStore = "store"

// Newest is the registry's revision.
func (db *DB) Newest(ctx context.Context) (registration.Revision, error) {
	return registration.Revision{}, nil
}

// Changes are what happened after a revision, oldest first, at least one and about limit where there are that many. A revision
// is never cut in two.
func (db *DB) Changes(ctx context.Context, after uint64, limit int) ([]registration.Change, error) {
	return nil, nil
}

// ChainAt is the chain of a revision, fault.NotFound where this history has no such revision.
func (db *DB) ChainAt(ctx context.Context, revision uint64) ([]byte, error) { return nil, nil }

// Moved is closed when the revision next moves. Take it before reading, then wait.
func (db *DB) Moved() <-chan struct{} { return nil }

// Entries are all entries by name, and the revision that they are of.
func (db *DB) Entries(ctx context.Context) ([]registration.Entry, registration.Revision, error) {
	return nil, registration.Revision{}, nil
}

// EntriesNamed are those of the names that exist, by name.
func (db *DB) EntriesNamed(ctx context.Context, names []string) ([]registration.Entry, error) {
	return nil, nil
}

// Apply does the whole batch or nothing, in one revision. Batch.Delete takes names and SPIFFE IDs.
func (db *DB) Apply(ctx context.Context, b registration.Batch, by audit.Admin) (registration.Applied, error) {
	return registration.Applied{}, nil
}

// Admit commits an accepted attestation and gives the node as it stands then: its generation is the store's to say. Evidence
// that another node key used is fault.Stale P3002; what is banned is fault.Denied P3003, a locked node fault.Denied P3004.
func (db *DB) Admit(ctx context.Context, a attest.Admission, record audit.Attestation) (attest.Node, error) {
	return attest.Node{}, nil
}

// Renew commits a renewal by the node key. Of n it takes ID, Key, SVIDKey, Generation, AttestedUntil and Serial. The next
// generation is taken, and the same again with the same SVID key; any other locks the node (fault.Denied P3004). A node that
// is not there, or has another node key, is fault.NotFound P3005.
func (db *DB) Renew(ctx context.Context, n attest.Node, record audit.Attestation) (attest.Node, error) {
	return attest.Node{}, nil
}

// Node is the node of an agent ID, fault.NotFound P3005 where there is none.
func (db *DB) Node(ctx context.Context, id string) (attest.Node, error) { return attest.Node{}, nil }

// Nodes are all nodes by agent ID.
func (db *DB) Nodes(ctx context.Context) ([]attest.Node, error) { return nil, nil }

// Ban bans and gives the agent IDs that it touches now.
func (db *DB) Ban(ctx context.Context, b attest.Ban, by audit.Admin) ([]string, error) {
	return nil, nil
}

// Evict forgets a node. What bans it stays.
func (db *DB) Evict(ctx context.Context, id string, by audit.Admin) error { return nil }

// CreateToken keeps a join token.
func (db *DB) CreateToken(ctx context.Context, t attest.Token, by audit.Admin) error { return nil }

// Token is the join token of an id, fault.NotFound P3002 where there is none.
func (db *DB) Token(ctx context.Context, id string) (attest.Token, error) { return attest.Token{}, nil }

// RecordIssuance takes the serial and records the intent, only while entry, node and authority are what they were when the
// caller read them; else it is fault.Stale. A serial that was taken before is fault.Conflict.
func (db *DB) RecordIssuance(ctx context.Context, i audit.Issuance) error { return nil }

// RecordIssuances is RecordIssuance for many that share one fsync. Each stands alone: the errors are in the order of the intents.
func (db *DB) RecordIssuances(ctx context.Context, intents []audit.Issuance) []error { return nil }

// AuditRows are the audit rows after one, oldest first, at most limit.
func (db *DB) AuditRows(ctx context.Context, after uint64, limit int) ([]audit.Row, error) {
	return nil, nil
}

// Sink takes audit rows in order. Last is the newest row that it holds. *audit.Lines is one.
type Sink interface {
	Last() uint64
	Feed(rows []audit.Row) error
}

// Follow feeds a sink from the rows until ctx ends, beginning after what it holds. A sink that fails is tried again.
func (db *DB) Follow(ctx context.Context, s Sink) error { return nil }
