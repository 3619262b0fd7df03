package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/internal/fault"
)

// adminOver serves the admin socket of an agent that keeps its records in file.
func adminOver(t *testing.T, file string) (socket string) {
	t.Helper()
	d := &agentDaemon{log: slog.New(slog.DiscardHandler), records: &recordKeeper{file: file},
		config: agentConfig{AdminSocket: filepath.Join(t.TempDir(), "a.sock"), adminMode: 0o600}}
	if err := d.listenAdmin(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = d.adminServe.Serve(d.admin); close(done) }()
	t.Cleanup(func() { _ = d.adminServe.Close(); <-done })
	return d.config.AdminSocket
}

func TestTailFollowsOverTheSocketAsRecordsAreWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "decisions.jsonl")
	lines, err := audit.OpenRotating(file, audit.Rotation{Size: 300, Keep: 20})
	if err != nil {
		t.Fatal(err)
	}
	defer lines.Close()
	write := func(n int) {
		if _, err := fmt.Fprintf(lines, `{"decision_id":"%d","source":"spiffe://a/%d","pad":%q}`+"\n", n, n%2, strings.Repeat("x", 100)); err != nil {
			t.Error(err)
		}
	}
	write(1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var got []string
	err = askAgent(ctx, adminOver(t, file), audit.Query{Filter: audit.Filter{Source: "spiffe://a/1"}, Follow: true}, func(line []byte) error {
		d, err := audit.ParseDecision(line)
		if err != nil {
			return err
		}
		if got = append(got, d.DecisionID); len(got) == 1 { // it follows now
			for n := 2; n <= 9; n++ {
				write(n)
			}
		}
		if len(got) == 5 {
			cancel()
		}
		return nil
	})
	if ctx.Err() == nil {
		t.Errorf("following ended by itself: %v", err)
	}
	if diff := cmp.Diff([]string{"1", "3", "5", "7", "9"}, got); diff != "" {
		t.Errorf("followed (-want +got):\n%s", diff)
	}
}

func TestAgentWithoutAFileOfRecordsSaysSo(t *testing.T) {
	err := askAgent(t.Context(), adminOver(t, ""), audit.Query{}, func([]byte) error { return nil })
	if fault.KindOf(err) != fault.NotFound || !strings.Contains(err.Error(), "keeps no file") {
		t.Errorf("got %v", err)
	}
}

func TestFileHoldsWhatTheReceiverNeverTook(t *testing.T) {
	file := filepath.Join(t.TempDir(), "decisions.jsonl")
	part := 0.0
	k, err := newRecordKeeper(recordsConfig{File: file, Sample: sampleConfig{Allowed: &part},
		Upload: &receiverConfig{URL: "http://127.0.0.1:1/logs"}}, "", "example.org", slog.New(slog.DiscardHandler), newMetrics())
	if err != nil {
		t.Fatal(err)
	}
	k.ring.Put(&audit.Decision{DecisionID: "denied"})
	k.ring.Put(&audit.Decision{DecisionID: "allowed", Allow: true})
	k.close() // nobody answers where records are sent, and the file has them all the same
	text, err := os.ReadFile(file)
	if err != nil || strings.Count(string(text), "\n") != 1 || !strings.Contains(string(text), `"denied"`) {
		t.Errorf("the file holds %q (%v), want the denial alone", text, err)
	}
	if k.upload.Dropped() != 1 || k.ring.Dropped() != 0 {
		t.Errorf("%d lost by the upload and %d by the file, want 1 and 0", k.upload.Dropped(), k.ring.Dropped())
	}
}
