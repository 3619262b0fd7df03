package main

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"
)

func newEntrySuggestCommand() *cobra.Command {
	var f processFlags
	var id, path string
	var everyNode bool
	cmd := &cobra.Command{
		Use:   "suggest --pid N",
		Short: "Write an entry for a process of this node",
		Long: `Asks the agent of this node, over its admin socket, what it finds of a process, and writes the narrowest entry that holds over
restarts: this node, this user and this executable. Read it before you apply it:

    writ entry suggest --pid N
    writ entry suggest --pid N | writ entry apply -f -

The SPIFFE ID is the name of the executable, or of the user where the executable runs others, unless --id or --path names it. One
that another entry gives already is not guessed.`,
		Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if id != "" && path != "" {
				return usageError{cmd, errors.New("--id and --path exclude each other")}
			}
			if path != "" && !strings.HasPrefix(path, "/") {
				return usageError{cmd, fmt.Errorf("--path %q does not begin with /", path)}
			}
			values := url.Values{"id": {id}, "path": {path}, "any": {fmt.Sprint(everyNode)}}
			var s suggested
			if err := f.ask(cmd, suggestPath, values, &s); err != nil {
				return err
			}
			for line := range strings.Lines(s.YAML) {
				fmt.Fprintln(cmd.OutOrStdout(), visible(strings.TrimSuffix(line, "\n")))
			}
			if s.Over {
				fmt.Fprintf(cmd.ErrOrStderr(), "note: process %d has ended; this is for what it was when it last asked\n", f.pid)
			}
			if len(s.Holds) > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "note: the process matches already: %s\n", visible(strings.Join(s.Holds, ", ")))
			}
			return nil
		},
	}
	f.flag(cmd)
	cmd.Flags().StringVar(&id, "id", "", "its SPIFFE ID")
	cmd.Flags().StringVar(&path, "path", "", "the path of its SPIFFE ID, in the agent's trust domain")
	cmd.Flags().BoolVar(&everyNode, "any", false, "let the entry hold on every node")
	return cmd
}
