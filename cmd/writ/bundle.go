package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/api/adminv1"
)

func newBundleCommand() *cobra.Command {
	return group("bundle", "The trust bundle", newBundleShowCommand())
}

func newBundleShowCommand() *cobra.Command {
	var p printed
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the roots of the trust domain, with the pins that join tokens carry",
		Args:  checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withAdmin(cmd, func(ctx context.Context, admin adminv1.AdminClient) error {
				bundle, err := admin.GetBundle(ctx, &adminv1.GetBundleRequest{})
				if err != nil {
					return err
				}
				return printBundle(cmd, p, bundle)
			})
		},
	}
	p.flag(cmd, "table", "json", "yaml", "pem")
	return cmd
}

func printBundle(cmd *cobra.Command, p printed, bundle *adminv1.GetBundleResponse) error {
	var rows [][]string
	items := []map[string]any{}
	for _, der := range bundle.X509Authorities {
		if p.form == "pem" {
			if err := pem.Encode(cmd.OutOrStdout(), &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
				return err
			}
			continue
		}
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("bundle of %s: %w", bundle.TrustDomain, err)
		}
		pin := pinOf(root)
		rows = append(rows, []string{"spiffe://" + bundle.TrustDomain, root.Subject.CommonName, pin, relative(root.NotAfter)})
		items = append(items, map[string]any{"subject": root.Subject.String(), "sha256": pin, "not_after": root.NotAfter.UTC()})
	}
	switch p.form {
	case "pem":
	case "table":
		table(cmd.OutOrStdout(), "TRUST-DOMAIN ROOT SHA256-OF-KEY EXPIRES", rows)
	default:
		return p.document(cmd.OutOrStdout(), "Bundle", map[string]any{"trust_domain": bundle.TrustDomain, "sequence": bundle.Sequence, "roots": items})
	}
	return nil
}

// pinOf is the pin of a root as join tokens carry it: SHA-256 of its public key, in hex.
func pinOf(root *x509.Certificate) string {
	return fmt.Sprintf("%x", sha256.Sum256(root.RawSubjectPublicKeyInfo))
}
