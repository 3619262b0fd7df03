package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func newServerCommand() *cobra.Command {
	return group("server", "The authority of a trust domain", newServerInitCommand(), newServerRunCommand())
}

// serverConfigFlag adds --config and gives what reads the file.
func serverConfigFlag(cmd *cobra.Command) func() (serverConfig, error) {
	file := cmd.Flags().String("config", "/etc/writ/server.yaml", "configuration file")
	return func() (serverConfig, error) {
		var c serverConfig
		if err := readConfig(*file, &c); err != nil {
			return c, err
		}
		c = c.withDefaults()
		return c, c.problems().err(*file)
	}
}

func newServerRunCommand() *cobra.Command {
	var read func() (serverConfig, error)
	cmd := &cobra.Command{
		Use:   "run --config server.yaml",
		Short: "Issue identities to the nodes and workloads of one trust domain",
		Long:  "Runs the authority. An empty data directory is initialised: a root and an issuing certificate are made.",
		Args:  checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := read()
			if err != nil {
				return err
			}
			return runServer(cmd.Context(), c, cmd.ErrOrStderr())
		},
	}
	read = serverConfigFlag(cmd)
	return cmd
}

func runServer(ctx context.Context, c serverConfig, talk io.Writer) error {
	metrics := newMetrics()
	d, err := newServerDaemon(ctx, c, c.Log.logger(talk), metrics)
	if err != nil {
		return err
	}
	return runWithHTTP(ctx, c.Metrics, metrics, d.health, d.run, d.close)
}

func newServerInitCommand() *cobra.Command {
	var read func() (serverConfig, error)
	cmd := &cobra.Command{
		Use:   "init --config server.yaml",
		Short: "Make the root and the issuing certificate, and show the root's pin",
		Args:  checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := read()
			if err != nil {
				return err
			}
			d, err := newServerDaemon(cmd.Context(), c, c.Log.logger(cmd.ErrOrStderr()), newMetrics())
			if err != nil {
				return err
			}
			defer d.close()
			for _, root := range d.authority.Bundle().Roots {
				fmt.Fprintf(cmd.OutOrStdout(), "trust domain %s\nroot %s\nsha256 of its key %s\n", c.TrustDomain, root.Subject.CommonName, pinOf(root))
			}
			fmt.Fprintf(cmd.OutOrStdout(), "next: writ server run, then writ token create\n")
			return nil
		},
	}
	read = serverConfigFlag(cmd)
	return cmd
}
