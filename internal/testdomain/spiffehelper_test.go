//go:build spiffehelper

package testdomain_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/internal/testdomain"
	"github.com/writ-dev/writ/svid"
)

// spiffe-helper, whose program SPIFFE_HELPER names, keeps files and tokens fresh over rotations and a restart of the agent.
func TestSPIFFEHelper(t *testing.T) {
	program := os.Getenv("SPIFFE_HELPER")
	if program == "" {
		t.Fatal("SPIFFE_HELPER names no program: make spiffe-helper PROGRAM=FILE")
	}
	d := testdomain.New(t, testdomain.Built(t), "--entries", os.DevNull)
	d.Apply(t, fmt.Sprintf("path: /helped\nttl: 6s\njwt_ttl: 10s\nwhere: [%q]\nmatch: [\"unix:uid:%d\", \"unix:path:%s\"]\n", onDev, os.Getuid(), program))
	folder := t.TempDir()
	config := filepath.Join(folder, "helper.conf")
	writeFile(t, config, fmt.Sprintf(`agent_address = %q
cert_dir = %q
svid_file_name = "svid.pem"
svid_key_file_name = "key.pem"
svid_bundle_file_name = "bundle.pem"
jwt_svids = [{jwt_audience="orders", jwt_svid_file_name="token"}]
jwt_bundle_file_name = "keys.json"
cmd = "/bin/sh"
cmd_args = "-c \"echo >> %[2]s/told\""
`, strings.TrimPrefix(d.WorkloadAPI, "unix://"), folder))
	testdomain.Start(t, "spiffe-helper", exec.Command(program, "-config", config))

	for round := range 2 {
		before := lines(t, filepath.Join(folder, "told"))
		testdomain.Until(t, 60*time.Second, "three more rotations", func() error {
			if n := lines(t, filepath.Join(folder, "told")); n < before+3 {
				return fmt.Errorf("%d", n-before)
			}
			return nil
		})
		helped := spiffeid.RequireFromString("spiffe://" + d.TrustDomain + "/helped")
		testdomain.Until(t, 20*time.Second, "the files fit and are valid", func() error { return checkHelped(folder, helped) })
		if round == 0 {
			d.Stop(t)
			d.Restart(t)
		}
	}
}

func checkHelped(folder string, id spiffeid.ID) error {
	pair, err := tls.LoadX509KeyPair(filepath.Join(folder, "svid.pem"), filepath.Join(folder, "key.pem"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	pem, err := os.ReadFile(filepath.Join(folder, "bundle.pem"))
	if err != nil {
		return err
	}
	if !roots.AppendCertsFromPEM(pem) {
		return errors.New("bundle.pem has no certificate")
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return err
	}
	between := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(c)
		}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return err
	}
	keys, err := os.ReadFile(filepath.Join(folder, "keys.json"))
	if err != nil {
		return err
	}
	token, err := os.ReadFile(filepath.Join(folder, "token"))
	if err != nil {
		return err
	}
	return checkToken(strings.TrimSpace(string(token)), keys, leaf, id)
}

// checkToken verifies the token by the file of keys, which has those of each trust domain by its ID.
func checkToken(token string, keys []byte, leaf *x509.Certificate, id spiffeid.ID) error {
	if got, err := svid.IDFromCert(leaf); err != nil || got != id {
		return fmt.Errorf("the certificate is of %s, %w", got, err)
	}
	bundles, err := helperKeys(keys)
	if err != nil {
		return err
	}
	j, err := svid.VerifyJWT(token, bundles, []string{"orders"}, time.Now())
	if err == nil && j.ID != id {
		err = fmt.Errorf("the token is of %s", j.ID)
	}
	return err
}

// helperKeys reads the helper's own form: an object of sets in base64 by the names of their trust domains.
func helperKeys(text []byte) (map[spiffeid.TrustDomain]svid.JWTBundle, error) {
	var sets map[string][]byte
	if err := json.Unmarshal(text, &sets); err != nil {
		return nil, err
	}
	out := map[spiffeid.TrustDomain]svid.JWTBundle{}
	for name, set := range sets {
		td, err := svid.ParseTrustDomain(name)
		if err != nil {
			return nil, err
		}
		if out[td], err = svid.ParseJWKS(td, set); err != nil {
			return nil, err
		}
	}
	return out, nil
}
