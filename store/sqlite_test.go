package store_test

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/pressly/goose/v3"

	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
	"github.com/writ-dev/writ/store"
)

// database is the file of a house.
func (h *house) database() string { return filepath.Join(h.config.DataDir, "writ.db") }

func newSQLite(t *testing.T) *house {
	t.Helper()
	return newHouse(t, store.Config{DataDir: filepath.Join(t.TempDir(), "data")})
}

// past is a connection past the store, as an operator's or a broken program's.
func past(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath())
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// Every commit is to be synced: NORMAL loses acknowledged rows when the power goes.
func TestSQLiteSyncsEveryCommit(t *testing.T) {
	h := newSQLite(t)
	h.apply(registration.Batch{Entries: entries("a")})
	for range 2 {
		for query, want := range map[string]string{"PRAGMA journal_mode": "wal", "PRAGMA synchronous": "2", "PRAGMA foreign_keys": "1",
			"PRAGMA query_only": "0"} {
			got, err := h.WriterSays(context.Background(), query)
			if err != nil || got != want {
				t.Errorf("writer: %s is %q %v, want %q", query, got, err, want)
			}
		}
		for query, want := range map[string]string{"PRAGMA journal_mode": "wal", "PRAGMA query_only": "1"} {
			got, err := h.ReadersSay(context.Background(), query)
			if err != nil || got != want {
				t.Errorf("readers: %s is %q %v, want %q", query, got, err, want)
			}
		}
		h.reopen()
	}
}

func TestSQLiteMigratesOnce(t *testing.T) {
	h := newSQLite(t)
	schema := func() (out []string) {
		rows, err := past(t, h.database()).Query("SELECT name || ' ' || COALESCE(sql, '') FROM sqlite_schema UNION ALL SELECT version_id || ' ' || tstamp FROM goose_db_version")
		h.must(err)
		defer func() { _ = rows.Close() }()
		for rows.Next() {
			var line string
			h.must(rows.Scan(&line))
			out = append(out, line)
		}
		h.must(rows.Err())
		return out
	}
	h.apply(registration.Batch{Entries: entries("a")})
	first, state := schema(), h.state()
	for range 2 {
		h.reopen()
		h.same("schema", schema(), first)
		h.same("state", h.state(), state)
	}
	if len(first) < 12 {
		t.Errorf("schema is %q", first)
	}
}

// A serial that was taken before serials had a table of their own stays taken, and an older writ finds it there after a step back.
func TestSQLiteKeepsSerialsOfTheFirstSchema(t *testing.T) {
	h := newSQLite(t)
	h.issuing()
	h.must(h.RecordIssuance(t.Context(), h.intent("0a")))
	h.must(h.Close())
	db := past(t, h.database())
	folder, err := fs.Sub(store.Migrations, "migrations")
	h.must(err)
	p, err := goose.NewProvider(goose.DialectSQLite3, db, folder, goose.WithDisableGlobalRegistry(true))
	h.must(err)
	_, err = p.DownTo(t.Context(), 1)
	h.must(err)
	_, err = db.Exec("INSERT INTO issuance SELECT '0b', 'spiffe://example.org/orders', 'orders', '', 'k', not_after, 'a' FROM issuance WHERE serial = '0a'")
	h.must(err)
	h.must(db.Close())
	h.open()
	for _, serial := range []string{"0a", "0b"} {
		if err := h.RecordIssuance(t.Context(), h.intent(serial)); !fault.Is(err, fault.Conflict) {
			t.Errorf("serial %s: %v", serial, err)
		}
	}
	h.must(h.RecordIssuance(t.Context(), h.intent("0c")))
	if err := h.RecordIssuance(t.Context(), h.intent("xy")); !fault.Is(err, fault.Invalid) {
		t.Errorf("a serial that is no hex: %v", err)
	}
}

// An older writ would not know what a newer one's rows mean.
func TestSQLiteRefusesNewerSchema(t *testing.T) {
	h := newSQLite(t)
	h.must(h.Close())
	db := past(t, h.database())
	if _, err := db.Exec("INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)"); err != nil {
		t.Fatal(err)
	}
	h.must(db.Close())
	_, err := store.Open(context.Background(), h.config)
	h.want(err, fault.Invalid, fault.StoreNewer)
}

func TestSQLiteServesOneProcess(t *testing.T) {
	h := newSQLite(t)
	h.apply(registration.Batch{Entries: entries("a")})
	for range 2 {
		_, err := store.Open(context.Background(), h.config)
		h.want(err, fault.Conflict, fault.StoreInUse)
	}
	h.apply(registration.Batch{Entries: entries("b")}) // the first one is none the worse
	h.reopen()
	h.same("names", h.names(), []string{"a", "b"})
}

// Whatever else holds the database, such as a tool that copies it, makes writes fail and nothing worse.
func TestSQLiteHeldByAnother(t *testing.T) {
	t.Parallel()
	h := newSQLite(t)
	h.apply(registration.Batch{Entries: entries("a")})
	db := past(t, h.database())
	if _, err := db.Exec("BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	h.refuses(fault.Unavailable, fault.StoreBusy, func() error {
		_, err := h.Apply(context.Background(), registration.Batch{Entries: entries("b")}, operator)
		return err
	})
	if _, err := db.Exec("ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	h.apply(registration.Batch{Entries: entries("b")})
	h.whole()
}

func TestSQLiteFilesAreItsOwnersOnly(t *testing.T) {
	old := syscall.Umask(0)
	h := newSQLite(t)
	h.apply(registration.Batch{Entries: entries("a")})
	syscall.Umask(old)
	info, err := os.Stat(h.config.DataDir)
	h.must(err)
	if mode := info.Mode().Perm(); mode != 0o700 {
		t.Errorf("folder has mode %04o", mode)
	}
	files, err := os.ReadDir(h.config.DataDir)
	h.must(err)
	if len(files) != 4 { // database, log, index, lock
		t.Errorf("folder holds %v", files)
	}
	for _, f := range files {
		info, err := f.Info()
		h.must(err)
		if mode := info.Mode().Perm(); mode != 0o600 {
			t.Errorf("%s has mode %04o", f.Name(), mode)
		}
	}
}

func TestSQLiteRefusesWideModes(t *testing.T) {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		for _, mode := range []fs.FileMode{0o640, 0o604, 0o660, 0o601} {
			t.Run(fmt.Sprintf("writ.db%s with mode %04o", suffix, mode), func(t *testing.T) {
				h := newSQLite(t)
				h.must(h.Close())
				path := h.database() + suffix
				f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
				h.must(err)
				h.must(f.Close())
				h.must(os.Chmod(path, mode))
				_, err = store.Open(context.Background(), h.config)
				h.want(err, fault.Invalid, fault.WideMode)
				h.must(os.Chmod(path, 0o600))
				h.open()
			})
		}
	}
}

func TestSQLitePaths(t *testing.T) {
	t.Run("a folder with characters that a URI gives a meaning", func(t *testing.T) {
		h := newHouse(t, store.Config{DataDir: filepath.Join(t.TempDir(), "a b?mode=memory&c#d%20e;ü")})
		h.apply(registration.Batch{Entries: entries("a")})
		if info, err := os.Stat(h.database()); err != nil || info.Size() == 0 {
			t.Errorf("no database in %s: %v", h.config.DataDir, err)
		}
		h.reopen()
		h.same("names", h.names(), []string{"a"})
	})
	t.Run("a path of its own", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "x", "other.db")
		h := newHouse(t, store.Config{URL: "sqlite:" + path})
		h.apply(registration.Batch{Entries: entries("a")})
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	})
	for url, code := range map[string]fault.Code{"postgres://localhost/writ": fault.NotThereYet, "postgresql:///writ": fault.NotThereYet,
		"mysql://localhost/writ": fault.BadConfig, "/var/lib/writ/writ.db": fault.BadConfig} {
		t.Run(url+" is no SQLite", func(t *testing.T) {
			folder := t.TempDir()
			_, err := store.Open(context.Background(), store.Config{URL: url, DataDir: folder})
			(&house{T: t}).want(err, fault.Invalid, code)
			if files, err := os.ReadDir(folder); err != nil || len(files) > 0 {
				t.Errorf("left behind: %v %v", files, err)
			}
		})
	}
}

// A damaged file is an error, at the start or at the first read: never an answer that misses what was there.
func TestSQLiteFindsDamage(t *testing.T) {
	const page = 4096
	whole := newSQLite(t)
	for i := range 20 {
		var batch registration.Batch
		for j := range 50 {
			batch.Entries = append(batch.Entries, entry(fmt.Sprintf("entry-%02d-%02d", i, j)))
		}
		whole.apply(batch)
	}
	whole.must(whole.Close())
	good, err := os.ReadFile(whole.database())
	whole.must(err)
	if len(good) < 40*page {
		t.Fatalf("database has only %d bytes", len(good))
	}
	damage := map[string]func([]byte) []byte{
		"another kind of file": func(b []byte) []byte { copy(b, "SQLite format 4"); return b },
		"text":                 func([]byte) []byte { return bytes.Repeat([]byte("entries: []\n"), 1000) },
		"cut to half":          func(b []byte) []byte { return b[:len(b)/2/page*page] },
		"cut within a page":    func(b []byte) []byte { return b[:len(b)-page/2] },
		"cut to its header":    func(b []byte) []byte { return b[:100] },
		"cut by a page":        func(b []byte) []byte { return b[:len(b)-page] },
		"a page of the schema is zeros": func(b []byte) []byte {
			clear(b[100:page])
			return b
		},
	}
	for n := 2; n <= len(good)/page; n += 3 {
		damage[fmt.Sprintf("page %d is zeros", n)] = func(b []byte) []byte { clear(b[(n-1)*page : n*page]); return b }
		damage[fmt.Sprintf("page %d is another's", n)] = func(b []byte) []byte { copy(b[(n-1)*page:n*page], b[:page]); return b }
	}
	for name, do := range damage {
		t.Run(name, func(t *testing.T) {
			h := &house{T: t, config: store.Config{DataDir: t.TempDir(), Server: "a"}}
			h.must(os.WriteFile(h.database(), do(bytes.Clone(good)), 0o600))
			db, err := store.Open(context.Background(), h.config)
			if err == nil {
				h.must(db.Close())
			}
			h.want(err, fault.Internal, fault.StoreDamaged)
		})
	}
}

// What is damaged while the store is open shows when it is read.
func TestSQLiteFindsRowsThatDoNotRead(t *testing.T) {
	for name, statement := range map[string]string{
		"an entry's body is noise":           "UPDATE entries SET body = x'ff00ff'",
		"an entry's body is empty":           "UPDATE entries SET body = x''",
		"an entry's body is another's":       "UPDATE entries SET body = (SELECT body FROM entries WHERE name = 'b') WHERE name = 'a'",
		"an entry's ID is another than says": "UPDATE entries SET spiffe_id = 'spiffe://example.org/other' WHERE name = 'a'",
		"the revision is gone":               "DELETE FROM revision",
	} {
		t.Run(name, func(t *testing.T) {
			h := newSQLite(t)
			h.apply(registration.Batch{Entries: entries("a", "b")})
			if _, err := past(t, h.database()).Exec(statement); err != nil {
				t.Fatal(err)
			}
			_, _, err := h.Entries(context.Background())
			h.want(err, fault.Internal, fault.StoreDamaged)
		})
	}
	for name, statement := range map[string]string{
		"a node's ID":        "UPDATE nodes SET id = 'spiffe://'",
		"a node's selectors": "UPDATE nodes SET selectors = 'x509pop'",
	} {
		t.Run(name+" is noise", func(t *testing.T) {
			h := newSQLite(t)
			h.admitted(node("n"))
			if _, err := past(t, h.database()).Exec(statement); err != nil {
				t.Fatal(err)
			}
			_, err := h.Nodes(context.Background())
			h.want(err, fault.Internal, fault.StoreDamaged)
		})
	}
}

// A copy, such as a restored backup, is told apart by its chain once either has written, even the same.
func TestSQLiteCopyHasItsOwnHistory(t *testing.T) {
	h := newSQLite(t)
	h.apply(registration.Batch{Entries: entries("a")})
	h.must(h.Close())
	copied := filepath.Join(t.TempDir(), "copy")
	h.must(os.CopyFS(copied, os.DirFS(h.config.DataDir)))
	h.must(os.Chmod(copied, 0o700))
	h.must(os.Chmod(filepath.Join(copied, "writ.db"), 0o600))
	h.open()
	other := newHouse(t, store.Config{DataDir: copied})
	h.same("before either writes", other.state().At, h.state().At)
	h.apply(registration.Batch{Entries: entries("b")})
	other.apply(registration.Batch{Entries: entries("b")})
	one, two := h.state().At, other.state().At
	if one.Number != 2 || two.Number != 2 || bytes.Equal(one.Chain, two.Chain) {
		t.Errorf("revision %d with chain %x, revision %d with chain %x", one.Number, one.Chain, two.Number, two.Chain)
	}
}
