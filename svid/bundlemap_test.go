package svid_test

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/svid"
)

func TestParseBundleMap(t *testing.T) {
	a, b := sign(t, authorityTemplate("a", "spiffe://a.test"), nil).cert, sign(t, authorityTemplate("b", "spiffe://b.test"), nil).cert
	of := func(root string) string { return `{"keys":[` + root + `],"spiffe_sequence":7,"spiffe_refresh_hint":1}` }
	aBundle, bBundle := of(rootText(a)), of(rootText(b))
	for _, row := range []struct {
		name, text string
		domains    int // -1: an error
	}{
		{"TDB-17/two domains", `{"trust_domains":{"a.test":` + aBundle + `,"b.test":` + bBundle + `}}`, 2},
		{"TDB-17/none", `{"trust_domains":{}}`, 0},
		{"TDB-17/members that nobody knows", `{"trust_domains":{},"foo":1}`, 0},
		{"TDB-17/no trust_domains", `{}`, -1},
		{"TDB-17/null", `{"trust_domains":null}`, -1},
		{"TDB-17/a list", `{"trust_domains":[]}`, -1},
		{"TDB-17/a bundle", aBundle, -1},
		{"TDB-17/no JSON", `a.test`, -1},
		{"TDB-18/an ID", `{"trust_domains":{"spiffe://a.test":` + aBundle + `}}`, -1},
		{"TDB-18/upper case", `{"trust_domains":{"A.test":` + aBundle + `}}`, -1},
		{"TDB-18/no name", `{"trust_domains":{"":` + aBundle + `}}`, -1},
		{"TDB-19/a domain twice", `{"trust_domains":{"a.test":` + aBundle + `,"a.test":{"keys":[]}}}`, -1},
		{"TDB-19/a domain twice, once escaped", `{"trust_domains":{"a.test":` + aBundle + `,"\u0061.test":{"keys":[]}}}`, -1},
		{"TDB-19/trust_domains twice", `{"trust_domains":{"a.test":` + aBundle + `},"trust_domains":{}}`, -1},
		{"TDB-21/one bundle is none", `{"trust_domains":{"a.test":` + aBundle + `,"b.test":{}}}`, -1},
		{"TDB-21/one bundle is another domain's", `{"trust_domains":{"a.test":` + aBundle + `,"b.test":` + aBundle + `}}`, -1},
		{"TDB-21/a bundle without keys", `{"trust_domains":{"a.test":` + aBundle + `,"b.test":{"keys":[]}}}`, 2},
		{"over 4 MiB", `{"trust_domains":{},"x":"` + strings.Repeat("x", 4<<20) + `"}`, -1},
		{"a million objects", `{"trust_domains":{},"x":[` + strings.Repeat("{},", 1<<20) + `{}]}`, -1},
	} {
		t.Run(row.name, func(t *testing.T) {
			bundles, err := svid.ParseBundleMap([]byte(row.text))
			if row.domains < 0 && (err == nil || bundles != nil) || row.domains >= 0 && (err != nil || len(bundles) != row.domains) {
				t.Errorf("%d domains, %.200v; want %d", len(bundles), err, row.domains)
			}
			for td, got := range bundles {
				if got.TrustDomain != td {
					t.Errorf("%s has the bundle of %s", td, got.TrustDomain)
				}
			}
		})
	}
	both, err := svid.ParseBundleMap([]byte(`{"trust_domains":{"a.test":` + aBundle + `,"b.test":` + bBundle + `}}`))
	if err != nil {
		t.Fatal(err)
	}
	td := spiffeid.RequireTrustDomainFromString("b.test")
	t.Run("TDB-18/each under its name", func(t *testing.T) {
		if got := both[td]; len(got.Roots) != 1 || !got.Roots[0].Equal(b) || got.Sequence != 7 {
			t.Errorf("it is %+v", got)
		}
	})
	t.Run("TDB-20/a hint inside says nothing", func(t *testing.T) {
		if got := both[td]; got.RefreshHint != 0 || got.RefreshAfter() != (svid.Bundle{}).RefreshAfter() {
			t.Errorf("it hints %s", got.RefreshHint)
		}
	})
	t.Run("TDB-21/the next map is the whole state", func(t *testing.T) {
		next, err := svid.ParseBundleMap([]byte(`{"trust_domains":{"a.test":` + aBundle + `}}`))
		if _, there := next[td]; err != nil || there || len(next) != 1 {
			t.Errorf("it has %d domains, %v", len(next), err)
		}
	})
}

// FuzzParseBundleMap: what is read names each domain once, and by its own bundle.
func FuzzParseBundleMap(f *testing.F) {
	f.Add([]byte(`{"trust_domains":{"a.test":{"keys":[` + rootText(sign(f, authorityTemplate("a", "spiffe://a.test"), nil).cert) + `]}}}`))
	f.Add([]byte(`{"trust_domains":{"a.test":{"keys":[]},"b.test":{"keys":[]}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		bundles, err := svid.ParseBundleMap(text)
		if err != nil && bundles != nil {
			t.Fatalf("refused, and yet %v", bundles)
		}
		for td, b := range bundles {
			if b.TrustDomain != td || b.RefreshHint != 0 {
				t.Fatalf("%s has %+v", td, b)
			}
		}
	})
}
