package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/authz/policy"
)

func newPolicyCommand() *cobra.Command {
	return group("policy", "Policy sets", newPolicyTestCommand())
}

func newPolicyTestCommand() *cobra.Command {
	var c policy.Config
	cmd := &cobra.Command{
		Use:   "test FOLDER",
		Short: "Compile a policy set and run its tests and cases, as an agent does before it takes it",
		Args:  checked(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if c.Megabytes < 1 || c.Megabytes > policy.MostMegabytes {
				return usageError{cmd, fmt.Errorf("--megabytes: %d is not between 1 and %d", c.Megabytes, policy.MostMegabytes)}
			}
			set, err := policy.Load(cmd.Context(), args[0], c)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s passes, revision %s\n", clean(args[0]), set.Revision())
			return nil
		},
	}
	cmd.Flags().IntVar(&c.Megabytes, "megabytes", policy.StandardMegabytes, "what the files may have in all, as the agent's authz.policy_megabytes")
	return cmd
}
