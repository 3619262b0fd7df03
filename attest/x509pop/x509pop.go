// Package x509pop lets a node join with a certificate that it already has: it signs the binding with the certificate's key.
// Start with Verifier.Verify, which says what is asked of certificate and key.
package x509pop

import (
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
)

// Method is the method's name.
const Method = "x509pop"

// VerifierConfig says which certificates may join.
type VerifierConfig struct {
	Roots []byte // PEM: the CAs whose nodes may join
}

// Verifier judges a node that joins by certificate. It implements attest.Verifier.
type Verifier struct{ roots *x509.CertPool }

// NewVerifier gives a verifier for certificates under these roots. Each must be a CA, so that a leaf is never its own authority.
func NewVerifier(c VerifierConfig) (*Verifier, error) {
	v := &Verifier{x509.NewCertPool()}
	count := 0
	for rest := c.Roots; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		count++
		root, err := parseRoot(block)
		if err != nil {
			return nil, fmt.Errorf("x509pop root %d: %w", count, err)
		}
		v.roots.AddCert(root)
	}
	if count == 0 {
		return nil, errors.New("x509pop roots hold no certificate")
	}
	return v, nil
}

func parseRoot(block *pem.Block) (*x509.Certificate, error) {
	if block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("is a %s, not a certificate", block.Type)
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	if !root.BasicConstraintsValid || !root.IsCA {
		return nil, fmt.Errorf("%s is not a CA", root.Subject)
	}
	return root, nil
}

// Method is x509pop.
func (*Verifier) Method() string { return Method }

// Verify takes a signature over the binding by the key of a certificate that is no CA, leads to a root, is valid now with all
// above it, and serves for client authentication or says nothing of what it serves for. RSA keys have 2048 bits or more, RSA-PSS
// with SHA-256; curves are P-256, P-384 and Ed25519.
func (v *Verifier) Verify(_ context.Context, c attest.Claim) (attest.Result, error) {
	p, err := decode(c.Payload)
	if err != nil {
		return attest.Result{}, refuse(err)
	}
	certs, err := parse(p.chain)
	if err != nil {
		return attest.Result{}, refuse(err)
	}
	leaf := certs[0]
	chains, err := v.chains(certs, c)
	if err != nil {
		return attest.Result{}, refuse(err)
	}
	if err := verify(leaf.PublicKey, c.Binding.Bytes(), p.signature); err != nil {
		return attest.Result{}, refuse(err)
	}
	key, err := x509.MarshalPKIXPublicKey(leaf.PublicKey) // one encoding of one key, whatever the certificate's
	if err != nil {
		return attest.Result{}, refuse(err)
	}
	sum := sha256.Sum256(key)
	return attest.Result{
		Key:          hex.EncodeToString(sum[:]),
		Selectors:    selectors(leaf, chains),
		Assurance:    attest.KeyFile,
		Reattestable: true,
		EvidenceKey:  key,
		Digest:       sha256.Sum256(c.Payload),
		Until:        leaf.NotAfter,
	}, nil
}

// parse reads the certificates, and refuses keys whose mere use would cost too much or prove too little.
func parse(chain [][]byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, der := range chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("parse certificate: %w", err)
		}
		if key, ok := cert.PublicKey.(*rsa.PublicKey); ok {
			if bits := key.N.BitLen(); bits < 2048 || bits > maxRSA {
				return nil, fmt.Errorf("an RSA key in the chain has %d bits", bits)
			}
		}
		out = append(out, cert)
	}
	return out, nil
}

func (v *Verifier) chains(certs []*x509.Certificate, c attest.Claim) ([][]*x509.Certificate, error) {
	leaf := certs[0]
	if leaf.IsCA {
		return nil, errors.New("certificate is a CA's")
	}
	// RFC 5280 section 4.2.1.3: a key whose usage is stated without digitalSignature signs nothing of this kind.
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return nil, errors.New("certificate's key usage has no digitalSignature")
	}
	between := x509.NewCertPool()
	for _, cert := range certs[1:] {
		between.AddCert(cert)
	}
	return leaf.Verify(x509.VerifyOptions{
		Roots: v.roots, Intermediates: between, CurrentTime: c.Now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// selectors are subject:CN, san:URI for each, serial:HEX, and ca:FINGERPRINT for each CA on any way from the certificate to a root.
func selectors(leaf *x509.Certificate, chains [][]*x509.Certificate) []attest.KeyValue {
	out := []attest.KeyValue{{Key: "serial", Value: leaf.SerialNumber.Text(16)}}
	if cn := commonName(leaf); readable(cn) {
		out = append(out, attest.KeyValue{Key: "subject", Value: cn})
	}
	for _, uri := range leaf.URIs {
		if s := uri.String(); readable(s) {
			out = append(out, attest.KeyValue{Key: "san", Value: s})
		}
	}
	seen := map[[sha256.Size]byte]bool{}
	for _, chain := range chains {
		for _, ca := range chain[1:] {
			sum := sha256.Sum256(ca.Raw)
			if !seen[sum] {
				seen[sum] = true
				out = append(out, attest.KeyValue{Key: "ca", Value: hex.EncodeToString(sum[:])})
			}
		}
	}
	return out
}

// commonName is the subject's, where there is exactly one: of two, readers would take either.
func commonName(c *x509.Certificate) string {
	name, count := "", 0
	for _, part := range c.Subject.Names {
		if part.Type.Equal(asn1.ObjectIdentifier{2, 5, 4, 3}) {
			name, _ = part.Value.(string)
			count++
		}
	}
	if count != 1 {
		return ""
	}
	return name
}

// readable says whether a value can be a selector's.
func readable(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f || r == '\uFFFD' })
}

// refuse says the same to the caller whatever was wrong. Why is for the log.
func refuse(why error) error {
	return fault.New(fault.Unauthenticated, why, "node certificate does not prove who asks").With(fault.BadEvidence, "")
}
