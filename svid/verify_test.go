package svid_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/svid"
)

// scene is a root, an issuing certificate under it and a leaf under that; a row breaks one thing of it.
type scene struct {
	root, issuing, leaf *x509.Certificate // templates
	now                 time.Time
	bare                bool // the peer sends its leaf alone
	held                bool // the issuing certificate stands in the anchors
	roots               func(root, issuing, leaf *x509.Certificate) []*x509.Certificate
	trustDomain         string
}

func newScene() *scene {
	s := &scene{
		root:    authorityTemplate("root", "spiffe://example.org"),
		issuing: authorityTemplate("issuing", "spiffe://example.org"),
		leaf:    leafTemplate(web),
		now:     noon, trustDomain: "example.org",
		roots: func(root, _, _ *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{root} },
	}
	s.root.MaxPathLen = -1
	s.issuing.MaxPathLenZero = true
	return s
}

func (s *scene) verify(t *testing.T) (spiffeid.ID, error) {
	t.Helper()
	root := sign(t, s.root, nil)
	issuing := sign(t, s.issuing, &root)
	leaf := sign(t, s.leaf, &issuing)
	anchors := svid.Anchors{Roots: s.roots(root.cert, issuing.cert, leaf.cert)}
	if s.trustDomain != "" {
		anchors.TrustDomain = spiffeid.RequireTrustDomainFromString(s.trustDomain)
	}
	sent := []*x509.Certificate{issuing.cert}
	if s.bare {
		sent = nil
	}
	if s.held {
		anchors.Intermediates = []*x509.Certificate{issuing.cert}
	}
	return svid.Verify(leaf.cert, sent, anchors, s.now)
}

func TestVerify(t *testing.T) {
	for _, row := range []struct {
		name  string
		spoil func(s *scene)
		valid bool
	}{
		{"X509-17/root, issuing certificate, leaf", func(*scene) {}, true},
		{"X509-34/bare leaf, issuing certificate held beside the roots", func(s *scene) { s.bare, s.held = true, true }, true},
		{"X509-34/bare leaf, issuing certificate nowhere", func(s *scene) { s.bare = true }, false},
		{"X509-34/before the leaf begins", func(s *scene) { s.now = noon.Add(-90 * time.Minute) }, false},
		{"X509-34/after the leaf ends", func(s *scene) { s.now = noon.Add(90 * time.Minute) }, false},
		{"X509-34/expired issuing certificate", func(s *scene) { s.issuing.NotAfter = noon.Add(-time.Minute) }, false},
		{"X509-34/expired root", func(s *scene) { s.root.NotAfter = noon.Add(-time.Minute) }, false},
		{"X509-35/anchors of another trust domain with the very same root", func(s *scene) { s.trustDomain = "other.org" }, false},
		{"X509-35/anchors of no trust domain", func(s *scene) { s.trustDomain = "" }, false},
		{"ID-32/leaf of another trust domain under our root", func(s *scene) { s.leaf = leafTemplate("spiffe://other.org/web") }, false},
		{"X509-44/no roots, never the system's", func(s *scene) {
			s.roots = func(_, _, _ *x509.Certificate) []*x509.Certificate { return nil }
		}, false},
		{"X509-40/an anchor that is not self-signed", func(s *scene) {
			s.roots = func(_, issuing, _ *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{issuing} }
		}, true},
		{"X509-11/the leaf itself among the roots", func(s *scene) {
			s.roots = func(_, _, leaf *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{leaf} }
		}, false},
		{"X509-06/leaf without a path", func(s *scene) { s.leaf = leafTemplate("spiffe://example.org") }, false},
		{"X509-32/leaf for servers only", func(s *scene) { s.leaf.ExtKeyUsage = s.leaf.ExtKeyUsage[:1] }, false},
		{"X509-18/a CA certificate as peer", func(s *scene) { s.leaf = authorityTemplate("peer", web) }, false},
		{"X509-11/issuing certificate is no CA", func(s *scene) {
			s.issuing.IsCA, s.issuing.MaxPathLenZero = false, false
		}, false},
		{"X509-24/issuing certificate without keyCertSign", func(s *scene) { s.issuing.KeyUsage = x509.KeyUsageCRLSign }, false},
		{"X509-24/root without key usage", func(s *scene) { s.root.KeyUsage = 0 }, false},
		{"X509-15/issuing certificate's ID has a path", func(s *scene) { uris("spiffe://example.org/ca")(s.issuing) }, false},
		{"X509-16/issuing certificate's ID is of another trust domain", func(s *scene) { uris("spiffe://other.org")(s.issuing) }, true},
		{"X509-14/authorities without IDs", func(s *scene) { s.root.ExtraExtensions, s.issuing.ExtraExtensions = nil, nil }, true},
		{"X509-19/root allows no CA below it", func(s *scene) { s.root.MaxPathLen, s.root.MaxPathLenZero = 0, true }, false},
		{"X509-20/URI constraint to another domain", func(s *scene) { s.issuing.PermittedURIDomains = []string{"other.org"} }, false},
		{"X509-20/URI constraint to this domain", func(s *scene) { s.issuing.PermittedURIDomains = []string{"example.org"} }, true},
		{"X509-21/URI constraint to subdomains only", func(s *scene) { s.issuing.PermittedURIDomains = []string{".example.org"} }, false},
		{"X509-33/issuing certificate for server and client", func(s *scene) { s.issuing.ExtKeyUsage = s.leaf.ExtKeyUsage }, true},
		{"X509-33/issuing certificate for code only", func(s *scene) {
			s.issuing.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
		}, false},
		{"X509-46/unknown critical extension on the issuing certificate", func(s *scene) {
			s.issuing.ExtraExtensions = append(s.issuing.ExtraExtensions, unknownExtension(true))
		}, false},
		{"X509-04/DNS names beside the ID", func(s *scene) {
			s.leaf.ExtraExtensions = []pkix.Extension{rawNames(true, uriName(web), dnsName("web.test"))}
		}, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newScene()
			row.spoil(s)
			id, err := s.verify(t)
			if (err == nil) != row.valid {
				t.Fatalf("Verify gives %q, %v; want valid %v", id, err, row.valid)
			}
			if row.valid && id.String() != web {
				t.Errorf("got %q", id)
			}
			if !row.valid && !id.IsZero() {
				t.Errorf("a refused peer gave %q", id)
			}
		})
	}
}

// Two roots of one subject and key id: only the one that really signed counts.
func TestVerifyForgedIssuer(t *testing.T) {
	root := sign(t, authorityTemplate("root", "spiffe://example.org"), nil)
	forger := sign(t, authorityTemplate("root", "spiffe://example.org"), nil)
	leaf := sign(t, leafTemplate(web), &forger)
	anchors := svid.Anchors{TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Roots: []*x509.Certificate{root.cert}}
	if id, err := svid.Verify(leaf.cert, []*x509.Certificate{forger.cert}, anchors, noon); err == nil {
		t.Fatalf("X509-34: %s passes by a root of the same name", id)
	}
	anchors.Roots = append(anchors.Roots, forger.cert)
	if _, err := svid.Verify(leaf.cert, nil, anchors, noon); err != nil {
		t.Errorf("with both roots: %v", err)
	}
}

// R17: Go reads no certificate whose trust domain has an empty label, which is why CheckServable is there.
func TestGoRefusesEmptyLabels(t *testing.T) {
	key := newKey(t)
	for _, id := range []string{"spiffe://a./web", "spiffe://a..b/web"} {
		template := leafTemplate(id)
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := x509.ParseCertificate(der); err == nil {
			t.Errorf("crypto/x509 reads %s now: drop ruling R17 and CheckServable", id)
		}
	}
}
