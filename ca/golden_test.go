package ca_test

import (
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/ca"
)

var update = flag.Bool("update", false, "write testdata anew")

// TestProfileGolden shows every change of what certificates look like in a diff of testdata. X509-01, -07, -12, -14, -15, -18,
// -19, -22 to -28, -30 to -32, -45.
func TestProfileGolden(t *testing.T) {
	now := time.Date(2026, 11, 3, 12, 0, 0, 0, time.UTC)
	c := config()
	c.Now = func() time.Time { return now }
	a := start(t, c)
	p256 := newKey(t, elliptic.P256()).Public()
	b := a.Bundle()
	rows := map[string]*x509.Certificate{
		"root":     b.Roots[0],
		"issuing":  b.Issuing[0],
		"workload": issue(t, a, ca.WorkloadSVID(), ca.Request{ID: id("/orders"), Key: p256, TTL: time.Hour}),
		"workload-dns": issue(t, a, ca.WorkloadSVID(),
			ca.Request{ID: id("/orders"), Key: p256, TTL: time.Hour, DNS: []string{"orders.internal", "orders"}}),
		"workload-rsa": issue(t, a, ca.WorkloadSVID(),
			ca.Request{ID: id("/orders"), Key: must(rsa.GenerateKey(rand.Reader, 2048))(t).Public(), TTL: time.Hour}),
		"agent":  issue(t, a, ca.AgentSVID(), ca.Request{ID: id("/writ/agent/join_token/abc"), Key: p256, TTL: time.Hour}),
		"server": issue(t, a, ca.ServerSVID(), ca.Request{ID: id("/writ/server/a"), Key: p256, TTL: time.Hour}),
	}
	for name, cert := range rows {
		t.Run(name, func(t *testing.T) {
			got, path := describe(cert, b), filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(must(os.ReadFile(path))(t)), got); diff != "" {
				t.Errorf("the certificate changed (-file +now); if that is meant, run with -update:\n%s", diff)
			}
			if strings.Contains(cert.Subject.String(), domain.Name()) {
				t.Error("the trust domain stands in the subject")
			}
		})
	}
}

// describe says all that stands in a certificate, with what is random under a name of its own.
func describe(c *x509.Certificate, b ca.Bundle) string {
	root, issuing := hex.EncodeToString(b.Roots[0].SubjectKeyId), hex.EncodeToString(b.Issuing[0].SubjectKeyId)
	random := strings.NewReplacer(root, "<root key id>", issuing, "<issuing key id>",
		root[:8], "<root>", issuing[:8], "<issuing>", hex.EncodeToString(c.SubjectKeyId), "<subject key id>")
	var s strings.Builder
	fmt.Fprintf(&s, "version %d\nserial %d bits at most\nsignature %s\n", c.Version, 8*len(c.SerialNumber.FillBytes(make([]byte, 16))),
		c.SignatureAlgorithm)
	fmt.Fprintf(&s, "issuer %q\nsubject %q\n", c.Issuer.String(), c.Subject.String())
	fmt.Fprintf(&s, "not before %s\nnot after %s\n", c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339))
	fmt.Fprintf(&s, "key %s\n", c.PublicKeyAlgorithm)
	for _, e := range c.Extensions {
		critical := ""
		if e.Critical {
			critical = " critical"
		}
		value := hex.EncodeToString(e.Value)
		for _, uri := range c.URIs {
			value = strings.ReplaceAll(value, hex.EncodeToString([]byte(uri.String())), "("+uri.String()+")")
		}
		for _, name := range c.DNSNames {
			value = strings.ReplaceAll(value, hex.EncodeToString([]byte(name)), "("+name+")")
		}
		fmt.Fprintf(&s, "extension %s%s %s\n", e.Id, critical, value)
	}
	return random.Replace(s.String())
}
