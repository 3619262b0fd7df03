package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/pressly/goose/v3"
	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/writ-dev/writ/internal/fault"
)

//go:embed migrations/*.sql
var migrations embed.FS

// readers bounds the read pool.
const readers = 8

// CheckURL says whether Open knows a configuration's `store`. It opens nothing.
func CheckURL(text string) error {
	_, err := Config{URL: text}.path()
	return err
}

// path is the database file of a URL.
func (c Config) path() (string, error) {
	scheme, path, _ := strings.Cut(c.URL, ":")
	switch scheme {
	case "", "sqlite":
	case "postgres", "postgresql":
		return "", fault.New(fault.Invalid, nil, "PostgreSQL is not there yet").
			Because("store: "+scheme+"://...").With(fault.NotThereYet, "store: sqlite")
	default:
		return "", fault.New(fault.Invalid, nil, fmt.Sprintf("no store is called %q", scheme)).With(fault.BadConfig, "store: sqlite")
	}
	if path == "" {
		path = filepath.Join(c.DataDir, "writ.db")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("store path: %w", err)
	}
	return path, nil
}

// address is what a connection is opened with. FULL syncs the log at every commit: NORMAL was measured to lose acknowledged rows
// in 5 of 6 power cuts.
func address(path string, pragmas ...string) string {
	q := url.Values{"_pragma": append([]string{"busy_timeout(5000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)", "temp_store(MEMORY)"}, pragmas...)}
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + q.Encode()
}

// lockStore makes the folder where it is missing and takes the lock that keeps a second process out. The kernel lets go of it
// however the process ends.
func lockStore(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("store folder: %w", err)
	}
	f, err := makeFile(path + ".lock")
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fault.New(fault.Conflict, err, "another process has the store open").Because(path).
			With(fault.StoreInUse, "stop it, or choose another data_dir")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// prepareFiles makes the database file as nobody else can read it, whatever the umask: SQLite gives its -wal and -shm files the
// same mode. Files that others can read are refused, since what they hold may be known already.
func prepareFiles(path string) error {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		info, err := os.Stat(path + suffix)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("store file: %w", err)
		}
		if mode := info.Mode().Perm(); mode&0o077 != 0 {
			return fault.New(fault.Invalid, nil, "others may read the store").
				Because(fmt.Sprintf("%s has mode %04o", path+suffix, mode)).With(fault.WideMode, "chmod 600 "+path+suffix)
		}
	}
	f, err := makeFile(path)
	if err != nil {
		return err
	}
	return f.Close()
}

// makeFile opens a file of mode 0600, or makes it.
func makeFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store file: %w", err)
	}
	if err := f.Chmod(0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("store file: %w", err), f.Close())
	}
	return f, nil
}

// check reads every page once, so that a damaged store is found before it is served from.
func (db *DB) check(ctx context.Context) error {
	found, err := collect(snapshot{ctx, db.writes}, func(r *sql.Rows) (line string, err error) {
		return line, r.Scan(&line)
	}, "PRAGMA quick_check(5)")
	if err != nil {
		return db.fault(fmt.Errorf("check the store: %w", err))
	}
	if len(found) != 1 || found[0] != "ok" {
		return damaged(nil).Because(db.path).Because(found...)
	}
	return nil
}

func (db *DB) migrate(ctx context.Context) error {
	folder, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db.writes, folder, goose.WithDisableGlobalRegistry(true),
		goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	have, want, err := p.GetVersions(ctx)
	if err != nil {
		return db.fault(fmt.Errorf("read the schema's version: %w", err))
	}
	if have > want {
		return fault.New(fault.Invalid, nil, "a newer writ wrote this store").
			Because(fmt.Sprintf("its schema is version %d, this writ knows %d", have, want)).With(fault.StoreNewer, "run the newer writ")
	}
	if _, err := p.Up(ctx); err != nil {
		return db.fault(fmt.Errorf("migrate the store: %w", err))
	}
	return nil
}

func damaged(cause error) *fault.Error {
	return fault.New(fault.Internal, cause, "the store is damaged").With(fault.StoreDamaged, "stop the server, keep the files, put back a backup of the data directory")
}

// fault gives what the engine reports its kind. What is refused by our own rules has one already.
func (db *DB) fault(err error) error {
	code, ok := engineCode(err)
	switch {
	case !ok && !errors.Is(err, syscall.ENOSPC):
		return err
	case !ok || db.full(code):
		return fault.New(fault.Unavailable, err, "no space is left for the store").Because(db.path).
			With(fault.StoreFull, "free space on that volume; writes go on by themselves")
	case code&0xff == sqlite3.SQLITE_CORRUPT || code&0xff == sqlite3.SQLITE_NOTADB:
		return damaged(err).Because(db.path)
	case code&0xff == sqlite3.SQLITE_BUSY || code&0xff == sqlite3.SQLITE_LOCKED:
		return fault.New(fault.Unavailable, err, "the store is busy").With(fault.StoreBusy, "try again")
	}
	return err
}

// full says whether a failure means that no space is left. SQLite says so of its files, but of the log's index and of some
// writes only that they failed.
func (db *DB) full(code int) bool {
	switch {
	case code&0xff == sqlite3.SQLITE_FULL, code == sqlite3.SQLITE_IOERR_SHMSIZE:
		return true
	case code&0xff != sqlite3.SQLITE_IOERR && code&0xff != sqlite3.SQLITE_CANTOPEN:
		return false
	}
	var volume unix.Statfs_t
	return unix.Statfs(filepath.Dir(db.path), &volume) == nil && volume.Bavail == 0
}

// engineCode is SQLite's extended result code, where err is SQLite's.
func engineCode(err error) (int, bool) {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return 0, false
	}
	return e.Code(), true
}

// spoils says whether a failed statement took its whole transaction with it; a broken constraint did not.
func spoils(err error) bool {
	code, ok := engineCode(err)
	return ok && code&0xff != sqlite3.SQLITE_CONSTRAINT
}

// unsynced says that the disk did not take what was written. Trying again could report success for pages that the kernel
// dropped, so the writer stops.
func unsynced(err error) bool {
	code, _ := engineCode(err)
	return code == sqlite3.SQLITE_IOERR_FSYNC || code == sqlite3.SQLITE_IOERR_DIR_FSYNC
}

// duplicate says that a row of that key is there already.
func duplicate(err error) bool {
	code, _ := engineCode(err)
	return code == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY || code == sqlite3.SQLITE_CONSTRAINT_UNIQUE
}
