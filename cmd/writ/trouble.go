package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/internal/fault"
)

// trouble is what is wrong with something that works beside the requests, such as a file of records: nobody's answer would tell.
// Whoever does the work notes each attempt, health asks.
type trouble struct {
	log   *slog.Logger
	fails string // the log's phrase when it begins to fail; none: whoever does the work says so
	works string // and when it works again
	facts []any  // more of the log's line when it begins to fail
	file  string // for the log, where it is a file

	failed atomic.Uint64 // attempts

	mu    sync.Mutex // guards the rest
	err   error
	since time.Time
}

// note takes what came of an attempt. The log has a line at each change and none between.
func (t *trouble) note(err error) { t.noteIf(err, func() bool { return true }) }

// noteIf notes where still says so, which is asked with t.mu held.
func (t *trouble) noteIf(err error, still func() bool) {
	t.mu.Lock()
	if !still() {
		t.mu.Unlock()
		return
	}
	before, since := t.err, t.since
	if t.err = err; before == nil {
		t.since = time.Now()
	}
	t.mu.Unlock()
	if err != nil {
		t.failed.Add(1)
	}
	var facts []any
	if t.file != "" {
		facts = append(facts, "file", t.file)
	}
	switch {
	case before == nil && err != nil && t.fails != "":
		t.log.ErrorContext(context.Background(), t.fails, append(append(facts, "err", oneLine(err)), t.facts...)...)
	case before != nil && err == nil: // as loud as a warning, so that whoever saw it begin sees it end
		t.log.WarnContext(context.Background(), t.works, append(facts, "elapsed", time.Since(since).Round(time.Millisecond))...)
	}
}

// begin starts an attempt that may hang, as a disk does that is reached over a network. The attempt ends with end.
func (t *trouble) begin() (end func(error)) {
	ended := false // guarded by t.mu: what is late must not be noted after the end
	late := time.AfterFunc(hangs, func() { t.noteIf(errHangs, func() bool { return !ended }) })
	return func(err error) {
		late.Stop()
		t.noteIf(err, func() bool { ended = true; return true })
	}
}

const hangs = 5 * time.Second // a write that takes longer is told of before it ends

var errHangs = fmt.Errorf("a write has not ended after %s", hangs)

// now is what is wrong, with since when; empty where nothing is.
func (t *trouble) now() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		return ""
	}
	return "since " + t.since.UTC().Format(time.RFC3339) + ": " + oneLine(t.err)
}

// failing is 1 while something is wrong.
func (t *trouble) failing() float64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return 1
	}
	return 0
}

// oneLine is an error on one line, without the address of a request: that may hold a key of whom it is sent to.
func oneLine(err error) string {
	text := err.Error()
	if request := (*url.Error)(nil); errors.As(err, &request) {
		text = request.Err.Error()
	}
	return strings.ReplaceAll(text, "\n", "; ")
}

// fileTrouble is that of a file of records.
func fileTrouble(log *slog.Logger, file, fails, works string) *trouble {
	return &trouble{log: log, file: file, fails: fails, works: works,
		facts: []any{"code", fault.RecordsUnwritten, "fix", "make room on that volume: writing goes on by itself; df -h and df -i show what is used up"}}
}

// notedFile is a file of decision records whose trouble is noted: of writing it, and of beginning a new one where it is full.
type notedFile struct {
	lines            *audit.Lines
	writing, turning *trouble
}

var _ io.Writer = notedFile{}

// Write appends whole lines.
func (f notedFile) Write(p []byte) (int, error) {
	end := f.writing.begin()
	n, err := f.lines.Write(p)
	end(err)
	f.turning.note(f.lines.Unrotated())
	return n, err
}

// notedSink is the server's audit file.
type notedSink struct {
	*audit.Lines
	writing *trouble
}

// Feed appends rows.
func (s notedSink) Feed(rows []audit.Row) error {
	end := s.writing.begin()
	err := s.Lines.Feed(rows)
	end(err)
	return err
}
