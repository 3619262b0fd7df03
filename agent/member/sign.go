package member

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/svid"
)

// signTimeout bounds one call for a batch of SVIDs.
const signTimeout = 10 * time.Second

// Want is an SVID that is asked for.
type Want struct {
	Entry string
	ID    spiffeid.ID
}

// Issued is what came of a Want: a chain and its key, or an error.
type Issued struct {
	Chain    [][]byte // DER, leaf first
	Key      []byte   // PKCS#8 DER
	NotAfter time.Time
	Err      error
}

// Issue makes a new key for each Want and asks for all of them in one call. Its error is the call's; a Want's own stands with its
// result. What does not verify under the anchors counts as refused: clients.md rule 5, one bad SVID spoils a client's whole update.
func (r *Server) Issue(ctx context.Context, wants []Want, anchors svid.Anchors, now func() time.Time) ([]Issued, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	request := &nodev1.SignRequest{}
	keys := make([]*ecdsa.PrivateKey, len(wants))
	for i, want := range wants {
		var err error
		if keys[i], err = newKey(); err != nil {
			return nil, err
		}
		// The CSR names nothing: names come from the entry, and only the public key is taken.
		csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, keys[i])
		if err != nil {
			return nil, err
		}
		request.Requests = append(request.Requests, &nodev1.SigningRequest{Entry: want.Entry, SpiffeId: want.ID.String(), Csr: csr})
	}
	answer, err := r.Sign(ctx, request)
	if err != nil {
		return nil, r.Why(err)
	}
	if len(answer.GetResults()) != len(wants) {
		return nil, fmt.Errorf("the server gave %d results for %d requests", len(answer.GetResults()), len(wants))
	}
	out := make([]Issued, len(wants))
	for i, result := range answer.GetResults() {
		if out[i], err = accept(result, wants[i].ID, keys[i], anchors, now()); err != nil {
			out[i] = Issued{Err: err}
		}
	}
	return out, nil
}

func accept(result *nodev1.SigningResult, want spiffeid.ID, key *ecdsa.PrivateKey, anchors svid.Anchors, now time.Time) (Issued, error) {
	if err := refusal(result); err != nil {
		return Issued{}, err
	}
	chain, err := parseChain(result.GetCertificates())
	if err != nil {
		return Issued{}, err
	}
	id, err := svid.Verify(chain[0], chain[1:], anchors, now)
	if err != nil {
		return Issued{}, skewed(err, chain[0], now)
	}
	if id != want {
		return Issued{}, fmt.Errorf("the SVID is for %s", id)
	}
	if !key.PublicKey.Equal(chain[0].PublicKey) {
		return Issued{}, errors.New("the SVID is for another key")
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return Issued{Chain: result.GetCertificates(), Key: der, NotAfter: chain[0].NotAfter}, err
}

// refusal is why the server did not issue what one request asked for, nil where it did.
func refusal(result interface {
	GetStatus() uint32
	GetCode() string
	GetMessage() string
}) error {
	code := codes.Code(result.GetStatus())
	if code == codes.OK {
		return nil
	}
	kind := fault.KindOf(fault.FromStatus(status.Error(code, result.GetMessage())))
	return fault.New(kind, nil, result.GetMessage()).With(fault.Code(result.GetCode()), "")
}

// ParseBundle reads a bundle's certificates; a bundle has at least one root.
func ParseBundle(b *nodev1.Bundle) (svid.Anchors, error) {
	domain, err := svid.ParseTrustDomain(b.GetTrustDomain())
	if err != nil {
		return svid.Anchors{}, err
	}
	roots, err := parseChain(b.GetX509Authorities())
	if err != nil {
		return svid.Anchors{}, err
	}
	issuing, err := parseAll(b.GetIssuingCertificates())
	return svid.Anchors{TrustDomain: domain, Roots: roots, Intermediates: issuing}, err
}
