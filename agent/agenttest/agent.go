package agenttest

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/writ-dev/writ/agent"
	"github.com/writ-dev/writ/attest"
)

// proof is an attestor whose evidence is the binding's digest.
type proof struct{}

func (proof) Method() string { return "test" }

func (proof) Attest(_ context.Context, b attest.Binding) ([]byte, error) {
	digest := b.Digest()
	return digest[:], nil
}

// Config is an agent's that proves itself to this authority and knows nothing of workloads yet.
func (a *Authority) Config(t *testing.T) agent.Config {
	return agent.Config{DataDir: filepath.Join(t.TempDir(), "agent"), Server: a.address, Pins: [][32]byte{a.Pin()},
		Attestors: []attest.Attestor{proof{}}}
}

// Run starts an agent and stops it at the test's end, or earlier by the function it gives.
func Run(t *testing.T, c agent.Config) (*agent.Agent, func()) {
	t.Helper()
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	a, err := agent.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return a, stop
}

// Await looks until a condition holds.
func Await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(15 * time.Second)
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s did not come", what)
		}
	}
}
