package workloadapi_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/agent/agenttest"
	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/api/registrationv1"
)

// perfect checks one SVID as the strictest of the clients do: one that is not spoils the whole message.
func perfect(t *testing.T, server *agenttest.Authority, s *workload.X509SVID) {
	t.Helper()
	chain, err := x509.ParseCertificates(s.GetX509Svid()) // WAPI-21: concatenated DER, no padding, no PEM
	if err != nil || len(chain) != 2 {
		t.Fatalf("chain of %d certificates, %v", len(chain), err)
	}
	leaf, issuer := chain[0], chain[1]
	key, err := x509.ParsePKCS8PrivateKey(s.GetX509SvidKey()) // WAPI-22
	if err != nil {
		t.Fatal(err)
	}
	if k, ok := key.(*ecdsa.PrivateKey); !ok || !k.PublicKey.Equal(leaf.PublicKey) { // rule 8: no Ed25519
		t.Errorf("the key is a %T, and not the leaf's", key)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != s.GetSpiffeId() { // WAPI-24
		t.Errorf("the ID is %s, the leaf's are %v", s.GetSpiffeId(), leaf.URIs)
	}
	if !leaf.BasicConstraintsValid || leaf.IsCA { // rule 7
		t.Error("the leaf has no BasicConstraints, or is a CA")
	}
	if leaf.KeyUsage != x509.KeyUsageDigitalSignature { // rule 8
		t.Errorf("key usage is %b", leaf.KeyUsage)
	}
	if want := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}; !cmp.Equal(leaf.ExtKeyUsage, want) { // rule 11
		t.Errorf("extended key usage is %v", leaf.ExtKeyUsage)
	}
	for _, c := range chain[1:] { // X509-36: the root is left out
		if !c.IsCA || bytes.Equal(c.RawIssuer, c.RawSubject) || c.KeyUsage&x509.KeyUsageCertSign == 0 {
			t.Errorf("%s does not belong behind a leaf", c.Subject)
		}
	}
	roots, err := x509.ParseCertificates(s.GetBundle()) // WAPI-23, rule 6
	if err != nil || len(roots) == 0 {
		t.Fatalf("bundle of %d roots, %v", len(roots), err)
	}
	if !roots[0].Equal(server.Root) {
		t.Error("the bundle is not the server's root")
	}
	options := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	options.Roots.AddCert(roots[0])
	options.Intermediates.AddCert(issuer)
	if _, err := leaf.Verify(options); err != nil {
		t.Errorf("the chain does not verify: %v", err)
	}
}

// The rows that it keeps are tests of their own in TestX509Profile.
func TestMessageIsPerfect(t *testing.T) {
	n := newNode(t)
	foreign := agenttest.New(t, "foreign.org")
	n.server.Trust("foreign.org", foreign.Root)
	n.server.Trust("unused.org", foreign.Root)
	a, b := hinted("a", "same"), hinted("b", "same")
	a.Dns = []string{"a.internal"}
	b.FederatesWith = []string{"foreign.org", "unknown.org"}
	n.server.Apply(a, b, hinted("c", "other"))
	n.start()
	conn := agenttest.Dial(t, n.path)
	m := svids(t, conn).next()
	if got := names(m); !cmp.Equal(got, []string{"a", "b", "c"}) {
		t.Fatalf("it holds %v", got)
	}
	seen := map[string]bool{"": true}
	for i, s := range m.GetSvids() {
		perfect(t, n.server, s)
		if hint := s.GetHint(); hint != "" && seen[hint] { // WAPI-28, rule 14
			t.Errorf("the hint %q twice", hint)
		}
		seen[s.GetHint()] = true
		if i > 0 && bytes.Equal(s.GetX509SvidKey(), m.GetSvids()[i-1].GetX509SvidKey()) {
			t.Error("two SVIDs share a key")
		}
	}
	if !seen["same"] || !seen["other"] {
		t.Errorf("hints are %v", seen)
	}
	federated := map[string][]byte{"spiffe://foreign.org": foreign.Root.Raw} // WAPI-25, WAPI-26, rule 12
	if diff := cmp.Diff(federated, m.GetFederatedBundles()); diff != "" {
		t.Errorf("federated bundles: %s", diff)
	}
	if len(m.GetCrl()) != 0 { // WAPI-27, R15
		t.Error("a CRL")
	}
	federated["spiffe://example.org"] = m.GetSvids()[0].GetBundle()
	if diff := cmp.Diff(federated, bundles(t, conn).next().GetBundles()); diff != "" {
		t.Errorf("bundles: %s", diff)
	}
}

// large is a root with an extension of that size.
func large(a *agenttest.Authority, size int) *x509.Certificate {
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "large"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 55555, 1}, Value: make([]byte, size)}}}
	key := a.Identity.PrivateKey.(*ecdsa.PrivateKey)
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return c
}

// A bundle that cannot be read is left out, and so is a key of a kind that clients do not know: either would cost some of them the
// whole message. The rest arrives, and what is mended comes.
func TestCLIENT_05_OneBadElementSpoilsNothing(t *testing.T) {
	n := newNode(t)
	n.server.RotateJWT(true)
	keys := n.server.Bundle().GetBundle().GetJwtAuthorities()
	bad := func(domain string, root, keys []byte) {
		n.server.Change(&nodev1.Change{Kind: &nodev1.Change_Bundle{Bundle: &nodev1.Bundle{TrustDomain: domain, Sequence: 1,
			X509Authorities: [][]byte{root}, JwtAuthorities: keys}}})
	}
	bad("root.org", []byte("no certificate"), keys)
	bad("keys.org", n.server.Root.Raw, []byte(`{"keys":`))
	bad("kind.org", n.server.Root.Raw, bytes.Replace(keys, []byte(`{"keys":[`), []byte(`{"keys":[{"kty":"AKP","alg":"ML-DSA-44","kid":"a","pub":"AA"},`), 1))
	e := entry("web")
	e.FederatesWith = []string{"root.org", "keys.org", "kind.org"}
	n.server.Apply(e)
	n.start()
	conn := agenttest.Dial(t, n.path)
	w, b, j := svids(t, conn), bundles(t, conn), jwtBundles(t, conn)
	m := w.next()
	perfect(t, n.server, m.GetSvids()[0])
	want := map[string][]byte{"spiffe://keys.org": n.server.Root.Raw, "spiffe://kind.org": n.server.Root.Raw}
	if diff := cmp.Diff(want, m.GetFederatedBundles()); diff != "" {
		t.Errorf("federated bundles: %s", diff)
	}
	want["spiffe://example.org"] = n.server.Root.Raw
	if diff := cmp.Diff(want, b.next().GetBundles()); diff != "" {
		t.Errorf("bundles: %s", diff)
	}
	if diff := cmp.Diff(map[string]string{"spiffe://example.org": string(keys), "spiffe://kind.org": string(keys)}, texts(j.next().GetBundles())); diff != "" {
		t.Errorf("bundles of keys: %s", diff)
	}
	n.server.Trust("root.org", n.server.Root)
	if got := w.next().GetFederatedBundles(); !bytes.Equal(got["spiffe://root.org"], n.server.Root.Raw) || len(got) != 3 {
		t.Errorf("once it is mended: %v", got)
	}
}

func texts(bundles map[string][]byte) map[string]string {
	out := map[string]string{}
	for id, b := range bundles {
		out[id] = string(b)
	}
	return out
}

// What is too much for a client is left out, the same each time, and the rest arrives.
func TestCLIENT_15_MessageStaysWithinWhatClientsTake(t *testing.T) {
	t.Run("SVIDs and bundles", func(t *testing.T) {
		n := newNode(t)
		var entries []*registrationv1.Entry
		for i := range 120 {
			entries = append(entries, entry(fmt.Sprintf("e%03d", i)))
		}
		for i := range 230 {
			domain := fmt.Sprintf("d%03d.org", i)
			n.server.Trust(domain, n.server.Root)
			entries[0].FederatesWith = append(entries[0].FederatesWith, domain)
		}
		n.server.Apply(entries...)
		n.start()
		agenttest.Await(t, "all of it", func() bool { return n.agent.Status().SVIDs == len(entries) })
		conn := agenttest.Dial(t, n.path) // which takes 4 MiB
		m := svids(t, conn).next()
		if got := names(m); len(got) != 100 || got[0] != "e000" || got[99] != "e099" {
			t.Errorf("%d SVIDs: %v", len(got), got)
		}
		for _, s := range m.GetSvids() {
			perfect(t, n.server, s)
		}
		if _, got := mustFetchJWT(t, conn, "", "db"); len(got) != 100 || got[0] != "e000" || got[99] != "e099" {
			t.Errorf("%d JWT-SVIDs: %v", len(got), got)
		}
		all := bundles(t, conn).next().GetBundles()
		if len(all) != 200 || len(m.GetFederatedBundles()) != 199 || all["spiffe://example.org"] == nil || all["spiffe://d198.org"] == nil {
			t.Errorf("%d bundles, %d federated", len(all), len(m.GetFederatedBundles()))
		}
	})
	t.Run("JWT-SVIDs and bundles of keys", func(t *testing.T) {
		n := newNode(t)
		keys := n.server.Bundle().GetBundle().GetJwtAuthorities()
		var entries []*registrationv1.Entry
		for i := range 120 {
			entries = append(entries, entry(fmt.Sprintf("e%03d", i)))
		}
		var foreign []*nodev1.Change
		for i := range 230 {
			domain := fmt.Sprintf("d%03d.org", i)
			entries[0].FederatesWith = append(entries[0].FederatesWith, domain)
			foreign = append(foreign, &nodev1.Change{Kind: &nodev1.Change_Bundle{Bundle: &nodev1.Bundle{TrustDomain: domain, Sequence: 1,
				X509Authorities: [][]byte{n.server.Root.Raw}, JwtAuthorities: keys}}})
		}
		n.server.Change(foreign...)
		n.server.Apply(entries...)
		conn := served(t, n)
		if _, got := mustFetchJWT(t, conn, "", "db"); len(got) != 100 || got[0] != "e000" || got[99] != "e099" {
			t.Errorf("%d JWT-SVIDs: %v", len(got), got)
		}
		all := jwtBundles(t, conn).next().GetBundles()
		if len(all) != 200 || all["spiffe://example.org"] == nil || all["spiffe://d198.org"] == nil {
			t.Errorf("%d bundles of keys", len(all))
		}
	})
	t.Run("bytes", func(t *testing.T) {
		n := started(t)
		<-n.agent.Synced() // a snapshot of all of it is more than one message of the test's authority holds
		e := entry("web")
		for _, domain := range []string{"a.org", "b.org", "c.org"} {
			n.server.Trust(domain, large(n.server, 1800<<10))
			e.FederatesWith = append(e.FederatesWith, domain)
		}
		n.server.Trust("small.org", n.server.Root)
		e.FederatesWith = append(e.FederatesWith, "small.org")
		n.server.Apply(e)
		agenttest.Await(t, "the SVID", func() bool { return n.agent.Status().SVIDs == 1 })
		conn := agenttest.Dial(t, n.path)
		m, all := svids(t, conn).next(), bundles(t, conn).next()
		perfect(t, n.server, m.GetSvids()[0])
		for _, domain := range []string{"a.org", "b.org", "small.org"} {
			if all.GetBundles()["spiffe://"+domain] == nil || m.GetFederatedBundles()["spiffe://"+domain] == nil {
				t.Errorf("%s is not there", domain)
			}
		}
		if a, b := proto.Size(m), proto.Size(all); a > 4<<20 || b > 4<<20 {
			t.Errorf("messages of %d and %d bytes", a, b)
		}
	})
}
