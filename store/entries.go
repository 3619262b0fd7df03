package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/api/registrationv1"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
)

// errDryRun takes back what a dry run did.
var errDryRun = errors.New("dry run")

// stored is an entry with who applied it last.
type stored struct {
	registration.Entry
	owner string
}

const selectEntries = "SELECT name, spiffe_id, owner, revision, body FROM entries "

// Entries are all entries by name, and the revision that they are of. What expired is among them until it is deleted.
func (db *DB) Entries(ctx context.Context) (entries []registration.Entry, at registration.Revision, err error) {
	err = db.read(ctx, func(r reader) (err error) {
		if entries, err = collect(r, scanEntry, selectEntries+"ORDER BY name"); err != nil {
			return err
		}
		at, err = newest(r)
		return err
	})
	return entries, at, err
}

// EntriesNamed are those of the names that exist, by name.
func (db *DB) EntriesNamed(ctx context.Context, names []string) (entries []registration.Entry, err error) {
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	err = db.read(ctx, func(r reader) error {
		for _, name := range names {
			e, ok, err := first(r, scanEntry, selectEntries+"WHERE name = ?", name)
			if err != nil {
				return err
			}
			if ok {
				entries = append(entries, e)
			}
		}
		return nil
	})
	return entries, err
}

func scanEntry(rows *sql.Rows) (registration.Entry, error) {
	s, err := scanStored(rows)
	return s.Entry, err
}

func scanStored(rows *sql.Rows) (s stored, err error) {
	var name, id string
	var revision uint64
	var body sql.RawBytes
	if err := rows.Scan(&name, &id, &s.owner, &revision, &body); err != nil {
		return s, err
	}
	var w registrationv1.Entry
	if err := proto.Unmarshal(body, &w); err != nil {
		return s, damaged(err).Because("an entry does not read")
	}
	if s.Entry, err = registration.FromWire(&w); err != nil {
		return s, damaged(err).Because(fmt.Sprintf("entry %q does not read", name))
	}
	if s.Name != name || s.ID.String() != id || w.GetRevision() != revision { // it would answer for another
		return s, damaged(nil).Because(fmt.Sprintf("entry %q does not hold what its row says", name))
	}
	s.Revision = revision
	return s, nil
}

// Apply does the whole batch or nothing, in one revision. Batch.Delete takes names and SPIFFE IDs.
func (db *DB) Apply(ctx context.Context, b registration.Batch, by audit.Admin) (registration.Applied, error) {
	var done registration.Applied
	if err := distinct(b); err != nil {
		return done, err
	}
	err := db.write(ctx, func(t *tx) (err error) {
		done, err = t.apply(b, by)
		return err
	})
	if err != nil && !errors.Is(err, errDryRun) {
		return registration.Applied{}, err
	}
	return done, nil
}

// distinct refuses a batch that says two things of one name.
func distinct(b registration.Batch) error {
	seen := map[string]bool{}
	for _, e := range b.Entries {
		if e.Name == "" {
			return fault.New(fault.Invalid, nil, "an entry has no name").With(fault.BadEntry, "name: ...")
		}
		if seen[e.Name] {
			return fault.New(fault.Invalid, nil, fmt.Sprintf("entry %q is there twice", e.Name)).With(fault.BadEntry, "name: ...")
		}
		seen[e.Name] = true
	}
	for _, name := range b.Delete {
		if seen[name] {
			return fault.New(fault.Invalid, nil, fmt.Sprintf("entry %q is both applied and deleted", name)).With(fault.BadEntry, "")
		}
	}
	return nil
}

func (t *tx) apply(b registration.Batch, by audit.Admin) (registration.Applied, error) {
	before := t.now.Revision
	changes, err := t.deleteNamed(b.Delete)
	if err != nil {
		return registration.Applied{}, err
	}
	gone := map[string]bool{}
	for _, c := range changes {
		gone[c.Entry.Name] = true
	}
	for _, e := range b.Entries {
		if gone[e.Name] { // deleted by its SPIFFE ID
			return registration.Applied{}, fault.New(fault.Invalid, nil, fmt.Sprintf("entry %q is both applied and deleted", e.Name)).
				With(fault.BadEntry, "")
		}
		c, err := t.put(e, b.Owner)
		if err != nil {
			return registration.Applied{}, fmt.Errorf("apply entry %s: %w", e.Name, err)
		}
		changes = append(changes, c)
	}
	if b.Prune {
		pruned, err := t.prune(b)
		if err != nil {
			return registration.Applied{}, fmt.Errorf("prune: %w", err)
		}
		changes = append(changes, pruned...)
	}
	slices.SortFunc(changes, func(a, b registration.EntryChange) int { return cmp.Compare(a.Entry.Name, b.Entry.Name) })
	if b.DryRun {
		return registration.Applied{Changes: changes, Revision: before}, errDryRun
	}
	by.Act, by.Subject = audit.ActApply, cmp.Or(by.Subject, b.Owner)
	for _, c := range changes {
		if c.Act != registration.Unchanged {
			by.Changes = append(by.Changes, string(c.Act)+" "+c.Entry.Name)
		}
	}
	return registration.Applied{Changes: changes, Revision: t.now.Revision}, t.recordAdmin(by)
}

// put creates or updates one entry. What is there already keeps its revision, and only changes hands.
func (t *tx) put(e registration.Entry, owner string) (registration.EntryChange, error) {
	old, found, err := first(t, scanStored, selectEntries+"WHERE name = ?", e.Name)
	if err != nil {
		return registration.EntryChange{}, err
	}
	if found && old.Equal(e) {
		if old.owner != owner {
			_, err = t.exec("UPDATE entries SET owner = ? WHERE name = ?", owner, e.Name)
		}
		return registration.EntryChange{Act: registration.Unchanged, Entry: old.Entry}, err
	}
	if e.Revision, err = t.revise(); err != nil {
		return registration.EntryChange{}, err
	}
	if e.Created = e.Revision; found {
		e.Created = old.Created
	}
	body, err := proto.Marshal(registration.ToWire(e))
	if err != nil {
		return registration.EntryChange{}, err
	}
	_, err = t.exec(`INSERT INTO entries (name, spiffe_id, owner, revision, body) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (name) DO UPDATE SET spiffe_id = excluded.spiffe_id, owner = excluded.owner, revision = excluded.revision,
		body = excluded.body`, e.Name, e.ID.String(), owner, e.Revision, body)
	if err != nil {
		return registration.EntryChange{}, err
	}
	c := registration.EntryChange{Act: registration.Created, Entry: e}
	if found {
		c.Act, c.Before = registration.Updated, old.Entry
	}
	return c, t.change(registration.KindEntry, e.Name)
}

// deleteNamed removes the entry of each name, or all of each SPIFFE ID.
func (t *tx) deleteNamed(subjects []string) (changes []registration.EntryChange, err error) {
	gone := map[string]bool{}
	for _, subject := range subjects {
		text := selectEntries + "WHERE name = ?"
		if strings.HasPrefix(subject, "spiffe://") {
			text = selectEntries + "WHERE spiffe_id = ? ORDER BY name"
		}
		found, err := collect(t, scanEntry, text, subject)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 && !gone[subject] {
			return nil, fault.New(fault.NotFound, nil, fmt.Sprintf("no entry %q", subject)).With(fault.EntryUnknown, "writ entry get")
		}
		for _, e := range found {
			gone[e.Name], gone[e.ID.String()] = true, true
			if err := t.delete(e.Name); err != nil {
				return nil, err
			}
			changes = append(changes, registration.EntryChange{Act: registration.Deleted, Entry: e})
		}
	}
	return changes, nil
}

// prune removes what this owner applied last and the batch does not name.
func (t *tx) prune(b registration.Batch) (changes []registration.EntryChange, err error) {
	kept := map[string]bool{}
	for _, e := range b.Entries {
		kept[e.Name] = true
	}
	owned, err := collect(t, scanEntry, selectEntries+"WHERE owner = ? ORDER BY name", b.Owner)
	if err != nil {
		return nil, err
	}
	for _, e := range owned {
		if kept[e.Name] {
			continue
		}
		if err := t.delete(e.Name); err != nil {
			return nil, err
		}
		changes = append(changes, registration.EntryChange{Act: registration.Deleted, Entry: e})
	}
	return changes, nil
}

func (t *tx) delete(name string) error {
	if _, err := t.exec("DELETE FROM entries WHERE name = ?", name); err != nil {
		return fmt.Errorf("delete entry %s: %w", name, err)
	}
	return t.change(registration.KindEntry, name)
}
