package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	hookLimit = 30 * time.Second        // what one run may take
	hookAgain = 5 * time.Second         // between tries of one that failed
	hookGrace = 1500 * time.Millisecond // between asking a run's processes to end and killing them
	hookLeave = 2 * time.Second         // what a run may still take when the watch ends; with the grace well under lastResort
)

// hook is the command that runs after changes: one run at a time, beside whoever writes the files. What changes during a run is told by the next
// one, together. All but the run itself belongs to one goroutine.
type hook struct {
	command string
	limit   time.Duration
	talk    io.Writer

	changed []string         // to be told
	telling []string         // being told, by the run that is on
	ended   chan error       // how that ended; nil where none is on
	cancel  func()           // ends it
	again   <-chan time.Time // when one that failed is run again; nil where none waits
}

// left is what no run that ended well was told.
func (h *hook) left() []string { return merged(h.telling, h.changed) }

// add notes what changed. A run that failed before need not be waited for any longer.
func (h *hook) add(names []string) {
	h.changed, h.again = merged(h.changed, names), nil
}

// start runs the command if there is something to tell and nothing to wait for.
func (h *hook) start() {
	if len(h.changed) == 0 || h.ended != nil || h.again != nil {
		return
	}
	var ctx context.Context
	ctx, h.cancel = context.WithTimeout(context.Background(), h.limit) // not the watch's: a run may end after it
	h.telling, h.changed, h.ended = h.changed, nil, make(chan error, 1)
	go func(names []string, ended chan<- error) { ended <- h.run(ctx, names) }(h.telling, h.ended)
}

// finish takes how a run ended. What it should have told is told again where it failed: with what came meanwhile at once, alone after a while.
func (h *hook) finish(err error) {
	h.cancel()
	if err != nil && len(h.changed) == 0 {
		h.again = time.After(hookAgain)
	}
	if err != nil {
		h.changed = h.left()
	}
	h.telling, h.ended = nil, nil
}

// leave gives a run that is on the time to end, and ends it then.
func (h *hook) leave() error {
	select {
	case err := <-h.ended:
		return err
	case <-time.After(hookLeave):
	}
	h.cancel()
	return <-h.ended
}

// run runs the command once. What it prints goes to standard error: standard output is ours. Its processes are a group: where one of them has
// to be ended, all are. Those that it leaves behind when it ends in time live on, as a server does that it started.
func (h *hook) run(ctx context.Context, names []string) error {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", h.command)
	cmd.Env = append(os.Environ(), "WRIT_CHANGED="+strings.Join(names, " "))
	cmd.Stdout, cmd.Stderr = h.talk, h.talk
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = hookGrace
	var killAt time.Time
	cmd.Cancel = func() error {
		killAt = time.Now().Add(hookGrace)
		return signalGroup(cmd.Process.Pid, syscall.SIGTERM)
	}
	err := cmd.Run()
	switch {
	case errors.Is(err, exec.ErrWaitDelay): // somebody whom it left behind holds our standard error
		return nil
	case killAt.IsZero():
		return err
	}
	for signalGroup(cmd.Process.Pid, 0) == nil {
		if time.Now().After(killAt) {
			_ = signalGroup(cmd.Process.Pid, syscall.SIGKILL)
			break
		}
		time.Sleep(10 * time.Millisecond) // nothing tells when the last of a group is gone
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("it did not end within %s", h.limit)
	}
	return fmt.Errorf("it did not end within %s of the watch's end", hookLeave)
}

// signalGroup signals each process of a group; os.ErrProcessDone where there is none.
func signalGroup(leader int, signal syscall.Signal) error {
	if syscall.Kill(-leader, signal) != nil {
		return os.ErrProcessDone
	}
	return nil
}
