package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// runIssuer runs a server with an oidc section until the test ends, and gives its issuer and its root.
func runIssuer(t *testing.T, c oidcConfig) (issuer string, root *x509.Certificate) {
	t.Helper()
	folder, err := os.MkdirTemp("", "writ") // the test's own may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	l, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	c.Listen = l.Addr().String()
	c.Issuer = fmt.Sprintf("https://localhost:%d", l.Addr().(*net.TCPAddr).Port)
	l.Close()
	config := serverConfig{TrustDomain: "example.org", Name: "a", DataDir: filepath.Join(folder, "data"), Listen: "127.0.0.1:0",
		AdminSocket: filepath.Join(folder, "admin.sock"), Metrics: "127.0.0.1:0", OIDC: c}.withDefaults()
	if err := config.problems().err(""); err != nil {
		t.Fatal(err)
	}
	d, err := newServerDaemon(t.Context(), config, slog.New(slog.DiscardHandler), newMetrics())
	if err != nil {
		t.Fatal(err)
	}
	root = d.authority.Bundle().Roots[0]
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- d.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c.Issuer, root
}

// keysFrom asks for the keys over a new connection, trusting one root.
func keysFrom(issuer string, root *x509.Certificate) (string, error) {
	roots := x509.NewCertPool()
	roots.AddCert(root)
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots}}}
	answer, err := client.Get(issuer + "/keys")
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	return string(text), err
}

func TestOIDCUnderTheServersOwnCertificate(t *testing.T) {
	issuer, root := runIssuer(t, oidcConfig{})
	if text, err := keysFrom(issuer, root); err != nil || !strings.HasPrefix(text, `{"keys":[{"use":"sig","kty":"EC","kid":"`) {
		t.Errorf("answered %q, %v", text, err)
	}
}

// A cloud asks once in five minutes; whoever holds hundreds of connections must not keep it out.
func TestOIDCAnswersBesideIdleConnections(t *testing.T) {
	issuer, root := runIssuer(t, oidcConfig{})
	for range 600 {
		conn, err := net.Dial("tcp", strings.TrimPrefix(issuer, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	begun := time.Now()
	if _, err := keysFrom(issuer, root); err != nil || time.Since(begun) > 5*time.Second { // idle ones are ended after ten
		t.Errorf("answered after %s: %v", time.Since(begun), err)
	}
}

// publicCertificate writes a self-signed certificate for localhost as a public CA's client would, and gives it.
func publicCertificate(t *testing.T, c oidcConfig, serial int64) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: fmt.Sprint(serial)}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{c.Cert: {Type: "CERTIFICATE", Bytes: der}, c.Key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// A certificate that is renewed in place is served without a restart.
func TestOIDCTakesUpARenewedCertificate(t *testing.T) {
	folder := t.TempDir()
	files := oidcConfig{Cert: filepath.Join(folder, "oidc.pem"), Key: filepath.Join(folder, "oidc.key")}
	first := publicCertificate(t, files, 1)
	issuer, root := runIssuer(t, files)
	if _, err := keysFrom(issuer, first); err != nil {
		t.Fatal(err)
	}
	if _, err := keysFrom(issuer, root); err == nil {
		t.Error("the server's own certificate is served")
	}
	eventuallyServed(t, issuer, publicCertificate(t, files, 2))
}

func TestOIDCKeepsItsCertificateWhileTheFilesAreBroken(t *testing.T) {
	folder := t.TempDir()
	c := oidcConfig{Cert: filepath.Join(folder, "oidc.pem"), Key: filepath.Join(folder, "oidc.key")}
	first := publicCertificate(t, c, 1)
	f := &certificateFiles{cert: c.Cert, key: c.Key, log: slog.New(slog.DiscardHandler)}
	if err := f.load(); err != nil {
		t.Fatal(err)
	}
	served := func() *big.Int {
		f.looked = time.Time{} // a second has passed
		pair, err := f.get(nil)
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf.SerialNumber
	}
	if err := os.WriteFile(c.Cert, []byte("half of a"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := served(); got.Cmp(first.SerialNumber) != 0 {
		t.Errorf("a broken file is served as %s", got)
	}
	if got := f.health(); !strings.Contains(got, "cannot be read") || !strings.Contains(got, c.Cert) {
		t.Errorf("health says %s", got)
	}
	if err := os.Remove(c.Key); err != nil {
		t.Fatal(err)
	}
	if got := served(); got.Cmp(first.SerialNumber) != 0 {
		t.Errorf("without a key %s is served", got)
	}
	if second := publicCertificate(t, c, 2); served().Cmp(second.SerialNumber) != 0 {
		t.Error("the new certificate is not taken up")
	}
	third := publicCertificate(t, c, 3)
	if err := os.Chmod(c.Key, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := served(); got.Cmp(third.SerialNumber) == 0 {
		t.Error("a key that others may read is served")
	}
	if err := os.Chmod(c.Key, 0o600); err != nil {
		t.Fatal(err)
	}
	if served().Cmp(third.SerialNumber) != 0 {
		t.Error("the new certificate is not taken up once its key is closed to others")
	}
	if got := f.health(); got != "ok" {
		t.Errorf("health says %s", got)
	}
	f.loaded.Leaf.NotAfter = time.Now().Add(-time.Minute)
	if got := f.health(); !strings.Contains(got, "ended at") {
		t.Errorf("nobody renews the certificate, and health says %s", got)
	}
}

func eventuallyServed(t *testing.T, issuer string, root *x509.Certificate) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, err := keysFrom(issuer, root)
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("certificate %s is not served: %v", root.SerialNumber, err)
		}
	}
}

func TestOIDCRefusesAKeyThatOthersMayRead(t *testing.T) {
	folder := t.TempDir()
	c := oidcConfig{Cert: filepath.Join(folder, "oidc.pem"), Key: filepath.Join(folder, "oidc.key")}
	publicCertificate(t, c, 1)
	if err := os.Chmod(c.Key, 0o644); err != nil {
		t.Fatal(err)
	}
	f := &certificateFiles{cert: c.Cert, key: c.Key, log: slog.New(slog.DiscardHandler)}
	if err := f.load(); err == nil {
		t.Error("it is taken")
	}
}
