package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/server"
)

const ordersID = "spiffe://example.org/orders"

func spiffeURL(path string) []*url.URL {
	return []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: path}}
}

func TestSignTakesOnlyTheKeyFromTheRequest(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	e := entry("orders", "join_token:name:web-1")
	e.Dns = []string{"orders.internal"}
	d.apply(e, entry("other", "join_token:name:web-2"), entry("deleted"))
	d.caughtUp()
	h := d.join("web-1")
	d.remove("deleted")
	d.caughtUp()
	good := newKey(t)
	ca := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}
	broken := csrOf(t, &x509.CertificateRequest{}, good)
	broken[len(broken)-1] ^= 1
	for _, row := range []struct {
		name  string
		entry string
		id    string
		csr   []byte
		want  codes.Code
		code  fault.Code
	}{
		{"names nothing", "orders", ordersID, csrOf(t, &x509.CertificateRequest{}, good), codes.OK, ""},
		{"names the entry's ID", "orders", ordersID, csrOf(t, &x509.CertificateRequest{URIs: spiffeURL("/orders")}, good), codes.OK, ""},
		{"key is RSA of 2048 bits", "orders", ordersID, csrOf(t, &x509.CertificateRequest{}, must(rsa.GenerateKey(rand.Reader, 2048))(t)), codes.OK, ""},
		{"asks for another ID", "orders", ordersID, csrOf(t, &x509.CertificateRequest{URIs: spiffeURL("/admin")}, good), codes.InvalidArgument, fault.BadRequestForSVID},
		{"asks for a second ID", "orders", ordersID, csrOf(t, &x509.CertificateRequest{URIs: append(spiffeURL("/orders"), spiffeURL("/admin")...)}, good), codes.InvalidArgument, fault.BadRequestForSVID},
		{"asks for a DNS name", "orders", ordersID, csrOf(t, &x509.CertificateRequest{URIs: spiffeURL("/orders"), DNSNames: []string{"admin.internal"}}, good), codes.InvalidArgument, fault.BadRequestForSVID},
		{"asks for the entry's own DNS name", "orders", ordersID, csrOf(t, &x509.CertificateRequest{DNSNames: []string{"orders.internal"}}, good), codes.InvalidArgument, fault.BadRequestForSVID},
		{"asks for an address", "orders", ordersID, csrOf(t, &x509.CertificateRequest{IPAddresses: []net.IP{{10, 0, 0, 1}}}, good), codes.InvalidArgument, fault.BadRequestForSVID},
		{"asks for a mail address", "orders", ordersID, csrOf(t, &x509.CertificateRequest{EmailAddresses: []string{"root@example.org"}}, good), codes.InvalidArgument, fault.BadRequestForSVID},
		{"asks for a subject", "orders", ordersID, csrOf(t, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "admin"}}, good), codes.InvalidArgument, fault.BadRequestForSVID},
		{"asks for a CA", "orders", ordersID, csrOf(t, &x509.CertificateRequest{ExtraExtensions: []pkix.Extension{ca}}, good), codes.InvalidArgument, fault.BadRequestForSVID},
		{"key is RSA of 1024 bits", "orders", ordersID, csrOf(t, &x509.CertificateRequest{}, must(rsa.GenerateKey(rand.Reader, 1024))(t)), codes.InvalidArgument, fault.BadRequestForSVID},
		{"key is on P-224", "orders", ordersID, csrOf(t, &x509.CertificateRequest{}, must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))(t)), codes.InvalidArgument, fault.BadRequestForSVID},
		{"signature does not verify", "orders", ordersID, broken, codes.InvalidArgument, fault.BadRequestForSVID},
		{"is empty", "orders", ordersID, nil, codes.InvalidArgument, fault.BadRequestForSVID},
		{"is random", "orders", ordersID, slices.Repeat([]byte{0x30, 0x82}, 500), codes.InvalidArgument, fault.BadRequestForSVID},
		{"ID is not the entry's", "orders", "spiffe://example.org/admin", csrOf(t, &x509.CertificateRequest{}, good), codes.PermissionDenied, fault.NotEntitled},
		{"ID is a server's", "orders", "spiffe://example.org/writ/server/one", csrOf(t, &x509.CertificateRequest{}, good), codes.PermissionDenied, fault.NotEntitled},
		{"ID cannot be read", "orders", "spiffe://example.org/orders/../admin", csrOf(t, &x509.CertificateRequest{}, good), codes.InvalidArgument, fault.BadRequestForSVID},
		{"ID is of another trust domain", "orders", "spiffe://example.net/orders", csrOf(t, &x509.CertificateRequest{}, good), codes.PermissionDenied, fault.NotEntitled},
		{"entry is another node's", "other", "spiffe://example.org/other", csrOf(t, &x509.CertificateRequest{}, good), codes.PermissionDenied, fault.NotEntitled},
		{"entry is there no more", "deleted", "spiffe://example.org/deleted", csrOf(t, &x509.CertificateRequest{}, good), codes.PermissionDenied, fault.NotEntitled},
		{"entry is not named", "", ordersID, csrOf(t, &x509.CertificateRequest{}, good), codes.PermissionDenied, fault.NotEntitled},
	} {
		t.Run(row.name, func(t *testing.T) {
			before := len(records[audit.Issuance](d, audit.KindIssuance))
			// An honest request beside it is signed whatever becomes of this one.
			answer := must(h.connect().Sign(t.Context(), &nodev1.SignRequest{Requests: []*nodev1.SigningRequest{
				{Entry: row.entry, SpiffeId: row.id, Csr: row.csr}, {Entry: "orders", SpiffeId: ordersID, Csr: csrOf(t, &x509.CertificateRequest{}, good)}}}))(t)
			got, honest := answer.Results[0], answer.Results[1]
			if codes.Code(got.Status) != row.want || got.Code != string(row.code) || (len(got.Certificates) > 0) != (row.want == codes.OK) {
				t.Errorf("answered %s %s %q with %d certificates, want %s %s", codes.Code(got.Status), got.Code, got.Message, len(got.Certificates), row.want, row.code)
			}
			d.checkWorkload(honest, ordersID, "orders.internal")
			signed := 1
			if row.want == codes.OK {
				d.checkWorkload(got, ordersID, "orders.internal")
				signed = 2
			}
			if recorded := len(records[audit.Issuance](d, audit.KindIssuance)) - before; recorded != signed {
				t.Errorf("%d issuances are recorded, want %d", recorded, signed)
			}
		})
	}
	d.checkIssuances()
}

// checkWorkload wants exactly the entry's names in a certificate, and exactly one record of its serial.
func (d *domain) checkWorkload(r *nodev1.SigningResult, id string, dns ...string) *x509.Certificate {
	d.t.Helper()
	if len(r.Certificates) == 0 {
		d.t.Fatalf("nothing was signed: %s", r.Message)
	}
	leaf := must(x509.ParseCertificate(r.Certificates[0]))(d.t)
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != id || !slices.Equal(leaf.DNSNames, dns) || len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 ||
		leaf.IsCA || leaf.Subject.String() != "" {
		d.t.Errorf("the certificate says URIs %v, DNS %v, IP %v, CA %t, subject %q", leaf.URIs, leaf.DNSNames, leaf.IPAddresses, leaf.IsCA, leaf.Subject)
	}
	recorded := 0
	for _, i := range records[audit.Issuance](d, audit.KindIssuance) {
		if i.Serial == fmt.Sprintf("%032x", leaf.SerialNumber) {
			recorded++
			if i.SPIFFEID != id || !i.NotAfter.Equal(leaf.NotAfter) {
				d.t.Errorf("recorded as %+v, signed until %s", i, leaf.NotAfter)
			}
		}
	}
	if recorded != 1 {
		d.t.Errorf("serial %x has %d records", leaf.SerialNumber, recorded)
	}
	return leaf
}

func TestSignBoundsTheLifetime(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	now := time.Now()
	long, short, ends := entry("long"), entry("short"), entry("ends")
	long.Ttl, short.Ttl = seconds(12*3600), seconds(60)
	ends.Expires = timestamppb.New(now.Add(10 * time.Minute))
	d.apply(long, short, ends, entry("plain"))
	d.caughtUp()
	h := d.join("web-1")
	issuer := d.authority.Bundle().Issuing[0]
	life := func(name string) time.Time {
		return must(x509.ParseCertificate(h.workload(name).Certificate[0]))(t).NotAfter
	}
	for _, row := range []struct {
		name        string
		entry       string
		least, most time.Duration
	}{
		{"the server's default", "plain", 59 * time.Minute, 61 * time.Minute},
		{"the entry's own", "short", 58 * time.Second, 62 * time.Second},
		{"the entry's end comes first", "ends", 9 * time.Minute, 10 * time.Minute},
		{"half of the issuing certificate's", "long", 12*time.Hour - time.Minute, 12*time.Hour + time.Minute},
	} {
		if got := life(row.entry).Sub(now); got < row.least || got > row.most {
			t.Errorf("%s: the SVID lives for %s", row.name, got)
		}
	}
	if life("ends").After(ends.Expires.AsTime()) || life("long").After(issuer.NotAfter) {
		t.Error("an SVID outlives its entry or its issuer")
	}
}

func TestSignRefusesTooManyRequests(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	d.apply(entry("orders"))
	d.caughtUp()
	h := d.join("web-1")
	many := slices.Repeat([]string{"orders"}, 257)
	before := len(records[audit.Issuance](d, audit.KindIssuance))
	_, err := h.sign(many...)
	wantFault(t, err, fault.Invalid, "")
	if got := len(records[audit.Issuance](d, audit.KindIssuance)); got != before {
		t.Errorf("%d issuances are recorded", got-before)
	}
	for i, r := range must(h.sign(many[:256]...))(t) {
		if r.Status != 0 {
			t.Fatalf("request %d of 256 is refused: %s", i, r.Message)
		}
	}
	d.checkIssuances()
}

// intents is the store's, with a test between the server's reading and its recording.
type intents struct {
	server.Issuances
	before atomic.Pointer[func()]
}

func (i *intents) RecordIssuances(ctx context.Context, all []audit.Issuance) []error {
	if do := i.before.Swap(nil); do != nil {
		(*do)()
	}
	return i.Issuances.RecordIssuances(ctx, all)
}

// What is gone between drafting and recording is not signed, however late this server hears of it.
func TestSignIssuesNothingForWhatIsGone(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name string
		do   func(d *domain, h *host)
		want codes.Code
	}{
		{"nothing happens", func(*domain, *host) {}, codes.OK},
		{"another entry is deleted", func(d *domain, _ *host) { d.remove("other") }, codes.OK},
		{"the node renews", func(d *domain, h *host) { renewed := *h; must(renewed.renew(2, newKey(d.t)))(d.t) }, codes.OK},
		{"the entry is deleted", func(d *domain, _ *host) { d.remove("orders") }, codes.FailedPrecondition},
		{"the entry changes", func(d *domain, _ *host) { d.apply(entry("orders", "x509pop:subject:web-9")) }, codes.FailedPrecondition},
		{"the node is banned", func(d *domain, h *host) {
			must(d.admin.BanNode(d.t.Context(), &adminv1.BanNodeRequest{Subject: h.id}))(d.t)
		}, codes.FailedPrecondition},
		{"the node is evicted", func(d *domain, h *host) {
			must(d.admin.EvictNode(d.t.Context(), &adminv1.EvictNodeRequest{AgentId: h.id}))(d.t)
		}, codes.FailedPrecondition},
		{"the store closes", func(d *domain, _ *host) { d.db.Close() }, codes.Unavailable},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			var door intents
			d := newDomain(t, func(c *server.Config) {
				door.Issuances = c.Store.Issuances
				c.Store.Issuances = &door
			})
			d.apply(entry("orders"), entry("other"))
			d.caughtUp()
			h := d.join("web-1")
			meanwhile := func() { row.do(d, h) }
			door.before.Store(&meanwhile)
			results := must(h.sign("orders"))(t)
			if got := codes.Code(results[0].Status); got != row.want || (len(results[0].Certificates) > 0) != (row.want == codes.OK) {
				t.Errorf("answered %s %q with %d certificates, want %s", got, results[0].Message, len(results[0].Certificates), row.want)
			}
		})
	}
}

// A stranger is not admitted without its record either.
func TestAttestSignsNothingWithoutItsRecord(t *testing.T) {
	t.Parallel()
	var door intents
	d := newDomain(t, func(c *server.Config) {
		door.Issuances = c.Store.Issuances
		c.Store.Issuances = &door
	})
	token := d.token(&adminv1.CreateTokenRequest{})
	closing := func() { d.db.Close() }
	door.before.Store(&closing)
	_, err := d.newHost(token).attest(bent{})
	wantFault(t, err, fault.Unavailable, fault.StoreBusy)
	if err := d.server.Ready(); err == nil {
		d.until("the server says that it is not ready", func() bool { return d.server.Ready() != nil })
	}
}

func TestEachTakesEveryIndexOnce(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 2, 257} {
		taken := make([]atomic.Int64, n)
		server.Each(make([]int, n), func(i int) { taken[i].Add(1) })
		for i := range taken {
			if times := taken[i].Load(); times != 1 {
				t.Errorf("index %d of %d was taken %d times", i, n, times)
			}
		}
	}
}

// A panic in a goroutine would end the process, whoever sent the request.
func TestEachBringsAPanicToItsCaller(t *testing.T) {
	t.Parallel()
	defer func() {
		if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), "the request of death") {
			t.Errorf("the caller sees %v", p)
		}
	}()
	server.Each(make([]int, 100), func(i int) {
		if i == 50 {
			panic("the request of death")
		}
	})
}

// What is refused is counted under the profile that what is issued is counted under, so that a rate can be had.
func TestRefusalsAreCountedByTheirProfile(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	d.apply(entry("orders"))
	d.caughtUp()
	must(d.join("web-1").sign("orders", "unknown"))(t)
	families, err := d.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	profiles := map[string]int{}
	for _, family := range families {
		if family.GetName() != "writ_server_issuances_total" {
			continue
		}
		for _, m := range family.GetMetric() {
			for _, label := range m.GetLabel() {
				if label.GetName() == "profile" {
					profiles[label.GetValue()]++
				}
			}
		}
	}
	if profiles["workload-svid"] != 2 || profiles["workload"] != 0 {
		t.Errorf("counted under %v, want two outcomes of workload-svid", profiles)
	}
}
