package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authz/policy"
)

func newPolicyCommand() *cobra.Command {
	return group("policy", "Policy sets", &cobra.Command{
		Use:   "test FOLDER",
		Short: "Compile a policy set and run its tests and cases, as an agent does before it takes it",
		Args:  checked(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := policy.Load(cmd.Context(), args[0], policy.Config{})
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s passes, revision %s\n", clean(args[0]), set.Revision())
			return nil
		},
	})
}
