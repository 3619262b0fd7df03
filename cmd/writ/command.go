package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/internal/fault"
)

// newCommand gives the tree of commands.
func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "writ",
		Short: "Issues attested SPIFFE identities and decides requests for Envoy",
		Long: `writ issues short-lived SPIFFE identities to workloads after proving which node and which process asks,
and decides in Envoy's ext_authz, with Rego policies that see those identities, whether a request may pass.

Try it:  writ dev`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError{cmd, err} })
	root.PersistentFlags().String("admin", "", "admin socket, a path or a unix URI (default $WRIT_ADMIN, else "+defaultAdminSocket+")")
	root.AddCommand(newDevCommand(), newServerCommand(), newAgentCommand(), newTokenCommand(), newNodeCommand(),
		newEntryCommand(), newSVIDCommand(), newJWTCommand(), newBundleCommand(), newPolicyCommand(), newTailCommand(), newExplainCommand(),
		newConfigCommand(), newVersionCommand())
	return root
}

// group is a command that only leads to others: called bare it prints its help and ends with 2.
func group(use, short string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usageError{cmd, fmt.Errorf("unknown command %q", args[0])}
		}
		return usageError{cmd, errors.New("a command is missing")}
	}}
	cmd.AddCommand(children...)
	return cmd
}

// usageError is a command line that cannot be meant: exit 2.
type usageError struct {
	cmd *cobra.Command
	err error
}

func (e usageError) Error() string { return e.err.Error() }

// exitError ends the program with a code and no further word.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit %d", int(e)) }

// checked makes a wrong number of arguments a usage error.
func checked(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{cmd, err}
		}
		return nil
	}
}

// before adds to what is looked at before a command runs.
func before(cmd *cobra.Command, check func(cmd *cobra.Command) error) {
	earlier := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd); err != nil || earlier == nil {
			return err
		}
		return earlier(cmd, args)
	}
}

// The exit codes, as contract.md fixes them.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitDenied
	exitUnreachable
	exitConflict
)

// explain prints err as a person reads it (what, why, the command that fixes it) and gives the exit code.
func explain(w io.Writer, cmd *cobra.Command, err error) int {
	var usage usageError
	var exit exitError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &exit):
		return int(exit)
	case errors.As(err, &usage):
		fmt.Fprintf(w, "error: %v\n%s", clean(usage.Error()), usage.cmd.UsageString())
		return exitUsage
	case strings.HasPrefix(err.Error(), "unknown command"):
		fmt.Fprintf(w, "error: %v\n%s", clean(err.Error()), cmd.UsageString())
		return exitUsage
	}
	var f *fault.Error
	if !errors.As(err, &f) {
		fmt.Fprintf(w, "error: %s\n", clean(err.Error()))
		return exitFailed
	}
	printFault(w, f, err)
	switch f.Kind {
	case fault.Denied, fault.Unauthenticated:
		return exitDenied
	case fault.Unavailable, fault.Unreachable:
		return exitUnreachable
	case fault.Conflict:
		return exitConflict
	}
	return exitFailed
}

// printFault has one shape for all: code and what, why in lines, the fix, where more stands.
func printFault(w io.Writer, f *fault.Error, err error) {
	head := "error"
	if f.Code != "" {
		head += " " + string(f.Code)
	}
	what := f.What
	if cause := errors.Unwrap(f); cause != nil {
		what += ": " + cause.Error()
	}
	if i := strings.Index(err.Error(), f.What); i > 0 {
		what = err.Error()[:i] + what
	}
	fmt.Fprintf(w, "%s: %s\n", head, clean(what))
	for _, line := range f.Why {
		fmt.Fprintf(w, "  %s\n", clean(line))
	}
	if f.Fix != "" {
		fmt.Fprintf(w, "  fix:  %s\n", clean(f.Fix))
	}
	if _, there := fault.PageOf(f.Code); there {
		fmt.Fprintf(w, "  more: writ explain error %s\n", f.Code)
	}
}

// clean keeps control characters that came from outside away from the terminal; line breaks and tabs stay.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && (r < 0x20 || r == 0x7f || (r >= 0x80 && r < 0xa0)) {
			return '\uFFFD'
		}
		return r
	}, s)
}
