package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
	"github.com/writ-dev/writ/store"
)

// smallDisk is a file system of its own, of so many MiB.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	folder := t.TempDir()
	if err := unix.Mount("tmpfs", folder, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=0700", size)); err != nil {
		t.Fatalf("mount a small disk, which needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(folder, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return folder
}

// fill leaves no space.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	block := bytes.Repeat([]byte{1}, 4096)
	for err == nil {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// A full disk refuses what is new and serves what is there; when there is space again nobody has to do anything.
func TestSQLiteFullDisk(t *testing.T) {
	ctx := context.Background()
	var log lockedBuffer
	h := newHouse(t, store.Config{DataDir: smallDisk(t, 6), Log: slog.New(slog.NewTextHandler(&log, nil))})
	h.issuing()
	filler := filepath.Join(h.config.DataDir, "filler")
	kept := map[string]bool{"orders": true, "other": true}
	serials := 0
	for round := range 3 {
		fill(t, filler)
		full := func(err error) bool {
			if err != nil {
				h.want(err, fault.Unavailable, fault.StoreFull)
			}
			return err != nil
		}
		for i, refusals := 0, 0; refusals < 20; i++ { // the log may have had some room
			name := fmt.Sprintf("e-%d-%04d", round, i)
			_, err := h.Apply(ctx, registration.Batch{Entries: entries(name)}, operator)
			if full(err) {
				refusals++
			} else {
				kept[name] = true
			}
			if !full(h.RecordIssuance(ctx, h.intent(fmt.Sprintf("%04x", round<<12|i)))) {
				serials++
			}
			if i == 10_000 {
				t.Fatal("the disk does not fill")
			}
		}
		if got := len(h.state().Entries); got != len(kept) || len(h.issuances()) != serials {
			t.Fatalf("while full: %d entries, %d serials, want %d and %d", got, len(h.issuances()), len(kept), serials)
		}
		h.want(h.Writable(), fault.Unavailable, fault.StoreFull)
		h.must(os.Remove(filler))
		h.must(h.Writable()) // before anybody writes
		name := fmt.Sprintf("after-%d", round)
		h.apply(registration.Batch{Entries: entries(name)})
		kept[name] = true
		h.whole()
		if round == 1 {
			h.reopen()
		}
		for _, e := range h.state().Entries {
			if !kept[e.Name] {
				t.Errorf("%s was refused and is there", e.Name)
			}
		}
	}
	for _, line := range []string{"the store cannot be written", "the store can be written again"} {
		if n := strings.Count(log.String(), line); n != 3 {
			t.Errorf("%d lines of the log say that %s, want one in each of 3 rounds", n, line)
		}
	}
	left, err := filepath.Glob(filepath.Join(h.config.DataDir, "*.probe-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("trying left %v (%v)", left, err)
	}
}

// A disk that fails once may give room for a probe, and a store that stopped for it does not go on.
func TestStoreThatStoppedStaysUnwritable(t *testing.T) {
	h := newHouse(t, store.Config{DataDir: t.TempDir()})
	h.Fails(errors.New("busy"), false)
	h.must(h.Writable())
	h.Fails(errors.New("input/output error"), true)
	for range 2 {
		if err := h.Writable(); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "input/output error") {
			t.Fatalf("the store stopped and says %v", err)
		}
	}
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu  sync.Mutex
	out bytes.Buffer
}

// Write appends.
func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.Write(p)
}

// String is what was written.
func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.String()
}

// A server that starts on a full disk says so, and loses nothing.
func TestSQLiteStartsOnFullDisk(t *testing.T) {
	t.Run("a store that is there", func(t *testing.T) {
		h := newHouse(t, store.Config{DataDir: smallDisk(t, 4)})
		h.apply(registration.Batch{Entries: entries("a")})
		h.must(h.Close())
		filler := filepath.Join(h.config.DataDir, "filler")
		fill(t, filler)
		db, err := store.Open(context.Background(), h.config)
		if err != nil {
			h.want(err, fault.Unavailable, fault.StoreFull)
		} else {
			h.must(db.Close())
		}
		h.must(os.Remove(filler))
		h.open()
		h.same("names", h.names(), []string{"a"})
	})
	t.Run("a new one", func(t *testing.T) {
		c := store.Config{DataDir: smallDisk(t, 4)}
		filler := filepath.Join(c.DataDir, "filler")
		fill(t, filler)
		_, err := store.Open(context.Background(), c)
		(&house{T: t}).want(err, fault.Unavailable, fault.StoreFull)
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		h := newHouse(t, c)
		h.apply(registration.Batch{Entries: entries("a")})
	})
}
