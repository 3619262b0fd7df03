package sds_test

import (
	"crypto/x509"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/agent/agenttest"
	"github.com/writ-dev/writ/svid"
)

// A domain before ours in the order of names, and one whose bundle is empty: Envoy refuses a whole ALL for that.
func TestSDS_07_SDS_26_AllIsSortedAndHoldsNoEmptyDomain(t *testing.T) {
	n, other := newNode(t), agenttest.New(t, "alpha.org")
	n.server.Trust("alpha.org", other.Root)
	n.server.Trust("emptied.org")
	n.server.Apply(federated("a", "emptied.org", "alpha.org"))
	n.start()
	conn := agenttest.Dial(t, n.path)
	found, err := fetch(t, conn, nil, "ALL")
	if err != nil {
		t.Fatal(err)
	}
	domains, roots := trusts(t, found["ALL"])
	if !cmp.Equal(domains, []string{"alpha.org", "example.org"}) || !roots[0].Equal(other.Root) || !roots[1].Equal(n.server.Root) {
		t.Errorf("it trusts %v", domains)
	}
	if _, err := fetch(t, conn, nil, "spiffe://emptied.org"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("the empty domain: %v", err)
	}
}

// What Envoy's SPIFFE validator and its SAN matchers ask of a leaf, and the name that a caller's ID becomes.
func TestLeavesAreWhatEnvoyTakes(t *testing.T) {
	n := newNode(t)
	long := entry("long")
	long.SpiffeId = "spiffe://example.org/" + strings.Repeat("x", svid.MaxIDLength-len("spiffe://example.org/"))
	n.server.Apply(entry("a"), long)
	n.start()
	conn := agenttest.Dial(t, n.path)
	agenttest.Await(t, "both SVIDs", func() bool { return n.agent.Status().SVIDs == 2 })
	found, err := fetch(t, conn, nil, a, long.SpiffeId)
	if err != nil {
		t.Fatal(err)
	}
	for name, secret := range found {
		leaf := leafOf(t, secret)
		_, path, _ := strings.Cut(strings.TrimPrefix(leaf.URIs[0].String(), "spiffe://"), "/")
		for row, holds := range map[string]bool{
			"SDS-27, ID-18: one URI name, the ID": len(leaf.URIs) == 1 && leaf.URIs[0].String() == name && strings.HasPrefix(name, "spiffe://example.org/"),
			"SDS-27: a path":                      path != "",
			"SDS-27: no CA":                       !leaf.IsCA && leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) == 0,
		} {
			t.Run(row, func(t *testing.T) {
				if !holds {
					t.Errorf("%.80s: %v, key usage %b", name, leaf.URIs, leaf.KeyUsage)
				}
			})
		}
	}
	for row, wrong := range map[string]string{
		"ID-22: another case of the path":        "spiffe://example.org/A",
		"ID-21: another case of the domain":      "spiffe://Example.org/a",
		"ID-15: a slash behind it":               a + "/",
		"ID-23: the same by another way":         "spiffe://example.org/x/../a",
		"ID-24: the trust domain's name alone":   "example.org",
		"ID-24: the trust domain's with a slash": domain + "/",
	} {
		t.Run(row, func(t *testing.T) {
			if found, err := fetch(t, conn, nil, wrong); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%s gives %v, %v", wrong, namesOf(found), err)
			}
		})
	}
}

// Listeners wait for their secrets. Warm it takes milliseconds; the best of ten is far from any bound even where the machine is busy.
func TestSDS_28_FirstResponseComesAtOnce(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("a"))
	n.start()
	conn := agenttest.Dial(t, n.path)
	var took []time.Duration
	for range 10 {
		s := world(t, conn)
		begun := time.Now()
		s.ask("default", "ROOTCA")
		s.next()
		took = append(took, time.Since(begun))
	}
	if best := slices.Min(took); best > 100*time.Millisecond {
		t.Errorf("the fastest of ten took %s", best)
	}
}

// Envoy sends no metadata: the header is the Workload API's alone (ruling R6).
func TestSDS_01_WEP_08_NoHeaderIsNeeded(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("a"))
	n.start()
	conn := agenttest.Dial(t, n.path)
	for name, s := range map[string]talk{"state of the world": world(t, conn), "delta": delta(t, conn)} {
		s.ask("default")
		if found, _ := s.next(); !cmp.Equal(namesOf(found), []string{"default"}) {
			t.Errorf("%s: %v", name, namesOf(found))
		}
	}
	if _, err := fetch(t, conn, nil, "default"); err != nil {
		t.Errorf("FetchSecrets: %v", err)
	}
}
