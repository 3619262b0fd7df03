package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/svid"
)

func newBundleCommand() *cobra.Command {
	return group("bundle", "The trust bundle", newBundleShowCommand())
}

func newBundleShowCommand() *cobra.Command {
	var p printed
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the roots of the trust domain, with the pins that join tokens carry",
		Long: `Shows the roots of the trust domain, with the pins that join tokens carry.
-o pem prints the certificates, -o spiffe the SPIFFE bundle: all keys in the form that other trust domains read.`,
		Args: checked(cobra.NoArgs),
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
	p.flag(cmd, "table", "json", "yaml", "pem", "spiffe")
	return cmd
}

func printBundle(cmd *cobra.Command, p printed, bundle *adminv1.GetBundleResponse) error {
	if p.form == "spiffe" {
		return printSPIFFEBundle(cmd.OutOrStdout(), bundle)
	}
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

// printSPIFFEBundle prints the document of SPIFFE_Trust_Domain_and_Bundle section 4.
func printSPIFFEBundle(w io.Writer, bundle *adminv1.GetBundleResponse) error {
	td, err := svid.ParseTrustDomain(bundle.TrustDomain)
	if err != nil {
		return err
	}
	b := svid.Bundle{TrustDomain: td, Sequence: bundle.Sequence, RefreshHint: time.Duration(bundle.RefreshHintSeconds) * time.Second}
	for _, der := range bundle.X509Authorities {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("bundle of %s: %w", bundle.TrustDomain, err)
		}
		b.Roots = append(b.Roots, root)
	}
	if len(bundle.JwtAuthorities) > 0 {
		keys, err := svid.ParseJWKS(td, bundle.JwtAuthorities)
		if err != nil {
			return err
		}
		b.JWTKeys = keys.Keys
	}
	document, err := b.Document()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", document)
	return err
}

// pinOf is the pin of a root as join tokens carry it: SHA-256 of its public key, in hex.
func pinOf(root *x509.Certificate) string {
	return fmt.Sprintf("%x", sha256.Sum256(root.RawSubjectPublicKeyInfo))
}
