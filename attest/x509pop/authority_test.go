package x509pop_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/writ-dev/writ/attest/x509pop"
)

var now = time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)

// keys are made once: RSA keys take long. The CAs' own are of the kind that verifies fastest.
var keys = map[string]func() crypto.Signer{
	"root":     sync.OnceValue(func() crypto.Signer { return made(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }),
	"between":  sync.OnceValue(func() crypto.Signer { return made(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }),
	"RSA-2048": sync.OnceValue(func() crypto.Signer { return made(rsa.GenerateKey(rand.Reader, 2048)) }),
	"RSA-1024": sync.OnceValue(func() crypto.Signer { return made(rsa.GenerateKey(rand.Reader, 1024)) }),
	"P-224":    sync.OnceValue(func() crypto.Signer { return made(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)) }),
	"P-256":    sync.OnceValue(func() crypto.Signer { return made(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }),
	"P-384":    sync.OnceValue(func() crypto.Signer { return made(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)) }),
	"P-521":    sync.OnceValue(func() crypto.Signer { return made(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)) }),
	"Ed25519": sync.OnceValue(func() crypto.Signer {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return made(key, err)
	}),
}

func made[K crypto.Signer](key K, err error) crypto.Signer {
	if err != nil {
		panic(err) // no randomness
	}
	return key
}

// A holder is a certificate with its key and the certificates above it, nearest first.
type holder struct {
	cert  *x509.Certificate
	key   crypto.Signer
	above []*x509.Certificate
}

// issue makes a certificate under a parent, or a root where there is none.
func issue(t testing.TB, parent *holder, key crypto.Signer, change func(*x509.Certificate)) *holder {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: serial, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}
	change(template)
	h := &holder{key: key}
	signer, above := key, template
	if parent != nil {
		signer, above = parent.key, parent.cert
		h.above = append([]*x509.Certificate{parent.cert}, parent.above...)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, above, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	if h.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return h
}

// ca is a CA of that name.
func ca(name string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.Subject, c.IsCA, c.BasicConstraintsValid = pkix.Name{CommonName: name}, true, true
		c.KeyUsage = x509.KeyUsageCertSign
	}
}

// leaf is a node's certificate.
func leaf(c *x509.Certificate) {
	c.Subject, c.KeyUsage = pkix.Name{CommonName: "web-1"}, x509.KeyUsageDigitalSignature
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
}

// both make one change after the other.
func both(one, other func(*x509.Certificate)) func(*x509.Certificate) {
	return func(c *x509.Certificate) { one(c); other(c) }
}

// sent are the certificates that a node sends: all but the root.
func (h *holder) sent() [][]byte {
	out := [][]byte{h.cert.Raw}
	for i := range max(len(h.above)-1, 0) {
		out = append(out, h.above[i].Raw)
	}
	return out
}

// root is the last above.
func (h *holder) root() *x509.Certificate { return h.above[len(h.above)-1] }

func certificates(certs ...[]byte) (out []byte) {
	for _, der := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

// files writes certificate and key as a node has them.
func (h *holder) files(t testing.TB) x509pop.AttestorConfig {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(h.key)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	c := x509pop.AttestorConfig{CertFile: filepath.Join(folder, "node.pem"), KeyFile: filepath.Join(folder, "node.key")}
	write(t, c.CertFile, certificates(h.sent()...))
	write(t, c.KeyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	return c
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// verifier trusts one root.
func verifier(t testing.TB, root *x509.Certificate) *x509pop.Verifier {
	t.Helper()
	v, err := x509pop.NewVerifier(x509pop.VerifierConfig{Roots: certificates(root.Raw)})
	if err != nil {
		t.Fatal(err)
	}
	return v
}
