package store_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
	"github.com/writ-dev/writ/store"
)

// The test binary is also the server that is killed: with this variable set it writes to the store in that folder until then.
const crashVariable = "WRIT_STORE_CRASH"

// A server that is killed in the middle of its writes has lost nothing that it acknowledged, whatever it was at.
func TestSQLiteKilledServerLosesNothing(t *testing.T) {
	h := newSQLite(t)
	h.issuing()
	acknowledged := map[string]string{} // what was written, and which kind
	for round := range 10 {
		h.must(h.Close())
		for _, line := range killed(t, h.config.DataDir, 20+rand.IntN(100)) {
			kind, what, ok := strings.Cut(line, " ")
			if !ok || acknowledged[what] != "" {
				t.Fatalf("round %d: acknowledged %q", round, line)
			}
			acknowledged[what] = kind
		}
		h.open()
		h.nothingLost(acknowledged)
		h.whole()
	}
}

// nothingLost ends the test unless all that was acknowledged is there, and every serial has one audit row.
func (h *house) nothingLost(acknowledged map[string]string) {
	h.Helper()
	s := h.state()
	entries, serials := map[string]bool{}, map[string]int{}
	for _, e := range s.Entries {
		entries[e.Name] = true
	}
	for _, i := range h.issuances() {
		serials[i.Serial]++
	}
	for what, kind := range acknowledged {
		if kind == "entry" && !entries[what] || kind == "serial" && serials[what] == 0 {
			h.Fatalf("%s %s was acknowledged and is lost", kind, what)
		}
	}
	for serial, n := range serials {
		if n != 1 {
			h.Fatalf("serial %s was recorded %d times", serial, n)
		}
		h.want(h.RecordIssuance(context.Background(), h.intent(serial)), fault.Conflict, "")
	}
}

// killed runs a server on the folder, kills it after so many acknowledgements, and gives all of them: it may have been quicker to
// write than we to read.
func killed(t *testing.T, folder string, after int) (lines []string) {
	t.Helper()
	server := exec.Command(os.Args[0])
	server.Env = append(os.Environ(), crashVariable+"="+folder)
	server.Stderr = os.Stderr
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	refused := false
	for in := bufio.NewScanner(out); in.Scan(); {
		if lines = append(lines, in.Text()); len(lines) == 1 { // it is open: nobody else gets in
			_, err := store.Open(context.Background(), store.Config{DataDir: folder})
			refused = fault.Is(err, fault.Conflict)
		}
		if len(lines) == after {
			_ = server.Process.Kill()
		}
	}
	if err := server.Wait(); err == nil || len(lines) < after {
		t.Fatalf("server ended by itself after %d acknowledgements: %v", len(lines), err)
	}
	if !refused {
		t.Error("a second process opened the store")
	}
	if _, err := os.Stat(filepath.Join(folder, "writ.db-wal")); err != nil {
		t.Errorf("the server had time to put its log away: %v", err)
	}
	return lines
}

// writeUntilKilled acknowledges on its standard output, a line at a time, what is written.
func writeUntilKilled(folder string) {
	h := &house{clock: &clock{now: time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)}}
	db, err := store.Open(context.Background(), store.Config{DataDir: folder, Server: "a", Now: h.clock.Now})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var say sync.Mutex
	acknowledge := func(kind, what string, err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, kind, what, err)
			os.Exit(1)
		}
		say.Lock()
		defer say.Unlock()
		_, _ = fmt.Println(kind, what) // one write, so that no line is torn
	}
	for w := range 4 {
		go func() {
			for {
				name := fmt.Sprintf("e-%d-%016x", w, rand.Uint64())
				_, err := db.Apply(context.Background(), registration.Batch{Entries: entries(name)}, audit.Admin{})
				acknowledge("entry", name, err)
			}
		}()
		go func() {
			for {
				serials := []string{fmt.Sprintf("%016x", rand.Uint64()), fmt.Sprintf("%016x", rand.Uint64())}
				errs := db.RecordIssuances(context.Background(), []audit.Issuance{h.intent(serials[0]), h.intent(serials[1])})
				for i, err := range errs {
					acknowledge("serial", serials[i], err)
				}
			}
		}()
	}
	select {}
}
