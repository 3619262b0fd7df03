// Writ is a policy and identity authority for service meshes: one binary that is server, agent, decision point and the operator's
// commands. This package is wiring only: it reads configuration, builds the parts and hands each what it needs. Start with
// command.go for the tree of commands, serverdaemon.go and agentdaemon.go for what the daemons are made of, dev.go for both in
// one process.
//
// Data goes to standard output, talk to standard error. Exit codes: 0 ok, 1 failed, 2 usage, 3 denied, 4 unreachable, 5 conflict.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	endAnyway(ctx, os.Stderr)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the whole program for these arguments, and gives its exit code.
func run(ctx context.Context, args []string, in io.Reader, out, talk io.Writer) int {
	root := newCommand()
	printed := &output{to: out}
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(printed)
	root.SetErr(talk)
	cmd, err := root.ExecuteContextC(ctx)
	return explain(talk, cmd, printed.orBroken(err))
}
