package x509pop

import (
	"context"
	"crypto"
	"crypto/tls"
	"fmt"
	"os"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/durable"
)

// AttestorConfig says where a node's certificate is.
type AttestorConfig struct {
	CertFile string // PEM: the leaf first, then what leads to the root
	KeyFile  string // PEM, readable by its owner only
}

// Attestor proves possession of a certificate's key. It implements attest.Attestor.
type Attestor struct{ config AttestorConfig }

// NewAttestor gives the attestor for a certificate and its key. The files are read at each attestation, so that a renewed
// certificate is taken up; they are read now too, to say at once what is wrong with them.
func NewAttestor(c AttestorConfig) (*Attestor, error) {
	a := &Attestor{c}
	if _, err := a.load(); err != nil {
		return nil, err
	}
	return a, nil
}

// Method is x509pop.
func (*Attestor) Method() string { return Method }

// Attest gives the chain and the signature of its leaf's key over the binding.
func (a *Attestor) Attest(_ context.Context, b attest.Binding) ([]byte, error) {
	pair, err := a.load()
	if err != nil {
		return nil, err
	}
	signature, err := sign(pair.PrivateKey.(crypto.Signer), b.Bytes())
	if err != nil {
		return nil, fmt.Errorf("sign with %s: %w", a.config.KeyFile, err)
	}
	return payload{pair.Certificate, signature}.encode(), nil
}

// load reads certificate and key, and refuses what no verifier would take.
func (a *Attestor) load() (tls.Certificate, error) {
	cert, err := os.ReadFile(a.config.CertFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read node certificate: %w", err)
	}
	key, err := durable.ReadSecret(a.config.KeyFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read key of node certificate: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("node certificate %s with key %s: %w", a.config.CertFile, a.config.KeyFile, err)
	}
	if len(pair.Certificate) > maxCertificates {
		return tls.Certificate{}, fmt.Errorf("node certificate %s: %d certificates, at most %d are sent", a.config.CertFile,
			len(pair.Certificate), maxCertificates)
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return tls.Certificate{}, fmt.Errorf("key %s cannot sign", a.config.KeyFile)
	}
	if _, _, err := digest(signer.Public(), nil); err != nil {
		return tls.Certificate{}, fmt.Errorf("node certificate %s: %w", a.config.CertFile, err)
	}
	return pair, nil
}
