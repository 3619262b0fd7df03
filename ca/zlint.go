package ca

import (
	"fmt"
	"slices"

	"github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"
)

// lintRules are the lints for certificates that no browser will see. The one left out refuses trust domains that are no host
// names, which SPIFFE-ID section 2.1 allows.
func lintRules() (lint.Registry, error) {
	return lint.GlobalRegistry().Filter(lint.FilterOptions{
		IncludeSources: lint.SourceList{lint.RFC5280, lint.RFC5480, lint.Community},
		ExcludeNames:   []string{"e_ext_san_uri_host_not_fqdn_or_ip"},
	})
}

func zlintErrors(raw []byte, rules lint.Registry) error {
	c, err := x509.ParseCertificate(raw)
	if err != nil {
		return fmt.Errorf("zlint cannot read it: %w", err)
	}
	var broken []string
	for name, result := range zlint.LintCertificateEx(c, rules).Results {
		if result.Status >= lint.Error {
			broken = append(broken, name+" "+result.Details)
		}
	}
	if len(broken) == 0 {
		return nil
	}
	slices.Sort(broken)
	return fmt.Errorf("zlint: %q", broken)
}
