package main

import "github.com/spf13/cobra"

func newExplainCommand() *cobra.Command {
	return group("explain", "Say why: an error code", newExplainErrorCommand())
}
