package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Filter says which decisions are wanted. What it leaves empty it does not ask for.
type Filter struct {
	Source   string   // the principal; a * at the end stands for any rest
	Path     string   // likewise
	Outcomes []string // one of them
	ID       string
}

// Match says whether a decision is wanted.
func (f Filter) Match(d *Decision) bool {
	return (f.ID == "" || f.ID == d.DecisionID) && like(f.Source, d.Source) && like(f.Path, d.Path) &&
		(len(f.Outcomes) == 0 || slices.Contains(f.Outcomes, d.Outcome))
}

func like(want, have string) bool {
	if start, open := strings.CutSuffix(want, "*"); open {
		return strings.HasPrefix(have, start)
	}
	return want == "" || want == have
}

// Query is what is asked of the records on disk.
type Query struct {
	Filter
	Last   int  // of what is there, the newest so many; 0: all
	Follow bool // then go on with what is written, until ctx ends
}

// lookEvery is how often a followed file is looked at.
const lookEvery = 100 * time.Millisecond

// Unreadable is that some lines were no decisions. All others were given.
type Unreadable struct {
	Lines int
	File  string // of the oldest that was looked at
	Line  int    // its number there, from 1
	Err   error  // what is wrong with it
}

// Error names how many there are, and where the first is.
func (u *Unreadable) Error() string {
	if u.Lines == 1 {
		return fmt.Sprintf("line %d of %s cannot be read: %v", u.Line, u.File, u.Err)
	}
	return fmt.Sprintf("%d lines cannot be read, the first is line %d of %s: %v", u.Lines, u.Line, u.File, u.Err)
}

// Unwrap gives the cause.
func (u *Unreadable) Unwrap() error { return u.Err }

// Tail gives to emit the wanted lines of a file of decisions and of its rotated ones, oldest first, each without its line feed.
// A line that has no end yet is not given. Following loses no line to a rotation. The error is an *Unreadable where all went well
// but for lines that are no decisions; of those without the ID that is asked for it takes no notice.
func Tail(ctx context.Context, path string, q Query, emit func(line []byte) error) error {
	files, err := openAll(path)
	if err != nil {
		return err
	}
	t := &tail{path: path, query: q, emit: emit}
	if len(files) > 0 {
		t.file = files[len(files)-1]
	}
	defer func() { t.close(files) }()
	if err := t.history(ctx, files); err != nil || !q.Follow {
		return t.end(err)
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return t.end(nil)
		case <-tick.C:
		}
		if err := t.step(ctx); err != nil {
			return t.end(err)
		}
	}
}

// tail is a reader's place among the files.
type tail struct {
	path  string
	query Query
	emit  func([]byte) error
	file  *os.File // nil while there is none
	at    place    // in file: the first line that was not read

	unreadable Unreadable
	older      bool // the next that cannot be read is older than those before
}

// place is a line of a file.
type place struct {
	offset int64
	line   int // how many are before it
}

// end is how it went, all in all.
func (t *tail) end(err error) error {
	if err == nil && t.unreadable.Lines > 0 {
		return &t.unreadable
	}
	return err
}

func (t *tail) close(files []*os.File) {
	if t.file != nil {
		_ = t.file.Close()
	}
	for _, f := range files {
		_ = f.Close() // one that is closed already says so, to nobody
	}
}

// history gives what is there already. The last file is read to its end, so that following goes on from there.
func (t *tail) history(ctx context.Context, files []*os.File) (err error) {
	if t.query.Last == 0 {
		for _, f := range files {
			if t.at, err = t.scan(ctx, f, place{}, t.emit); err != nil {
				return err
			}
		}
		return nil
	}
	var newest [][]byte
	for i := len(files) - 1; i >= 0 && len(newest) < t.query.Last; i-- {
		lines, end, err := t.newest(ctx, files[i], t.query.Last-len(newest))
		if err != nil {
			return err
		}
		if i == len(files)-1 {
			t.at = end
		}
		newest = append(lines, newest...)
	}
	for _, line := range newest {
		if err := t.emit(line); err != nil {
			return err
		}
	}
	return nil
}

// newest gives the last n wanted lines of a file, and where its whole lines end.
func (t *tail) newest(ctx context.Context, f *os.File, n int) (lines [][]byte, end place, err error) {
	t.older = true
	end, err = t.scan(ctx, f, place{}, func(line []byte) error {
		lines = append(lines, line)
		if len(lines) > n {
			lines = lines[1:]
		}
		return nil
	})
	return lines, end, err
}

// step gives what came since, over as many files as it was spread on.
func (t *tail) step(ctx context.Context) error {
	for {
		// Whether there is a newer file is looked at first: an older one is written no more, so what is read then is all of it.
		next, err := newer(t.path, t.file)
		if err != nil {
			return err
		}
		if err := t.rest(ctx); err != nil || next == nil {
			if next != nil {
				_ = next.Close()
			}
			return err
		}
		if t.file != nil {
			_ = t.file.Close()
		}
		t.file, t.at = next, place{}
	}
}

func (t *tail) rest(ctx context.Context) error {
	if t.file == nil {
		return nil
	}
	if info, err := t.file.Stat(); err == nil && info.Size() < t.at.offset {
		t.at = place{} // cut by someone else
	}
	end, err := t.scan(ctx, t.file, t.at, t.emit)
	t.at = end
	return err
}

// scan visits the wanted whole lines from a place on, and gives the place after the last whole one.
func (t *tail) scan(ctx context.Context, f *os.File, from place, visit func([]byte) error) (place, error) {
	r := bufio.NewReaderSize(io.NewSectionReader(f, from.offset, 1<<62), 256<<10)
	for n := 0; ; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return from, ctx.Err()
		}
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return from, nil
		} else if err != nil {
			return from, fmt.Errorf("read records: %w", err)
		}
		from = place{from.offset + int64(len(line)), from.line + 1}
		line = line[:len(line)-1]
		wanted, err := t.wants(line)
		if err != nil {
			t.cannotRead(f.Name(), from.line, err)
		}
		if !wanted {
			continue
		}
		if err := visit(line); err != nil {
			return from, err
		}
	}
}

func (t *tail) wants(line []byte) (bool, error) {
	if t.query.ID != "" && !bytes.Contains(line, []byte(t.query.ID)) || len(bytes.TrimSpace(line)) == 0 {
		return false, nil
	}
	d, err := ParseDecision(line)
	return err == nil && t.query.Match(d), err
}

// cannotRead counts a line, and remembers the oldest.
func (t *tail) cannotRead(file string, line int, err error) {
	if t.unreadable.Lines == 0 || t.older {
		t.unreadable.File, t.unreadable.Line, t.unreadable.Err = file, line, err
	}
	t.unreadable.Lines++
	t.older = false
}

// ParseDecision reads a line; its Input is left as it stands.
func ParseDecision(line []byte) (*Decision, error) {
	var input json.RawMessage
	d := &Decision{Input: &input}
	if err := json.Unmarshal(line, d); err != nil {
		return nil, err
	}
	d.Input = nil
	if len(input) > 0 {
		d.Input = input
	}
	return d, nil
}

// names lists the file and its rotated ones by number, the file itself being 0.
func names(path string) ([]int, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	var out []int
	base := filepath.Base(path)
	for _, e := range entries {
		rest, ours := strings.CutPrefix(e.Name(), base)
		number, isNumber := strings.CutPrefix(rest, ".")
		if n, err := strconv.Atoi(number); ours && isNumber && err == nil && n > 0 && strconv.Itoa(n) == number {
			out = append(out, n)
		} else if ours && rest == "" {
			out = append(out, 0)
		}
	}
	slices.Sort(out)
	return out, nil
}

func named(path string, n int) string {
	if n == 0 {
		return path
	}
	return numbered(path, n)
}

const openTries = 100

// openAll opens the file and all rotated ones, oldest first, as they stood at one moment.
func openAll(path string) ([]*os.File, error) {
	var last error
	for range openTries {
		files, err := openOnce(path)
		if err == nil || !errors.Is(err, errMoved) && !errors.Is(err, fs.ErrNotExist) {
			return files, err
		}
		last = err
	}
	return nil, last
}

var errMoved = errors.New("the records were rotated meanwhile")

func openOnce(path string) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				_ = f.Close()
			}
			files = nil
		}
	}()
	numbers, err := names(path)
	if err != nil {
		return nil, err
	}
	for _, n := range slices.Backward(numbers) {
		f, err := os.Open(named(path, n))
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	for i, n := range slices.Backward(numbers) {
		if !isNamed(named(path, n), files[len(files)-1-i]) {
			return files, errMoved
		}
	}
	return files, nil
}

// isNamed says whether a name is that of an open file.
func isNamed(name string, f *os.File) bool {
	a, errA := os.Stat(name)
	b, errB := f.Stat()
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// newer opens the file that was begun after f: the oldest there is where f was removed or is nil, the newest where someone else
// moved f away. It is nil where f is the newest.
func newer(path string, f *os.File) (*os.File, error) {
	for try := range openTries {
		numbers, err := names(path)
		if err != nil || len(numbers) == 0 {
			return nil, err
		}
		at := len(numbers)
		if f != nil && !removed(f) {
			at = slices.IndexFunc(numbers, func(n int) bool { return isNamed(named(path, n), f) })
			if at < 0 && try < openTries-1 {
				continue // it got its next name meanwhile
			}
		}
		if at == 0 {
			return nil, nil
		}
		next, err := os.Open(named(path, numbers[max(at-1, 0)]))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, fmt.Errorf("read records: %w", err)
		}
		// Files move up beginning with the highest number: where f has not moved, what was opened had not either.
		if at < 0 || at == len(numbers) && isNamed(named(path, numbers[at-1]), next) || at < len(numbers) && isNamed(named(path, numbers[at]), f) {
			return next, nil
		}
		_ = next.Close()
	}
	return nil, errMoved
}

// removed says that an open file has no name left.
func removed(f *os.File) bool {
	info, err := f.Stat()
	if err != nil {
		return true
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Nlink == 0
}
