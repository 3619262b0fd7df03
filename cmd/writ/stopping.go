package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

// A daemon ends within five seconds whatever its parts do: an evaluation that no deadline reaches, a test of a policy set or a
// connection that says nothing must not keep it. The agent goes first, in `writ dev` the server after it.
const (
	agentStops  = 2500 * time.Millisecond
	serverStops = 1500 * time.Millisecond
	lastCalls   = 250 * time.Millisecond
	lastResort  = 4500 * time.Millisecond
)

// stopWithin lets calls under way end, for a while. Those that do not end with their connections either are left behind.
func stopWithin(s *grpc.Server, d time.Duration) {
	ended := make(chan struct{})
	go func() { s.GracefulStop(); close(ended) }()
	if endsWithin(ended, d) {
		return
	}
	go s.Stop()
	endsWithin(ended, lastCalls)
}

func endsWithin(ended <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ended:
		return true
	case <-timer.C:
		return false
	}
}

// waitWithin waits for the parts of a daemon, which share ctx; once that has ended no longer than d. It says whether all ended.
func waitWithin(ctx context.Context, parts *errgroup.Group, d time.Duration) (all bool, err error) {
	ended := make(chan struct{})
	go func() { parts.Wait(); close(ended) }()
	select {
	case <-ended:
		return true, parts.Wait()
	case <-ctx.Done():
	}
	if !endsWithin(ended, d) {
		return false, context.Cause(ctx)
	}
	return true, parts.Wait()
}

// endAnyway ends the process where run does not return after ctx has ended, as while a policy set is loaded at start.
func endAnyway(ctx context.Context, talk io.Writer) {
	context.AfterFunc(ctx, func() {
		time.AfterFunc(lastResort, func() {
			fmt.Fprintf(talk, "writ: not stopped within %v, ended\n", lastResort)
			os.Exit(1)
		})
	})
}
