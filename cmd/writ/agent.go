package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/writ-dev/writ/attest/jointoken"
	"github.com/writ-dev/writ/internal/fault"
)

func newAgentCommand() *cobra.Command {
	return group("agent", "The node's daemon: identities and decisions", newAgentJoinCommand(), newAgentRunCommand())
}

func newAgentRunCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "run --config agent.yaml",
		Short: "Serve the Workload API, Envoy SDS and ext_authz on this node",
		Args:  checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var c agentConfig
			if err := readConfig(file, &c); err != nil {
				return err
			}
			c = c.withDefaults()
			if err := c.problems().err(file); err != nil {
				return err
			}
			return runAgent(cmd.Context(), c, cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVar(&file, "config", "/etc/writ/agent.yaml", "configuration file")
	return cmd
}

func runAgent(ctx context.Context, c agentConfig, talk io.Writer) error {
	metrics := newMetrics()
	d, err := newAgentDaemon(ctx, c, agentParts{}, c.Log.logger(talk), metrics)
	if err != nil {
		return err
	}
	return runWithHTTP(ctx, c.Metrics, metrics, d.health, d.run, d.close)
}

// runWithHTTP runs a daemon beside its /metrics and /healthz.
func runWithHTTP(ctx context.Context, address string, metrics *prometheus.Registry, check healthCheck, run func(context.Context) error, abandon func()) error {
	defer roomForGarbage()()
	l, err := net.Listen("tcp", address)
	if err != nil {
		abandon()
		return fault.New(fault.Invalid, err, "listen for metrics").With(fault.SocketInUse, "name another address as `metrics`")
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return serveHTTP(ctx, l, metrics, check) })
	g.Go(func() error { return run(ctx) })
	return g.Wait()
}

func newAgentJoinCommand() *cobra.Command {
	var file, dataDir, tokenFile string
	cmd := &cobra.Command{
		Use:   "join [TOKEN | -]",
		Short: "Attest this node with a join token, write its files, and exit",
		Long: `Joins this node to a trust domain. - reads the token from standard input, which keeps it out of the process list:

    writ agent join -

What it needs to go on lies in the data directory afterwards; then ` + "`writ agent run`" + `.`,
		Args: checked(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := tokenText(cmd, args, tokenFile)
			if err != nil {
				return err
			}
			token, err := jointoken.Decode(text)
			if err != nil {
				return err
			}
			var c agentConfig
			if err := readConfig(file, &c); err != nil {
				return err
			}
			if dataDir != "" {
				c.DataDir = dataDir
			}
			return join(cmd, c.withDefaults(), token)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file")
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "where the node's files go (default /var/lib/writ/agent)")
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "read the token from this file")
	return cmd
}

func join(cmd *cobra.Command, c agentConfig, token jointoken.Text) error {
	a, err := newAgent(c, agentParts{token: &token}, c.Log.logger(cmd.ErrOrStderr()), newMetrics())
	if err != nil {
		return err
	}
	if err := a.Join(cmd.Context()); err != nil {
		return err
	}
	status := a.Status()
	fmt.Fprintf(cmd.OutOrStdout(), "joined %s as %s via join_token\nnext: writ agent run --config agent.yaml   (data_dir: %s)\n",
		status.TrustDomain, status.AgentID, c.DataDir)
	return nil
}

// tokenText takes the token from exactly one of the argument, standard input and a file.
func tokenText(cmd *cobra.Command, args []string, file string) (string, error) {
	if (len(args) == 1) == (file != "") {
		return "", usageError{cmd, fmt.Errorf("give the token once: TOKEN, - for standard input, or --token-file")}
	}
	const longest = 64 << 10
	switch {
	case file != "":
		data, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("read token: %w", err)
		}
		return strings.TrimSpace(string(data)), nil
	case args[0] == "-":
		data, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), longest))
		if err != nil {
			return "", fmt.Errorf("read token: %w", err)
		}
		return strings.TrimSpace(string(data)), nil
	}
	return args[0], nil
}
