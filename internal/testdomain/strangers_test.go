package testdomain_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"

	"github.com/writ-dev/writ/internal/testdomain"
)

// TestStrangersDoNotPassEnvoy: what does not verify ends in the handshake; who verifies and is nobody that the policy knows is denied
// under its own name, whatever its headers say.
func TestStrangersDoNotPassEnvoy(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.up(t, "1h")
	m.Apply(t, fmt.Sprintf("name: other\npath: /other\nwhere: [%q]\nmatch: [\"unix:uid:%d\"]\n", onDev, os.Getuid()))
	conn := socketConn(t, m.Node().Agent)
	untilHeld(t, conn, 10*time.Second, "spiffe://dev.writ/other")
	other := heldCertificate(t, watchSVIDs(t, conn))
	elsewhere := testdomain.New(t, m.Binary)
	conn = socketConn(t, elsewhere.Node().Agent)
	elsewhere.Apply(t, fmt.Sprintf("name: you\npath: /web\nwhere: [%q]\nmatch: [\"unix:uid:%d\"]\n", onDev, os.Getuid()))
	untilHeld(t, conn, 10*time.Second, m.web.ID)

	for _, row := range []struct {
		name        string
		certificate *tls.Certificate
	}{
		{"no certificate", nil},
		{"a certificate that says it is web and that nobody signed", selfSigned(t, m.web.ID)},
		{"web's name, from another authority of the same trust domain's name", heldCertificate(t, watchSVIDs(t, conn))},
		{"a leaf as its own issuer", reissued(t, other, m.web.ID)},
	} {
		t.Run(row.name, func(t *testing.T) {
			asked := m.api.Asked()
			if response, err := callInbound(t, m.api, row.certificate); err == nil {
				t.Errorf("it was answered %s", response.Status)
			}
			if n := m.api.Asked() - asked; n != 0 {
				t.Errorf("%d calls reached api", n)
			}
		})
	}
	t.Run("an identity that no rule knows, with headers that say it is web", func(t *testing.T) {
		asked := m.api.Asked()
		response, err := callInbound(t, m.api, other)
		if err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != http.StatusForbidden || m.api.Asked() != asked {
			t.Errorf("it was answered %s, and %d calls reached api", response.Status, m.api.Asked()-asked)
		}
		d := testdomain.FindDecision(t, m.Decisions, response.Header.Get("X-Writ-Decision-Id"))
		if d.Allow || d.Source != "spiffe://dev.writ/other" {
			t.Errorf("decision %+v, want a denial of spiffe://dev.writ/other", d)
		}
	})
}

// callInbound speaks to a side's inbound listener as a program without an Envoy of its own would.
func callInbound(t *testing.T, s *testdomain.Side, certificate *tls.Certificate) (*http.Response, error) {
	t.Helper()
	config := &tls.Config{InsecureSkipVerify: true} // who is asked is not in question
	if certificate != nil {
		config.Certificates = []tls.Certificate{*certificate}
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	request, err := http.NewRequest(http.MethodGet, fmt.Sprintf("https://127.0.0.1:%d/orders", s.Inbound), nil)
	if err != nil {
		t.Fatal(err)
	}
	web := "spiffe://dev.writ/web"
	request.Header = http.Header{"X-Forwarded-Client-Cert": {"URI=" + web}, "X-Spiffe-Id": {web}, "X-Seen-Source": {web}}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	return response, response.Body.Close()
}

// heldCertificate is the default SVID of this process.
func heldCertificate(t *testing.T, stream workload.SpiffeWorkloadAPI_FetchX509SVIDClient) *tls.Certificate {
	t.Helper()
	answer, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := x509.ParseCertificates(answer.Svids[0].X509Svid)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(answer.Svids[0].X509SvidKey)
	if err != nil {
		t.Fatal(err)
	}
	c := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, link := range chain {
		c.Certificate = append(c.Certificate, link.Raw)
	}
	return c
}

// leafFor is an SVID for an ID but for who signs it.
func leafFor(t *testing.T, id string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	return &x509.Certificate{SerialNumber: big.NewInt(7), URIs: []*url.URL{uri}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true}, key
}

func selfSigned(t *testing.T, id string) *tls.Certificate {
	t.Helper()
	leaf, key := leafFor(t, id)
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// reissued is signed by a workload with its own SVID, which is no authority.
func reissued(t *testing.T, by *tls.Certificate, id string) *tls.Certificate {
	t.Helper()
	leaf, key := leafFor(t, id)
	der, err := x509.CreateCertificate(rand.Reader, leaf, by.Leaf, key.Public(), by.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: append([][]byte{der}, by.Certificate...), PrivateKey: key}
}
