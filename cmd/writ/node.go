package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/api/adminv1"
)

func newNodeCommand() *cobra.Command {
	return group("node", "Nodes that joined", newNodeListCommand(), newNodeBanCommand(), newNodeEvictCommand())
}

func newNodeListCommand() *cobra.Command {
	var p printed
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List nodes, their state and how far they are",
		Args:  checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withAdmin(cmd, func(ctx context.Context, admin adminv1.AdminClient) error {
				answer, err := admin.ListNodes(ctx, &adminv1.ListNodesRequest{})
				if err != nil {
					return err
				}
				return printNodes(cmd, p, answer.Nodes)
			})
		},
	}
	p.flag(cmd, "table", "json", "yaml", "name")
	return cmd
}

func printNodes(cmd *cobra.Command, p printed, nodes []*adminv1.Node) error {
	var rows [][]string
	items := []map[string]any{}
	for _, n := range nodes {
		if p.form == "name" {
			fmt.Fprintln(cmd.OutOrStdout(), clean(n.AgentId))
			continue
		}
		connected := "away"
		if n.Connected {
			connected = "revision " + strconv.FormatUint(n.Revision, 10)
		}
		until := n.AttestedUntil.AsTime()
		rows = append(rows, []string{n.AgentId, n.State, n.Method, connected, relative(until)})
		items = append(items, map[string]any{"agent_id": n.AgentId, "state": n.State, "method": n.Method, "selectors": n.Selectors,
			"assurance": n.Assurance, "generation": n.Generation, "serial": n.Serial, "connected": n.Connected, "revision": n.Revision,
			"attested_at": n.AttestedAt.AsTime().Format(time.RFC3339), "attested_until": until.Format(time.RFC3339)})
	}
	switch p.form {
	case "name":
	case "table":
		table(cmd.OutOrStdout(), "AGENT-ID STATE METHOD SYNC EXPIRES", rows)
	default:
		return p.document(cmd.OutOrStdout(), "NodeList", map[string]any{"items": items})
	}
	return nil
}

func newNodeBanCommand() *cobra.Command {
	var reason string
	var dry bool
	cmd := &cobra.Command{
		Use:   "ban AGENT-ID|SELECTOR",
		Short: "Refuse a node, its keys and what it proved itself with, from now on",
		Args:  checked(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAdmin(cmd, func(ctx context.Context, admin adminv1.AdminClient) error {
				answer, err := admin.BanNode(ctx, &adminv1.BanNodeRequest{Subject: args[0], Reason: reason, DryRun: dry})
				if err != nil {
					return err
				}
				for _, id := range answer.AgentIds {
					fmt.Fprintf(cmd.OutOrStdout(), "banned %s%s\n", clean(id), dryRun(dry))
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "kept in the audit record")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say what would be banned, change nothing")
	return cmd
}

func newNodeEvictCommand() *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use:   "evict AGENT-ID",
		Short: "Forget a node; it must attest anew",
		Args:  checked(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAdmin(cmd, func(ctx context.Context, admin adminv1.AdminClient) error {
				if _, err := admin.EvictNode(ctx, &adminv1.EvictNodeRequest{AgentId: args[0], DryRun: dry}); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "evicted %s%s\n", clean(args[0]), dryRun(dry))
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say what would happen, change nothing")
	return cmd
}

func dryRun(dry bool) string {
	if dry {
		return " (dry run)"
	}
	return ""
}

// relative is a time as a table shows it: how far away it is.
func relative(t time.Time) string {
	if t.Unix() <= 0 {
		return "-"
	}
	d := time.Until(t).Round(time.Second)
	if d < 0 {
		return (-d).String() + " ago"
	}
	return "in " + d.String()
}
