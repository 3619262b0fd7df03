package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/authz"
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

// decideFor allows whoever asks, in the name that the request's bytes are.
type decideFor struct{}

func (decideFor) Decide(_ context.Context, _ string, request []byte) authz.Decision {
	return authz.Decision{Outcome: authz.Allowed, Request: authz.Request{Source: string(request)}}
}

func TestFullDiskDeniesTheFlooderFirstAndLosesNoRequiredRecord(t *testing.T) {
	folder := t.TempDir()
	if err := syscall.Mount("tmpfs", folder, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("mount (this test needs root): %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(folder, syscall.MNT_DETACH) })
	ballast, file := filepath.Join(folder, "ballast"), filepath.Join(folder, "decisions.jsonl")
	k, err := newRecordKeeper(recordsConfig{File: file, Required: true}, "", "example.org", slog.New(slog.DiscardHandler), newMetrics())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ballast, make([]byte, 1020<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	server, err := authz.New(authz.Config{Decider: decideFor{}, Records: k.ring, Required: true})
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]int{}
	ask := func(source string) bool {
		bytes, err := server.Answer(t.Context(), []byte(source))
		var answer authv3.CheckResponse
		if err := errors.Join(err, proto.Unmarshal(bytes, &answer)); err != nil {
			t.Fatal(err)
		}
		if answer.GetDeniedResponse() == nil {
			allowed[source]++
			return true
		}
		if code := answer.GetDeniedResponse().GetStatus().GetCode(); code != 503 {
			t.Fatalf("denied with %v, want 503", code)
		}
		return false
	}
	refused := 0
	for end := time.Now().Add(20 * time.Second); refused < 2*ringSize; { // until a batch is stuck and the share behind it is used up
		if !ask("flooder") {
			refused++
		}
		if time.Now().After(end) {
			t.Fatalf("a full disk refused %d of %d", refused, refused+allowed["flooder"])
		}
	}
	if !ask("another") {
		t.Error("one caller closed the door for another")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", folder, "tmpfs", syscall.MS_REMOUNT, "size=100m"); err != nil {
		t.Fatal(err)
	}
	k.close()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for source, n := range allowed {
		if got := strings.Count(string(text), fmt.Sprintf(`"source":%q`, source)); got != n {
			t.Errorf("%d records of %s, who was allowed %d times", got, source, n)
		}
	}
}
