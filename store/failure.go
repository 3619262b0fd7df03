package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/writ-dev/writ/internal/fault"
)

// failure is that the store could not be written. It ends when there is room again, whether or not somebody writes: who is not
// ready may be asked for nothing.
type failure struct {
	mu    sync.Mutex // guards all, never across I/O
	err   error
	since time.Time
	final bool // until the next start
}

func (f *failure) forGood() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.final = true
}

// failed takes the error of a transaction, and writes it down where it is the first.
func (db *DB) failed(err error) {
	err = db.fault(err)
	f := &db.failure
	f.mu.Lock()
	first := f.err == nil
	if f.err = err; first {
		f.since = db.config.Now()
	}
	f.mu.Unlock()
	if first {
		db.config.Log.Error("the store cannot be written", "code", codeOf(err), "err", err)
	}
}

func codeOf(err error) fault.Code {
	var f *fault.Error
	if errors.As(err, &f) && f.Code != "" {
		return f.Code
	}
	return fault.StoreBusy
}

// Writable is nil while changes can be written: none failed, or there is room for them again.
func (db *DB) Writable() error {
	f := &db.failure
	f.mu.Lock()
	err, since, final := f.err, f.since, f.final
	f.mu.Unlock()
	if err == nil {
		return nil
	}
	if final || db.probe() != nil {
		return fault.New(fault.Unavailable, err, fmt.Sprintf("the store cannot be written since %s (%s)", since.UTC().Format(time.RFC3339), codeOf(err))).
			With(codeOf(err), "look into the log")
	}
	f.mu.Lock()
	ended := f.err != nil && !f.final
	if ended {
		f.err = nil
	}
	f.mu.Unlock()
	if ended {
		db.config.Log.Warn("the store can be written again", "elapsed", db.config.Now().Sub(since))
	}
	return nil
}

// probeSize is more than a change takes in the log.
const probeSize = 256 << 10

// probe tries to write beside the store.
func (db *DB) probe() error {
	file, err := os.CreateTemp(filepath.Dir(db.path), filepath.Base(db.path)+".probe-*")
	if err != nil {
		return err
	}
	_, err = file.Write(make([]byte, probeSize))
	return errors.Join(err, file.Sync(), file.Close(), os.Remove(file.Name()))
}
