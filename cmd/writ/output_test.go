package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
)

// tornWriter takes so many writes, then fails.
type tornWriter struct {
	takes int
	err   error
}

func (w *tornWriter) Write(p []byte) (int, error) {
	if w.takes--; w.takes < 0 {
		return 0, &fs.PathError{Op: "write", Path: "/dev/stdout", Err: w.err}
	}
	return len(p), nil
}

// What is not written is a failure: a script that takes a token from a full disk's file must not go on.
func TestLostOutputIsAFailure(t *testing.T) {
	serveFake(t, step{messages: []*workload.X509SVIDResponse{message(issued(t, "/web"))}})
	records := filepath.Join(t.TempDir(), "decisions.jsonl")
	if err := os.WriteFile(records, []byte(strings.Repeat(`{"decision_id":"d-1"}`+"\n", 3)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		command string
		takes   int
	}{
		{"version", 0}, {"version -o json", 0}, {"version -o yaml", 0}, {"explain error", 0}, {"explain error P2004", 0}, {"explain error P2004", 3}, {"--help", 0}, {"completion bash", 0},
		{"svid get", 0}, {"svid get -o pem", 1}, {"svid watch", 0}, {"svid watch -o json", 0}, {"tail decisions -f --file " + records, 1},
	} {
		t.Run(row.command, func(t *testing.T) {
			var talk said
			code := run(t.Context(), strings.Fields(row.command), strings.NewReader(""), &tornWriter{row.takes, syscall.ENOSPC}, &talk)
			if got := talk.text.String(); code != exitFailed || got != "error: write to standard output: no space left on device\n" {
				t.Errorf("it ends with %d: %s", code, got)
			}
			talk = said{}
			if code := run(t.Context(), strings.Fields(row.command), strings.NewReader(""), &tornWriter{row.takes, syscall.EPIPE}, &talk); code != exitFailed || talk.text.Len() > 0 {
				t.Errorf("without a reader it ends with %d: %s", code, talk.text.String())
			}
		})
	}
}

// An error of the command says more than that of its output; an exit without a word says less.
func TestLostOutputHidesNoError(t *testing.T) {
	o := &output{to: &tornWriter{0, syscall.ENOSPC}}
	if _, err := o.Write([]byte("x")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a write gives %v", err)
	}
	own := errors.New("own")
	if got := o.orBroken(own); got != own {
		t.Errorf("its own error becomes %v", got)
	}
	if got := o.orBroken(exitError(exitFailed)); !errors.Is(got, syscall.ENOSPC) {
		t.Errorf("an exit becomes %v", got)
	}
}
