package audit_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/audit"
)

func openRotating(t *testing.T, path string, r audit.Rotation) *audit.Lines {
	t.Helper()
	l, err := audit.OpenRotating(path, r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func decisionLine(t *testing.T, d audit.Decision) string {
	t.Helper()
	text, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	return string(text) + "\n"
}

func writeLine(t *testing.T, l *audit.Lines, d audit.Decision) {
	t.Helper()
	if _, err := l.Write([]byte(decisionLine(t, d))); err != nil {
		t.Fatal(err)
	}
}

// ids runs a query that does not follow.
func ids(t *testing.T, path string, q audit.Query) []string {
	t.Helper()
	var out []string
	err := audit.Tail(t.Context(), path, q, func(line []byte) error {
		d, err := audit.ParseDecision(line)
		if err == nil {
			out = append(out, d.DecisionID)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func numbers(from, to int) (out []string) {
	for i := from; i <= to; i++ {
		out = append(out, strconv.Itoa(i))
	}
	return out
}

func TestRotatedFilesHoldEveryLineOnceAndWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "decisions.jsonl")
	lines := openRotating(t, path, audit.Rotation{Size: 2000, Keep: 100})
	for i := 1; i <= 200; i++ {
		writeLine(t, lines, audit.Decision{DecisionID: strconv.Itoa(i)})
	}
	if diff := cmp.Diff(numbers(1, 200), ids(t, path, audit.Query{})); diff != "" {
		t.Errorf("lines over all files (-want +got):\n%s", diff)
	}
	names, err := filepath.Glob(path + "*")
	if err != nil || len(names) < 10 {
		t.Fatalf("%d files (%v), want many", len(names), err)
	}
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > 2000 || info.Mode().Perm() != 0o600 || !strings.HasSuffix(read(t, name), "}\n") {
			t.Errorf("%s: %d bytes, mode %04o, or torn", filepath.Base(name), info.Size(), info.Mode().Perm())
		}
	}
}

func TestRotationKeepsTheNewestFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "decisions.jsonl")
	for _, keep := range []int{5, 2} { // the second start keeps fewer
		lines := openRotating(t, path, audit.Rotation{Size: 1, Keep: keep})
		for i := 1; i <= 9; i++ {
			writeLine(t, lines, audit.Decision{DecisionID: strconv.Itoa(i)})
		}
		if diff := cmp.Diff(numbers(9-keep, 9), ids(t, path, audit.Query{})); diff != "" {
			t.Errorf("kept %d older files (-want +got):\n%s", keep, diff)
		}
	}
}

func TestCrashWhileFilesMoveLosesNone(t *testing.T) {
	for name, crash := range map[string]func(path string) error{
		"before the first move": func(string) error { return nil },
		"between two moves":     func(path string) error { return os.Rename(path+".2", path+".3") },
		"before the last move": func(path string) error {
			return errors.Join(os.Rename(path+".2", path+".3"), os.Rename(path+".1", path+".2"))
		},
		"before the new file is made": func(path string) error {
			return errors.Join(os.Rename(path+".2", path+".3"), os.Rename(path+".1", path+".2"), os.Rename(path, path+".1"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "decisions.jsonl")
			lines := openRotating(t, path, audit.Rotation{Size: 1, Keep: 9})
			for i := 1; i <= 3; i++ {
				writeLine(t, lines, audit.Decision{DecisionID: strconv.Itoa(i)})
			}
			if err := crash(path); err != nil {
				t.Fatal(err)
			}
			lines = openRotating(t, path, audit.Rotation{Size: 1, Keep: 9})
			for i := 4; i <= 6; i++ {
				writeLine(t, lines, audit.Decision{DecisionID: strconv.Itoa(i)})
			}
			if diff := cmp.Diff(numbers(1, 6), ids(t, path, audit.Query{})); diff != "" {
				t.Errorf("lines after the crash (-want +got):\n%s", diff)
			}
		})
	}
}

// TestKilledWriterLeavesNoTornLineAndLosesNone runs a process that is killed while it writes and rotates: what it said was written is there, whole and in order.
func TestKilledWriterLeavesNoTornLineAndLosesNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "decisions.jsonl")
	if os.Getenv("WRIT_TEST_WRITER") != "" {
		lines := openRotating(t, os.Getenv("WRIT_TEST_WRITER"), audit.Rotation{Size: 4000, Keep: 1 << 20})
		for i := 1; ; i++ {
			writeLine(t, lines, audit.Decision{DecisionID: strconv.Itoa(i), Path: strings.Repeat("x", 700)})
			fmt.Println(i)
		}
	}
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledWriter")
	child.Env = append(os.Environ(), "WRIT_TEST_WRITER="+path)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	said := 0
	for {
		var n int
		if _, err := fmt.Fscanln(out, &n); err != nil {
			break
		}
		said = n
		if n == 500 {
			_ = child.Process.Kill()
		}
	}
	_ = child.Wait()
	if said < 500 {
		t.Fatalf("the writer stopped at %d", said)
	}
	openRotating(t, path, audit.Rotation{})
	got := ids(t, path, audit.Query{})
	if len(got) < said || len(got) > said+1 {
		t.Fatalf("%d lines are there, %d were written", len(got), said)
	}
	if diff := cmp.Diff(numbers(1, len(got)), got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestFailingRotationGoesOnInTheOldFile(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "decisions.jsonl")
	lines := openRotating(t, path, audit.Rotation{Size: 1, Keep: 1})
	writeLine(t, lines, audit.Decision{DecisionID: "1"})
	if err := os.Mkdir(path+".1", 0o700); err != nil { // nothing can take this name
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path+".1", "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	writeLine(t, lines, audit.Decision{DecisionID: "2"})
	if n := strings.Count(read(t, path), "\n"); n != 2 {
		t.Errorf("%d lines in the file that could not be rotated, want 2", n)
	}
	if err := os.RemoveAll(path + ".1"); err != nil {
		t.Fatal(err)
	}
	writeLine(t, lines, audit.Decision{DecisionID: "3"})
	if diff := cmp.Diff(numbers(1, 3), ids(t, path, audit.Query{})); diff != "" {
		t.Errorf("lines after the name is free again (-want +got):\n%s", diff)
	}
}

func TestQueriesFindWhatTheyAskFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "decisions.jsonl")
	lines := openRotating(t, path, audit.Rotation{Size: 300, Keep: 9})
	for _, d := range []audit.Decision{
		{DecisionID: "1", Source: "spiffe://a/web", Path: "/orders/1", Outcome: "allowed"},
		{DecisionID: "2", Source: "spiffe://a/web", Path: "/orders/2", Outcome: "denied"},
		{DecisionID: "3", Source: "spiffe://a/webshop", Path: "/orders", Outcome: "failed", Reason: "4"},
		{DecisionID: "4", Path: "/*", Outcome: "allowed"},
	} {
		writeLine(t, lines, d)
	}
	for name, test := range map[string]struct {
		query audit.Query
		want  []string
	}{
		"everything":                           {audit.Query{}, numbers(1, 4)},
		"the newest two":                       {audit.Query{Last: 2}, numbers(3, 4)},
		"more than there are":                  {audit.Query{Last: 20}, numbers(1, 4)},
		"a source is no prefix":                {audit.Query{Filter: audit.Filter{Source: "spiffe://a/web"}}, numbers(1, 2)},
		"a source that ends open":              {audit.Query{Filter: audit.Filter{Source: "spiffe://a/web*"}}, numbers(1, 3)},
		"a path":                               {audit.Query{Filter: audit.Filter{Path: "/orders"}}, numbers(3, 3)},
		"the newest of a path that ends open":  {audit.Query{Filter: audit.Filter{Path: "/orders*"}, Last: 2}, numbers(2, 3)},
		"one of two outcomes":                  {audit.Query{Filter: audit.Filter{Outcomes: []string{"denied", "failed"}}}, numbers(2, 3)},
		"an id that stands elsewhere too":      {audit.Query{Filter: audit.Filter{ID: "4"}}, numbers(4, 4)},
		"an id that is not there":              {audit.Query{Filter: audit.Filter{ID: "5"}}, nil},
		"a source and an outcome that exclude": {audit.Query{Filter: audit.Filter{Source: "spiffe://a/web", Outcomes: []string{"failed"}}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, ids(t, path, test.query)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestFollowingLosesNothingToRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "decisions.jsonl")
	const total = 3000
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	started := make(chan struct{})
	var got []string
	done := make(chan error, 1)
	go func() { // before there is a file
		done <- audit.Tail(ctx, path, audit.Query{Follow: true}, func(line []byte) error {
			d, err := audit.ParseDecision(line)
			if err != nil {
				return err
			}
			if got = append(got, d.DecisionID); len(got) == 1 {
				close(started)
			}
			if len(got) == total {
				cancel()
			}
			return nil
		})
	}()
	lines := openRotating(t, path, audit.Rotation{Size: 12000, Keep: 1000})
	writeLine(t, lines, audit.Decision{DecisionID: "1"})
	<-started
	for i := 2; i <= total; i++ {
		writeLine(t, lines, audit.Decision{DecisionID: strconv.Itoa(i)})
	}
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if diff := cmp.Diff(numbers(1, total), got); diff != "" {
		t.Errorf("followed lines (-want +got):\n%s", diff)
	}
}

func TestHalfALineIsNotGiven(t *testing.T) {
	path := filepath.Join(t.TempDir(), "decisions.jsonl")
	whole := decisionLine(t, audit.Decision{DecisionID: "1"})
	second := decisionLine(t, audit.Decision{DecisionID: "2"})
	if err := os.WriteFile(path, []byte(whole+second[:20]), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var got []string
	err := audit.Tail(ctx, path, audit.Query{Follow: true}, func(line []byte) error {
		got = append(got, string(line)+"\n")
		if len(got) == 2 {
			cancel()
			return nil
		}
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(second[20:])
		return errors.Join(err, f.Close())
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if !slices.Equal(got, []string{whole, second}) {
		t.Errorf("got %q", got)
	}
}

func TestLinesThatCannotBeReadAreToldOf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "decisions.jsonl")
	good := func(id string) string { return decisionLine(t, audit.Decision{DecisionID: id}) }
	for name, text := range map[string]string{
		path + ".2": good("1") + "\n" + good("2") + "{\"decision_id\":\"3\n" + good("4"),
		path + ".1": "no JSON\n" + good("5"),
		path:        good("6") + "[]\n" + good("7") + `{"torn`,
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		query audit.Query
		want  []string
		lines int
		file  string
		line  int
	}{
		"all":                                    {audit.Query{}, strings.Fields("1 2 4 5 6 7"), 3, path + ".2", 4},
		"the newest: what is not looked at":      {audit.Query{Last: 2}, strings.Fields("6 7"), 1, path, 2},
		"the newest of several: the oldest line": {audit.Query{Last: 3}, strings.Fields("5 6 7"), 2, path + ".1", 1},
		"all by number":                          {audit.Query{Last: 100}, strings.Fields("1 2 4 5 6 7"), 3, path + ".2", 4},
		"an id: only what might be it":           {audit.Query{Filter: audit.Filter{ID: "3"}}, nil, 1, path + ".2", 4},
		"an id that is in no broken line":        {audit.Query{Filter: audit.Filter{ID: "4"}}, strings.Fields("4"), 0, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			err := audit.Tail(t.Context(), path, test.query, func(line []byte) error {
				d, err := audit.ParseDecision(line)
				got = append(got, d.DecisionID)
				return err
			})
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("what can be read (-want +got):\n%s", diff)
			}
			var u *audit.Unreadable
			if !errors.As(err, &u) {
				if test.lines != 0 || err != nil {
					t.Fatalf("the error is %v", err)
				}
				return
			}
			if u.Lines != test.lines || u.File != test.file || u.Line != test.line {
				t.Errorf("%v; want %d, the first line %d of %s", u, test.lines, test.line, test.file)
			}
		})
	}
	t.Run("followed", func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		err := audit.Tail(ctx, path, audit.Query{Last: 1, Follow: true}, func(line []byte) error {
			switch d, _ := audit.ParseDecision(line); d.DecisionID {
			case "7":
				f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
				if err != nil {
					return err
				}
				_, err = f.WriteString(" is the end\n" + good("8"))
				return errors.Join(err, f.Close())
			case "8":
				stop()
			}
			return nil
		})
		var u *audit.Unreadable
		if !errors.As(err, &u) || u.Lines != 2 || u.Line != 2 {
			t.Errorf("the error is %v, want two lines, the first the second", err)
		}
	})
}
