package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/internal/fault"
)

const selectNodes = `SELECT id, method, node_key, svid_key, generation, state, selectors, assurance, reattestable, evidence_key,
	attested_at, attested_until, serial, server FROM nodes `

// Node is the node of an agent ID, fault.NotFound P3005 where there is none.
func (db *DB) Node(ctx context.Context, id string) (n attest.Node, err error) {
	err = db.read(ctx, func(r reader) (err error) {
		n, err = nodeOf(r, id)
		return err
	})
	return n, err
}

// Nodes are all nodes by agent ID.
func (db *DB) Nodes(ctx context.Context) (nodes []attest.Node, err error) {
	err = db.read(ctx, func(r reader) (err error) {
		nodes, err = collect(r, scanNode, selectNodes+"ORDER BY id")
		return err
	})
	return nodes, err
}

func nodeOf(r reader, id string) (attest.Node, error) {
	n, ok, err := first(r, scanNode, selectNodes+"WHERE id = ?", id)
	if err == nil && !ok {
		err = unknownNode()
	}
	return n, err
}

func unknownNode() error {
	return fault.New(fault.NotFound, nil, "no such node; it must attest anew").With(fault.NodeUnknown, "writ node list")
}

func scanNode(rows *sql.Rows) (n attest.Node, err error) {
	var id, state, selectors string
	var at, until int64
	err = rows.Scan(&id, &n.Method, &n.Key, &n.SVIDKey, &n.Generation, &state, &selectors, &n.Assurance, &n.Reattestable,
		&n.EvidenceKey, &at, &until, &n.Serial, &n.Server)
	if err != nil {
		return n, err
	}
	n.State, n.AttestedAt, n.AttestedUntil = attest.NodeState(state), ofMicros(at), ofMicros(until)
	if n.ID, err = spiffeid.FromString(id); err != nil {
		return n, damaged(err).Because(fmt.Sprintf("the ID of node %q does not read", id))
	}
	if n.Selectors, err = ofLines(selectors); err != nil {
		return n, damaged(err).Because(fmt.Sprintf("the selectors of node %q do not read", id))
	}
	return n, nil
}

// lines is how selectors are kept. What would not read back is refused.
func lines(selectors []attest.Selector) (string, error) {
	out := make([]string, 0, len(selectors))
	for _, s := range selectors {
		text := s.String()
		if back, err := attest.ParseSelector(text); err != nil || back != s || !utf8.ValidString(text) {
			return "", fault.New(fault.Invalid, err, fmt.Sprintf("selector %q cannot be kept", text)).With(fault.BadEvidence, "")
		}
		out = append(out, text)
	}
	return strings.Join(out, "\n"), nil
}

func ofLines(text string) (selectors []attest.Selector, err error) {
	if text == "" {
		return nil, nil
	}
	for line := range strings.SplitSeq(text, "\n") {
		s, err := attest.ParseSelector(line)
		if err != nil {
			return nil, err
		}
		selectors = append(selectors, s)
	}
	return selectors, nil
}

// Admit commits an accepted attestation and gives the node as it stands then: its generation is the store's to say. Evidence
// that another node key used is fault.Stale P3002; what is banned is fault.Denied P3003, a locked node fault.Denied P3004.
func (db *DB) Admit(ctx context.Context, a attest.Admission, record audit.Attestation) (attest.Node, error) {
	if a.Node.ID.IsZero() || len(a.Node.Key) == 0 {
		return attest.Node{}, fault.New(fault.Invalid, nil, "an admission needs an agent ID and a node key").With(fault.BadEvidence, "")
	}
	var kept attest.Node
	var refused error // unlike an error, it keeps what was done
	err := db.write(ctx, func(t *tx) (err error) {
		kept, refused, err = t.admit(a, record)
		return err
	})
	if err != nil {
		return attest.Node{}, err
	}
	return kept, refused
}

func (t *tx) admit(a attest.Admission, record audit.Attestation) (kept attest.Node, refused, err error) {
	n := a.Node
	if err := t.refuseBanned(n); err != nil {
		return n, nil, err
	}
	for _, use := range a.Uses {
		if err := t.use(use); err != nil {
			return n, nil, err
		}
	}
	old, known, err := first(t, scanNode, selectNodes+"WHERE id = ?", n.ID.String())
	if err != nil {
		return n, nil, err
	}
	switch {
	case known && old.State != attest.Attested:
		return n, nil, notAttested(old)
	case !known:
		n.Generation = 1
	case n.Generation == 0 || !bytes.Equal(old.Key, n.Key):
		n.Generation = old.Generation + 1
	case !follows(old, n):
		refused, err = t.lock(old, record)
		return n, refused, err
	}
	n.State = attest.Attested
	if n.AttestedAt.IsZero() {
		n.AttestedAt = t.db.config.Now()
	}
	n.Server = t.db.config.Server
	if err := t.putNode(n); err != nil {
		return n, nil, err
	}
	if !known || !sameFacts(old, n) {
		if err := t.change(KindNode, n.ID.String()); err != nil {
			return n, nil, err
		}
	}
	record.Outcome = audit.Admitted
	return n, nil, t.recordAttestation(n, record)
}

// sameFacts says whether nobody but the node itself needs to hear of its new row.
func sameFacts(a, b attest.Node) bool {
	return a.Method == b.Method && bytes.Equal(a.Key, b.Key) && slices.Equal(a.Selectors, b.Selectors) && a.Assurance == b.Assurance
}

// follows is the rule that keeps a copied data directory from living on: the next generation, or the same again with the same
// SVID key, whose answer was lost.
func follows(old, n attest.Node) bool {
	return n.Generation == old.Generation+1 || n.Generation == old.Generation && bytes.Equal(n.SVIDKey, old.SVIDKey)
}

// use marks evidence as used, unless another holder did. What expired is refused here too: who judged it may have been slow, and a
// use is remembered until it expires only.
func (t *tx) use(u attest.Use) error {
	if !t.db.config.Now().Before(u.Expires) {
		return fault.New(fault.Stale, nil, "the evidence expired").Because(u.Kind).With(fault.TokenUsed, "")
	}
	fresh, err := t.exec(`INSERT INTO used_evidence (kind, hash, holder, expires, server) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (kind, hash) DO NOTHING`, u.Kind, u.Digest[:], u.Holder[:], micros(u.Expires), t.db.config.Server)
	if err != nil || fresh == 1 {
		return err
	}
	_, same, err := first(t, func(rows *sql.Rows) (one int, err error) { return one, rows.Scan(&one) },
		"SELECT 1 FROM used_evidence WHERE kind = ? AND hash = ? AND holder = ?", u.Kind, u.Digest[:], u.Holder[:])
	switch {
	case err != nil || same:
		return err
	case u.Kind == "join_token":
		return fault.New(fault.Stale, nil, "the join token was used by another node").With(fault.TokenUsed, "writ token create")
	}
	return fault.New(fault.Stale, nil, "the evidence was used by another node").Because(u.Kind).With(fault.TokenUsed, "")
}

func (t *tx) putNode(n attest.Node) error {
	selectors, err := lines(n.Selectors)
	if err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO nodes (id, method, node_key, svid_key, generation, state, selectors, assurance, reattestable,
		evidence_key, attested_at, attested_until, serial, server) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET method = excluded.method, node_key = excluded.node_key, svid_key = excluded.svid_key,
		generation = excluded.generation, state = excluded.state, selectors = excluded.selectors, assurance = excluded.assurance,
		reattestable = excluded.reattestable, evidence_key = excluded.evidence_key, attested_at = excluded.attested_at,
		attested_until = excluded.attested_until, serial = excluded.serial, server = excluded.server`,
		n.ID.String(), n.Method, filled(n.Key), filled(n.SVIDKey), n.Generation, string(n.State), selectors, n.Assurance, n.Reattestable,
		filled(n.EvidenceKey), micros(n.AttestedAt), micros(n.AttestedUntil), n.Serial, n.Server)
	if err != nil {
		return fmt.Errorf("write node %s: %w", n.ID, err)
	}
	return nil
}

// filled makes no bytes an empty value, not NULL.
func filled(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// Renew commits a renewal by the node key. Of n it takes ID, Key, SVIDKey, Generation, AttestedUntil and Serial. The next
// generation is taken, and the same again with the same SVID key; any other locks the node (fault.Denied P3004). A node that
// is not there, or has another node key, is fault.NotFound P3005.
func (db *DB) Renew(ctx context.Context, n attest.Node, record audit.Attestation) (attest.Node, error) {
	var kept attest.Node
	var refused error // unlike an error, it keeps what was done
	err := db.write(ctx, func(t *tx) (err error) {
		kept, refused, err = t.renew(n, record)
		return err
	})
	if err != nil { // perhaps the caller left, and the writer is still at it
		return attest.Node{}, err
	}
	if refused != nil {
		return attest.Node{}, refused
	}
	return kept, nil
}

func (t *tx) renew(n attest.Node, record audit.Attestation) (kept attest.Node, refused, err error) {
	old, err := nodeOf(t, n.ID.String())
	switch {
	case err != nil:
		return n, nil, err
	case !bytes.Equal(old.Key, n.Key): // a stranger to this node must not be able to lock it
		return n, nil, unknownNode()
	case old.State != attest.Attested:
		return n, nil, notAttested(old)
	case !follows(old, n):
		refused, err = t.lock(old, record)
		return n, refused, err
	}
	kept = old
	kept.SVIDKey, kept.Generation, kept.AttestedUntil, kept.Serial = n.SVIDKey, n.Generation, n.AttestedUntil, n.Serial
	kept.Server = t.db.config.Server
	if err := t.putNode(kept); err != nil {
		return n, nil, err
	}
	record.Outcome = audit.Renewed
	return kept, nil, t.recordAttestation(kept, record)
}

// lock takes a node out whose data directory lives twice. The refusal is apart from the error: the lock is to be committed.
func (t *tx) lock(n attest.Node, record audit.Attestation) (refused, err error) {
	n.State = attest.Locked
	if err := t.putNode(n); err != nil {
		return nil, err
	}
	if err := t.change(KindNode, n.ID.String()); err != nil {
		return nil, err
	}
	record.Outcome = audit.Locked
	return notAttested(n), t.recordAttestation(n, record)
}

func notAttested(n attest.Node) error {
	if n.State == attest.Banned {
		return banned()
	}
	return fault.New(fault.Denied, nil, "the node is locked: its data directory was used twice").
		With(fault.NodeLocked, "writ node evict "+n.ID.String())
}

// Evict forgets a node. What bans it stays.
func (db *DB) Evict(ctx context.Context, id string, by audit.Admin) error {
	return db.write(ctx, func(t *tx) error {
		gone, err := t.exec("DELETE FROM nodes WHERE id = ?", id)
		if err != nil {
			return fmt.Errorf("evict %s: %w", id, err)
		}
		if gone == 0 {
			return unknownNode()
		}
		if err := t.change(KindNode, id); err != nil {
			return err
		}
		by.Act, by.Subject, by.Changes = audit.ActEvict, id, []string{"evicted " + id}
		return t.recordAdmin(by)
	})
}

// recordAttestation takes from the node what the caller need not repeat.
func (t *tx) recordAttestation(n attest.Node, record audit.Attestation) error {
	record.Time, record.Server = t.db.config.Now(), t.db.config.Server
	record.AgentID, record.Generation, record.Assurance = n.ID.String(), n.Generation, uint8(n.Assurance)
	record.NodeKey = sha256.Sum256(n.Key)
	if record.Method == "" {
		record.Method = n.Method
	}
	record.Selectors = nil
	for _, s := range n.Selectors {
		record.Selectors = append(record.Selectors, s.String())
	}
	return t.record(audit.KindAttestation, record.Time, record)
}
