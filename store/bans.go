package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/internal/fault"
)

// mark is one thing that is banned.
type mark struct{ kind, value string }

const (
	markAgent       = "agent"
	markSelector    = "selector"
	markNodeKey     = "node key"
	markEvidenceKey = "evidence key"
)

// marksOf are all that a ban may know a node by.
func marksOf(n attest.Node) []mark {
	marks := append(keysOf(n), mark{markAgent, n.ID.String()})
	for _, s := range n.Selectors {
		marks = append(marks, mark{markSelector, s.String()})
	}
	return marks
}

// keysOf are what a banned node must not come back with.
func keysOf(n attest.Node) (marks []mark) {
	if len(n.Key) > 0 {
		marks = append(marks, mark{markNodeKey, string(n.Key)})
	}
	if len(n.EvidenceKey) > 0 {
		marks = append(marks, mark{markEvidenceKey, string(n.EvidenceKey)})
	}
	return marks
}

// Ban bans and gives the agent IDs that it touches now: those that carry the subject, and those that share a key with them.
func (db *DB) Ban(ctx context.Context, b attest.Ban, by audit.Admin) (ids []string, err error) {
	subject, err := subjectOf(b)
	if err != nil {
		return nil, err
	}
	if b.DryRun {
		err = db.read(ctx, func(r reader) error {
			touched, _, err := touchedBy(r, subject)
			ids = idsOf(touched)
			return err
		})
		return ids, err
	}
	err = db.write(ctx, func(t *tx) (err error) {
		ids, err = t.ban(b, subject, by)
		return err
	})
	if err != nil {
		return nil, err
	}
	return ids, nil
}

func subjectOf(b attest.Ban) (mark, error) {
	if strings.HasPrefix(b.Subject, "spiffe://") {
		if _, err := spiffeid.FromString(b.Subject); err != nil {
			return mark{}, fault.New(fault.Invalid, err, "the agent ID to ban does not read")
		}
		return mark{markAgent, b.Subject}, nil
	}
	if _, err := attest.ParseSelector(b.Subject); err != nil {
		return mark{}, fault.New(fault.Invalid, err, "a ban names an agent ID or a selector")
	}
	return mark{markSelector, b.Subject}, nil
}

// touchedBy gives the nodes under a ban, and all that it marks: a banned node's keys ban whoever else has one of them, and so on.
func touchedBy(r reader, subject mark) (touched []attest.Node, marks map[mark]bool, err error) {
	rest, err := collect(r, scanNode, selectNodes+"ORDER BY id")
	if err != nil {
		return nil, nil, err
	}
	marks = map[mark]bool{subject: true}
	for found := true; found; {
		found = false
		rest = slices.DeleteFunc(rest, func(n attest.Node) bool {
			if !slices.ContainsFunc(marksOf(n), func(m mark) bool { return marks[m] }) {
				return false
			}
			touched, found = append(touched, n), true
			for _, m := range keysOf(n) {
				marks[m] = true
			}
			return true
		})
	}
	return touched, marks, nil
}

func idsOf(nodes []attest.Node) (ids []string) {
	for _, n := range nodes {
		ids = append(ids, n.ID.String())
	}
	slices.Sort(ids)
	return ids
}

func (t *tx) ban(b attest.Ban, subject mark, by audit.Admin) ([]string, error) {
	touched, marks, err := touchedBy(t, subject)
	if err != nil {
		return nil, fmt.Errorf("ban %s: %w", b.Subject, err)
	}
	for m := range marks {
		_, err := t.exec(`INSERT INTO bans (kind, value, subject, reason, made, server) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (kind, value) DO NOTHING`, m.kind, []byte(m.value), b.Subject, b.Reason, micros(t.db.config.Now()), t.db.config.Server)
		if err != nil {
			return nil, fmt.Errorf("ban %s: %w", b.Subject, err)
		}
	}
	ids := idsOf(touched)
	for _, id := range ids {
		if _, err := t.exec("UPDATE nodes SET state = 'banned' WHERE id = ?", id); err != nil {
			return nil, fmt.Errorf("ban %s: %w", id, err)
		}
		if err := t.change(KindNode, id); err != nil {
			return nil, err
		}
		by.Changes = append(by.Changes, "banned "+id)
	}
	by.Act, by.Subject, by.Reason = audit.ActBan, b.Subject, b.Reason
	return ids, t.recordAdmin(by)
}

// refuseBanned is nil for a node that no ban knows.
func (t *tx) refuseBanned(n attest.Node) error {
	for _, m := range marksOf(n) {
		_, found, err := first(t, func(rows *sql.Rows) (one int, err error) { return one, rows.Scan(&one) },
			"SELECT 1 FROM bans WHERE kind = ? AND value = ?", m.kind, []byte(m.value))
		if err != nil {
			return err
		}
		if found {
			return banned()
		}
	}
	return nil
}

func banned() error {
	return fault.New(fault.Denied, nil, "the node is banned").With(fault.NodeBanned, "")
}
