package ca_test

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/ca"
	"github.com/writ-dev/writ/svid"
)

// extensionOf gives an extension as it stands in the certificate.
func extensionOf(c *x509.Certificate, oid ...int) (value []byte, critical, there bool) {
	for _, e := range c.Extensions {
		if e.Id.Equal(asn1.ObjectIdentifier(oid)) {
			return e.Value, e.Critical, true
		}
	}
	return nil, false, false
}

// What stands in every leaf that we issue; openssl_test.go and differential_test.go say that it is encoded well.
func TestLeafThatIsIssued(t *testing.T) {
	a := start(t, config())
	r := request(t)
	r.DNS = []string{"orders.internal"}
	leaf, issuing := issue(t, a, ca.WorkloadSVID(), r), a.Bundle().Issuing[0]
	for name, holds := range map[string]func() bool{
		"X509-01/one URI name, the ID":             func() bool { return len(leaf.URIs) == 1 && leaf.URIs[0].String() == r.ID.String() },
		"X509-04/DNS names of the entry beside it": func() bool { return cmp.Equal(leaf.DNSNames, r.DNS) },
		"X509-07/names critical, subject empty": func() bool {
			_, critical, _ := extensionOf(leaf, 2, 5, 29, 17)
			return critical && len(leaf.Subject.Names) == 0
		},
		"X509-12, CLIENT-07/basic constraints that say no CA": func() bool {
			value, _, there := extensionOf(leaf, 2, 5, 29, 19)
			return there && bytes.Equal(value, []byte{0x30, 0x00}) && !leaf.IsCA
		},
		"X509-22, X509-23/key usage is there and critical": func() bool {
			_, critical, there := extensionOf(leaf, 2, 5, 29, 15)
			return there && critical
		},
		"X509-26, X509-27, X509-28, CLIENT-08/digitalSignature and nothing else": func() bool { return leaf.KeyUsage == x509.KeyUsageDigitalSignature },
		"X509-31, X509-32, CLIENT-11/for server and client, not critical": func() bool {
			_, critical, there := extensionOf(leaf, 2, 5, 29, 37)
			return there && !critical && cmp.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}) &&
				len(leaf.UnknownExtKeyUsage) == 0
		},
		"X509-45/version 3, an issuer with a name, key ids that chain": func() bool {
			return leaf.Version == 3 && len(leaf.Issuer.Names) > 0 && len(leaf.SubjectKeyId) > 0 && bytes.Equal(leaf.AuthorityKeyId, issuing.SubjectKeyId)
		},
		"X509-47/within its issuer's life, begun before now": func() bool {
			return !leaf.NotAfter.After(issuing.NotAfter) && leaf.NotBefore.Before(time.Now())
		},
		"X509-49/P-256 signs it": func() bool {
			return issuing.SignatureAlgorithm == x509.ECDSAWithSHA256 && leaf.SignatureAlgorithm == x509.ECDSAWithSHA256
		},
	} {
		t.Run(name, func(t *testing.T) {
			if !holds() {
				t.Errorf("the leaf is\n%s", describe(leaf, a.Bundle()))
			}
		})
	}
}

func TestAuthoritiesThatAreMade(t *testing.T) {
	b := start(t, config()).Bundle()
	for tier, c := range map[string]*x509.Certificate{"root": b.Roots[0], "issuing": b.Issuing[0]} {
		usage, usageCritical, _ := extensionOf(c, 2, 5, 29, 15)
		_, _, constrained := extensionOf(c, 2, 5, 29, 30)
		for name, holds := range map[string]bool{
			"ID-30, ID-31, X509-14, X509-15, X509-16/the trust domain's ID, alone": len(c.URIs) == 1 && c.URIs[0].String() == "spiffe://example.org",
			"X509-10, X509-11/a CA":                                          c.BasicConstraintsValid && c.IsCA,
			"X509-20, CLIENT-09/no name constraints":                         !constrained,
			"X509-23, X509-24, X509-25, X509-30/keyCertSign alone, critical": usageCritical && bytes.Equal(usage, []byte{3, 2, 2, 4}),
			"X509-33/no extended key usage":                                  len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0,
			"X509-45/a subject, and key ids": len(c.Subject.Names) > 0 && len(c.SubjectKeyId) > 0 &&
				bytes.Equal(c.AuthorityKeyId, b.Roots[0].SubjectKeyId) && c.Version == 3 && c.SerialNumber.Sign() > 0,
		} {
			t.Run(name+"/"+tier, func(t *testing.T) {
				if !holds {
					t.Errorf("the certificate is\n%s", describe(c, b))
				}
			})
		}
	}
	if !bytes.Equal(b.Roots[0].RawIssuer, b.Roots[0].RawSubject) || b.Roots[0].CheckSignatureFrom(b.Roots[0]) != nil {
		t.Error("X509-40: the root is not self-signed")
	}
	if b.Issuing[0].MaxPathLen != 0 || !b.Issuing[0].MaxPathLenZero {
		t.Error("X509-19: the issuing certificate may sign further ones")
	}
}

// Names that are no DNS names, or addresses, are as good as others, and so is the longest.
func TestOddTrustDomains(t *testing.T) {
	for name, text := range map[string]string{"ID-08: an address": "127.0.0.1", "ID-08: a dash first": "-a", "ID-08: an underscore": "a_b.test",
		"ID-08: a label of 64 bytes": strings.Repeat("a", 64) + ".test", "ID-19: 255 bytes": strings.Repeat("abc.", 63) + "org"} {
		t.Run(name, func(t *testing.T) {
			td := must(svid.ParseTrustDomain(text))(t)
			c := config()
			c.TrustDomain = td
			a := start(t, c)
			r := request(t)
			r.ID = spiffeid.RequireFromPath(td, "/orders")
			leaf, b := issue(t, a, ca.WorkloadSVID(), r), a.Bundle()
			anchors := svid.Anchors{TrustDomain: td, Roots: b.Roots}
			if got, err := svid.Verify(leaf, b.Issuing, anchors, time.Now()); err != nil || got != r.ID {
				t.Errorf("%s: %v", got, err)
			}
		})
	}
}

// A letter of the ID, or a bit of the key, and the signature is another's.
func TestID_33_WhatIsCertifiedIsSigned(t *testing.T) {
	a := start(t, config())
	r := request(t)
	leaf, b := issue(t, a, ca.WorkloadSVID(), r), a.Bundle()
	anchors := svid.Anchors{TrustDomain: domain, Roots: b.Roots, Intermediates: b.Issuing}
	if _, err := svid.Verify(leaf, nil, anchors, time.Now()); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]struct{ from, to []byte }{
		"the ID":  {[]byte("example.org/orders"), []byte("example.org/admins")},
		"the key": {leaf.RawSubjectPublicKeyInfo, must(x509.MarshalPKIXPublicKey(request(t).Key))(t)},
	} {
		t.Run(name, func(t *testing.T) {
			der := bytes.Replace(leaf.Raw, change.from, change.to, 1)
			forged := must(x509.ParseCertificate(der))(t)
			if id, err := svid.Verify(forged, nil, anchors, time.Now()); err == nil || bytes.Equal(der, leaf.Raw) {
				t.Errorf("%s was changed, and it stands for %s", name, id)
			}
		})
	}
}
