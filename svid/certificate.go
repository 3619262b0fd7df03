package svid

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// IDFromCert reads the SPIFFE ID from the raw bytes of the subject alternative names, because net/url, through which crypto/x509
// hands it out, lowers the scheme and drops an empty fragment. X509-SVID section 2: exactly one URI name, whatever the others.
func IDFromCert(c *x509.Certificate) (spiffeid.ID, error) {
	if c == nil {
		return spiffeid.ID{}, errors.New("no certificate")
	}
	uris, err := uriNames(c)
	if err != nil {
		return spiffeid.ID{}, err
	}
	if len(uris) != 1 {
		return spiffeid.ID{}, fmt.Errorf("certificate has %d URI names, not one", len(uris))
	}
	return ParseID(uris[0])
}

// CheckLeaf says whether a certificate may stand for a workload, and for which; nothing about who signed it. Each line is a MUST
// of X509-SVID.
func CheckLeaf(c *x509.Certificate) (spiffeid.ID, error) {
	id, err := IDFromCert(c)
	if err != nil {
		return spiffeid.ID{}, err
	}
	usage, usageCritical := extension(c, oidKeyUsage)
	_, namesCritical := extension(c, oidSubjectAltName)
	switch {
	case id.Path() == "": // sections 3.1 and 5.2
		err = errors.New("its SPIFFE ID has no path")
	case c.IsCA: // section 5.2
		err = errors.New("it is a CA certificate")
	case !usage: // section 4.3
		err = errors.New("it has no key usage")
	case !usageCritical: // section 4.3
		err = errors.New("its key usage is not critical")
	case c.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0: // sections 4.3 and 5.2
		err = errors.New("its key may sign certificates or CRLs")
	case c.KeyUsage&x509.KeyUsageDigitalSignature == 0: // section 4.3
		err = errors.New("its key usage lacks digitalSignature")
	case !bothUsages(c): // section 4.4
		err = errors.New("its extended key usage lacks serverAuth or clientAuth")
	case emptyName(c.RawSubject) && !namesCritical: // section 3.1
		err = errors.New("its subject is empty and its alternative names are not critical")
	case len(c.UnhandledCriticalExtensions) > 0: // RFC 5280 section 4.2
		err = fmt.Errorf("its critical extension %s is unknown", c.UnhandledCriticalExtensions[0])
	}
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("certificate of %s is no leaf SVID: %w", quote(id.String()), err)
	}
	return id, nil
}

// CheckAuthority says whether a certificate may sign SVIDs. It need not be an SVID itself (ruling R7); where it has a SPIFFE ID,
// that has no path.
func CheckAuthority(c *x509.Certificate) error {
	if c == nil {
		return errors.New("no certificate")
	}
	if !c.BasicConstraintsValid || !c.IsCA { // X509-SVID section 4.1
		return errors.New("certificate is not a CA's")
	}
	if c.KeyUsage&x509.KeyUsageCertSign == 0 { // section 4.3
		return errors.New("CA certificate lacks keyCertSign")
	}
	uris, err := uriNames(c)
	if err != nil || len(uris) == 0 {
		return err
	}
	id, err := IDFromCert(c)
	if err != nil {
		return fmt.Errorf("CA certificate: %w", err)
	}
	if id.Path() != "" { // section 3.2
		return fmt.Errorf("CA certificate has the SPIFFE ID %s, which has a path", quote(id.String()))
	}
	return nil
}

var (
	oidKeyUsage       = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
)

func extension(c *x509.Certificate, oid asn1.ObjectIdentifier) (there, critical bool) {
	for _, e := range c.Extensions {
		if e.Id.Equal(oid) {
			return true, e.Critical
		}
	}
	return false, false
}

// uriNames gives the URI names as they stand in the certificate.
func uriNames(c *x509.Certificate) ([]string, error) {
	var uris []string
	for _, e := range c.Extensions {
		if !e.Id.Equal(oidSubjectAltName) {
			continue
		}
		der, names := cryptobyte.String(e.Value), cryptobyte.String(nil)
		if !der.ReadASN1(&names, casn1.SEQUENCE) || !der.Empty() {
			return nil, errors.New("certificate's alternative names cannot be read")
		}
		for !names.Empty() {
			var name cryptobyte.String
			var tag casn1.Tag
			if !names.ReadAnyASN1(&name, &tag) {
				return nil, errors.New("certificate's alternative names cannot be read")
			}
			if tag == casn1.Tag(6).ContextSpecific() { // uniformResourceIdentifier, RFC 5280 section 4.2.1.6
				uris = append(uris, string(name))
			}
		}
	}
	return uris, nil
}

// bothUsages holds for a certificate without extended key usage too.
func bothUsages(c *x509.Certificate) bool {
	if len(c.ExtKeyUsage) == 0 && len(c.UnknownExtKeyUsage) == 0 {
		return true
	}
	return slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
}

func emptyName(raw []byte) bool { return len(raw) == 2 } // an empty SEQUENCE
