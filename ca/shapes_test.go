//go:build lintshapes

package ca_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"

	"github.com/writ-dev/writ/ca"
)

// TestShapes lints one certificate of every shape that the test runs issued: keep.go put them into WRIT_SHAPES. It runs at the end
// of `make test`, by `make shapes`. Zlint, OpenSSL and GnuTLS must find nothing, not even what is worth a notice.
func TestShapes(t *testing.T) {
	files := must(filepath.Glob(filepath.Join(os.Getenv("WRIT_SHAPES"), "*.pem")))(t)
	for _, profile := range []string{"root", "issuing", "workload-svid", "agent-svid", "server-svid"} {
		if !strings.Contains(strings.Join(files, "\n"), "/"+profile+"_") {
			t.Errorf("no %s was issued in the test runs whose certificates lie in %q", profile, os.Getenv("WRIT_SHAPES"))
		}
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".pem"), func(t *testing.T) {
			t.Parallel()
			s := readShape(t, file)
			s.zlint(t)
			s.openssl(t)
			s.certtool(t)
		})
	}
	t.Logf("%d shapes", len(files))
}

// kept is a certificate with the rest of its chain, each in a file of its own too.
type kept struct {
	certs             []*x509.Certificate // the root last
	leaf, chain, root string              // PEM files: the first, all, the last
	at                time.Time           // when it is valid
}

func readShape(t *testing.T, file string) kept {
	text := must(os.ReadFile(file))(t)
	folder := t.TempDir()
	s := kept{chain: file, leaf: filepath.Join(folder, "leaf.pem"), root: filepath.Join(folder, "root.pem")}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		s.certs = append(s.certs, must(x509.ParseCertificate(block.Bytes))(t))
		one := pem.EncodeToMemory(block)
		if len(s.certs) == 1 {
			must(0, os.WriteFile(s.leaf, one, 0o600))(t)
			s.at = s.certs[0].NotAfter.Add(-time.Second)
		}
		must(0, os.WriteFile(s.root, one, 0o600))(t)
	}
	if len(s.certs) == 0 {
		t.Fatal("no certificate in it")
	}
	return s
}

func (s kept) zlint(t *testing.T) {
	c := must(zx509.ParseCertificate(s.certs[0].Raw))(t)
	for name, result := range zlint.LintCertificateEx(c, must(ca.LintRules())(t)).Results {
		if result.Status >= lint.Notice && name != "n_san_iana_pub_suffix_empty" { // inside a mesh a single label is a name
			t.Errorf("zlint: %s %s %s", result.Status, name, result.Details)
		}
	}
}

func (s kept) openssl(t *testing.T) {
	says(t, "openssl", "x509", "-in", s.leaf, "-noout", "-text")
	out := says(t, "openssl", "verify", "-x509_strict", "-attime", fmt.Sprint(s.at.Unix()), "-no-CAfile", "-no-CApath", "-trusted", s.root, "-untrusted", s.chain, s.leaf)
	if want := s.leaf + ": OK\n"; out != want {
		t.Errorf("openssl verify says %q, want %q", out, want)
	}
}

// certtool has no option for the time, and a test's certificates end soon.
func (s kept) certtool(t *testing.T) {
	says(t, "certtool", "--certificate-info", "--infile", s.leaf)
	out := says(t, "faketime", "-f", s.at.UTC().Format("2006-01-02 15:04:05"), "certtool", "--verify", "--verify-profile", "medium", "--load-ca-certificate", s.root, "--infile", s.chain)
	if !strings.Contains(out, "Chain verification output: Verified. The certificate is trusted.") {
		t.Errorf("certtool says %s", out)
	}
}

// says runs a tool that must succeed and complain of nothing, in UTC.
func says(t *testing.T, name string, args ...string) string {
	t.Helper()
	command := exec.CommandContext(t.Context(), name, args...)
	command.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if complaint := strings.TrimSuffix(stderr.String(), "Loaded CAs (1 available)\n"); err != nil || complaint != "" {
		t.Errorf("%s %s: %v\n%s%s", name, args[0], err, out, complaint)
	}
	return string(out)
}
