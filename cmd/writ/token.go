package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-dev/writ/api/adminv1"
)

func newTokenCommand() *cobra.Command {
	return group("token", "Join tokens", newTokenCreateCommand())
}

func newTokenCreateCommand() *cobra.Command {
	var p printed
	var ttl time.Duration
	var node, cidr string
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a token that lets one node join",
		Long: `Prints a token that carries the server's addresses, a pin of its root and a seed. The first node that proves it has it
joins; nobody else can use it. Give it to the node on standard input, so that it stands in no process list:

    writ token create --node web-1
    writ agent join -            # on the node; paste the token`,
		Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withAdmin(cmd, func(ctx context.Context, admin adminv1.AdminClient) error {
				token, err := admin.CreateToken(ctx, &adminv1.CreateTokenRequest{Ttl: durationpb.New(ttl), Node: node, Cidr: cidr})
				if err != nil {
					return err
				}
				if p.form != "table" {
					return p.document(cmd.OutOrStdout(), "Token", map[string]any{"token": token.Token, "id": token.Id,
						"expires": token.Expires.AsTime().Format(time.RFC3339), "join": "writ agent join -"})
				}
				fmt.Fprintf(cmd.OutOrStdout(), "token: %s\njoin: writ agent join -\n", token.Token)
				return nil
			})
		},
	}
	cmd.Flags().DurationVar(&ttl, "ttl", 10*time.Minute, "how long it may be used")
	cmd.Flags().StringVar(&node, "node", "", "name of the node: its selector join_token:name:NAME")
	cmd.Flags().StringVar(&cidr, "cidr", "", "only from addresses in this network")
	p.flag(cmd, "table", "json", "yaml")
	return cmd
}
