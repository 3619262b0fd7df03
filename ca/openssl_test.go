package ca_test

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/writ-dev/writ/ca"
)

// TestOpenSSLTakesTheChain asks the strictest of the verifiers that our users' servers are built on.
func TestOpenSSLTakesTheChain(t *testing.T) {
	a := start(t, config())
	r := request(t)
	r.DNS = []string{"orders.internal"}
	leaf := issue(t, a, ca.WorkloadSVID(), r)
	b := a.Bundle()
	folder := t.TempDir()
	file := func(name string, c *x509.Certificate) string {
		path := filepath.Join(folder, name)
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	root, issuing, end := file("root.pem", b.Roots[0]), file("issuing.pem", b.Issuing[0]), file("leaf.pem", leaf)
	for _, purpose := range []string{"sslserver", "sslclient"} {
		verify := exec.CommandContext(t.Context(), "openssl", "verify", "-x509_strict", "-purpose", purpose,
			"-verify_hostname", "orders.internal", "-no-CAfile", "-no-CApath", "-trusted", root, "-untrusted", issuing, end)
		if out, err := verify.CombinedOutput(); err != nil {
			t.Errorf("openssl verify for %s: %v\n%s", purpose, err, out)
		}
	}
}
