package svid

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Anchors are what the SVIDs of one trust domain chain to. Intermediates are believed no more than a peer's own: they are there
// for peers that send a bare leaf.
type Anchors struct {
	TrustDomain   spiffeid.TrustDomain
	Roots         []*x509.Certificate
	Intermediates []*x509.Certificate
}

// Verify says for which SPIFFE ID a peer's leaf stands at that time: it passes CheckLeaf, its ID lies in the anchors' trust
// domain, and it chains to one of their roots by RFC 5280 through authorities that pass CheckAuthority. SPIFFE-ID section 3: who
// has several trust domains picks the anchors by the ID's (IDFromCert), never from a pool of all.
func Verify(leaf *x509.Certificate, intermediates []*x509.Certificate, a Anchors, now time.Time) (spiffeid.ID, error) {
	id, err := CheckLeaf(leaf)
	if err != nil {
		return spiffeid.ID{}, err
	}
	if a.TrustDomain.IsZero() || !id.MemberOf(a.TrustDomain) {
		return spiffeid.ID{}, fmt.Errorf("verify %s: it is not of trust domain %q", quote(id.String()), a.TrustDomain.Name())
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots:         pool(a.Roots), // never nil: nil would mean the system's
		Intermediates: pool(intermediates, a.Intermediates),
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, // the leaf's was checked by CheckLeaf, an authority's by checkSigners
	})
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("verify %s: %w", quote(id.String()), err)
	}
	for _, chain := range chains {
		if err = checkSigners(chain[1:]); err == nil {
			return id, nil
		}
	}
	return spiffeid.ID{}, fmt.Errorf("verify %s: %w", quote(id.String()), err)
}

// checkSigners refuses an empty list too: a leaf that stands among the roots vouches for nobody, itself included.
func checkSigners(signers []*x509.Certificate) error {
	if len(signers) == 0 {
		return errors.New("no authority signed it")
	}
	for _, c := range signers {
		if err := CheckAuthority(c); err != nil {
			return err
		}
		if !forTLS(c) {
			return errors.New("CA certificate's extended key usage excludes TLS")
		}
	}
	return nil
}

// forTLS takes an authority's extended key usage as a limit only where it leaves neither server nor client.
func forTLS(c *x509.Certificate) bool {
	if len(c.ExtKeyUsage) == 0 && len(c.UnknownExtKeyUsage) == 0 {
		return true
	}
	return slices.ContainsFunc(c.ExtKeyUsage, func(u x509.ExtKeyUsage) bool {
		return u == x509.ExtKeyUsageAny || u == x509.ExtKeyUsageServerAuth || u == x509.ExtKeyUsageClientAuth
	})
}

func pool(lists ...[]*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, list := range lists {
		for _, c := range list {
			if c != nil {
				p.AddCert(c)
			}
		}
	}
	return p
}
