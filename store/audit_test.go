package store_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/registration"
)

func auditRules() []rule {
	return []rule{
		{"audit rows come in order and in pages", rowsInPages},
		{"a file is fed every row once, over restarts", fileIsFed},
		{"a sink that fails gets the same rows again", sinkIsTriedAgain},
		{"a file that is ahead of a restored store is fed what comes", fileIsAhead},
	}
}

func rowsInPages(h *house) {
	for i := range 7 {
		h.apply(registration.Batch{Entries: entries(fmt.Sprint(i))})
	}
	want := h.state().Audit
	if len(want) != 7 {
		h.Fatalf("%d rows", len(want))
	}
	var got []audit.Row
	for after := uint64(0); ; {
		page, err := h.AuditRows(context.Background(), after, 3)
		h.must(err)
		if len(page) == 0 {
			break
		}
		if len(page) > 3 {
			h.Errorf("page of %d", len(page))
		}
		for _, row := range page {
			if row.ID <= after {
				h.Fatalf("row %d after %d", row.ID, after)
			}
			after = row.ID
		}
		got = append(got, page...)
	}
	h.same("rows", got, want)
}

// follow feeds a sink until stop is called, which waits.
func (h *house) follow(s interface {
	Last() uint64
	Feed([]audit.Row) error
}) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Follow(ctx, s) }()
	return func() {
		h.Helper()
		cancel()
		h.must(<-ended)
	}
}

// A sink tells what it was fed. Failing lets the next feeds fail.
type sink struct {
	mu      sync.Mutex
	rows    []audit.Row
	last    uint64
	failing int
	tried   int
	fed     chan uint64 // the last row of each feed that was taken
}

// Last is where feeding goes on.
func (s *sink) Last() uint64 { return s.last }

// Feed takes rows, or fails.
func (s *sink) Feed(rows []audit.Row) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tried++
	if s.failing > 0 {
		s.failing--
		return errors.New("disk full")
	}
	s.rows = append(s.rows, rows...)
	s.fed <- rows[len(rows)-1].ID
	return nil
}

// reaches waits until a row was fed.
func (h *house) reaches(s *sink, id uint64) {
	h.Helper()
	for {
		if got := <-s.fed; got >= id {
			return
		}
	}
}

func fileIsFed(h *house) {
	path := filepath.Join(h.TempDir(), "audit.jsonl")
	for round := range 3 {
		h.apply(registration.Batch{Entries: entries(fmt.Sprintf("before-%d", round))}) // nobody follows
		file, err := audit.OpenLines(path)
		h.must(err)
		seen := &sink{fed: make(chan uint64, 1000)}
		feed := &both{file, seen}
		stop := h.follow(feed)
		together(4, func(i int) {
			if _, err := h.Apply(context.Background(), registration.Batch{Entries: entries(fmt.Sprintf("e-%d-%d", round, i))}, operator); err != nil {
				h.Error(err)
			}
		})
		rows := h.state().Audit
		h.reaches(seen, rows[len(rows)-1].ID)
		stop()
		h.must(file.Close())
		h.reopen()
	}
	text, err := os.ReadFile(path)
	h.must(err)
	var got []audit.Row
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		var row audit.Row
		h.must(json.Unmarshal(lines.Bytes(), &row))
		got = append(got, row)
	}
	h.same("rows of the file", got, h.state().Audit)
	if len(got) != 15 {
		h.Errorf("%d rows", len(got))
	}
}

// both is a file that tells when it was fed.
type both struct {
	*audit.Lines
	seen *sink
}

// Feed feeds the file first.
func (b *both) Feed(rows []audit.Row) error {
	if err := b.Lines.Feed(rows); err != nil {
		return err
	}
	return b.seen.Feed(rows)
}

func sinkIsTriedAgain(h *house) {
	h.apply(registration.Batch{Entries: entries("a")})
	s := &sink{failing: 2, fed: make(chan uint64, 10)}
	stop := h.follow(s)
	defer stop()
	h.reaches(s, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	h.same("rows", s.rows, h.state().Audit)
	if s.tried != 3 {
		h.Errorf("tried %d times, want 3", s.tried)
	}
}

func fileIsAhead(h *house) {
	h.apply(registration.Batch{Entries: entries("a")})
	s := &sink{last: 1000, fed: make(chan uint64, 10)}
	stop := h.follow(s)
	defer stop()
	for i := 0; len(s.fed) == 0; i++ { // nobody says when following has begun
		if i == 900 {
			h.Fatal("it waits for row 1000")
		}
		h.apply(registration.Batch{Entries: entries(fmt.Sprint(i))})
	}
}
