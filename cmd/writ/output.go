package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"syscall"
)

// output is standard output. It remembers what went wrong first, so that no command that prints has to look: data that is not written is a
// failure, whatever the command did.
type output struct {
	to io.Writer

	mu     sync.Mutex // guards broken
	broken error
}

// Write fails for good once it has failed: what follows a gap is of no use.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.broken != nil {
		return 0, o.broken
	}
	n, err := o.to.Write(p)
	if err != nil {
		o.broken = brokenOutput{err}
	}
	return n, o.broken
}

// orBroken is how a command ended: its own error where it has one with words of its own, else that of its output.
func (o *output) orBroken(err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.broken == nil || err != nil && !errors.As(err, new(brokenOutput)) && !errors.As(err, new(exitError)) {
		return err
	}
	if errors.Is(o.broken, syscall.EPIPE) { // its reader has all that it wanted
		return exitError(exitFailed)
	}
	return o.broken
}

// brokenOutput is an error of standard output.
type brokenOutput struct{ err error }

func (b brokenOutput) Error() string {
	err := b.err
	var path *fs.PathError
	if errors.As(err, &path) { // which names /dev/stdout, wherever that leads
		err = path.Err
	}
	return fmt.Sprintf("write to standard output: %v", err)
}

func (b brokenOutput) Unwrap() error { return b.err }
