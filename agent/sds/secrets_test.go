package sds_test

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-dev/writ/agent/agenttest"
)

const (
	a, b            = "spiffe://example.org/a", "spiffe://example.org/b"
	domain, foreign = "spiffe://example.org", "spiffe://foreign.org"
)

// certificates reads PEM that holds nothing else.
func certificates(t *testing.T, data *corev3.DataSource) []*x509.Certificate {
	t.Helper()
	var out []*x509.Certificate
	rest := data.GetInlineBytes()
	for len(rest) > 0 {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			t.Fatalf("no PEM certificates: %.40q", rest)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
	return out
}

// leafOf checks a TlsCertificate (SDS-12) and gives its leaf.
func leafOf(t *testing.T, s *tlsv3.Secret) *x509.Certificate {
	t.Helper()
	chain := certificates(t, s.GetTlsCertificate().GetCertificateChain())
	if len(chain) != 2 || chain[0].IsCA || !chain[1].IsCA {
		t.Fatalf("%q is a chain of %d", s.GetName(), len(chain))
	}
	block, rest := pem.Decode(s.GetTlsCertificate().GetPrivateKey().GetInlineBytes())
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) > 0 {
		t.Fatalf("%q has no PEM key", s.GetName())
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if k, ok := key.(*ecdsa.PrivateKey); !ok || !k.PublicKey.Equal(chain[0].PublicKey) {
		t.Errorf("%q: the key is not the leaf's, %v", s.GetName(), err)
	}
	return chain[0]
}

// trusts checks a validation context with the SPIFFE validator (SDS-13, SDS-15) and gives the roots of each domain, in its order.
func trusts(t *testing.T, s *tlsv3.Secret) (domains []string, roots []*x509.Certificate) {
	t.Helper()
	v := s.GetValidationContext()
	config := &tlsv3.SPIFFECertValidatorConfig{}
	if err := v.GetCustomValidatorConfig().GetTypedConfig().UnmarshalTo(config); err != nil {
		t.Fatalf("%q: %v", s.GetName(), err)
	}
	if v.GetCustomValidatorConfig().GetName() != "envoy.tls.cert_validator.spiffe" || v.GetTrustedCa() != nil || v.GetCrl() != nil ||
		len(v.GetMatchTypedSubjectAltNames()) > 0 {
		t.Errorf("%q is %v", s.GetName(), v)
	}
	for _, d := range config.GetTrustDomains() {
		domains = append(domains, d.GetName())
		roots = append(roots, certificates(t, d.GetTrustBundle())...)
	}
	return domains, roots
}

func newFederation(t *testing.T) (*node, *agenttest.Authority) {
	t.Helper()
	n, other := newNode(t), agenttest.New(t, "foreign.org")
	n.server.Trust("foreign.org", other.Root)
	n.server.Trust("unused.org", other.Root)
	n.server.Apply(federated("a", "foreign.org"), entry("b"))
	n.start()
	return n, other
}

// By all three calls.
func TestAnyCombinationOfNames(t *testing.T) {
	n, _ := newFederation(t)
	conn := agenttest.Dial(t, n.path)
	everything := []string{domain, a, b, foreign}
	for _, row := range []struct {
		name       string
		asks, want []string
	}{
		{"SDS-03, SDS-25: the default identity", []string{"default"}, []string{"default"}},
		{"SDS-04, SDS-25: an identity by its ID", []string{b}, []string{b}},
		{"SDS-05, SDS-25: our roots", []string{"ROOTCA"}, []string{"ROOTCA"}},
		{"our roots by trust domain ID", []string{domain}, []string{domain}},
		{"SDS-06: a federated domain", []string{foreign}, []string{foreign}},
		{"SDS-07: every bundle", []string{"ALL"}, []string{"ALL"}},
		{"SDS-11: all aliases", []string{"default", "ROOTCA", "ALL"}, []string{"ALL", "ROOTCA", "default"}},
		{"SDS-11: one identity under two names", []string{a, "default"}, []string{"default", a}},
		{"SDS-11: one bundle under three names", []string{"ROOTCA", "ALL", domain}, []string{"ALL", "ROOTCA", domain}},
		{"a name twice", []string{"default", "default"}, []string{"default"}},
		{"SDS-09: no name", nil, everything},
		{"SDS-09: an empty name", []string{""}, everything},
		{"the wildcard", []string{"*"}, everything},
		{"the wildcard and an alias", []string{"*", "default"}, append([]string{"default"}, everything...)},
		{"SDS-02, SDS-11: all there are", append([]string{"default", "ROOTCA", "ALL"}, everything...), append([]string{"ALL", "ROOTCA", "default"}, everything...)},
	} {
		t.Run(row.name, func(t *testing.T) {
			found, err := fetch(t, conn, nil, row.asks...)
			if diff := cmp.Diff(row.want, namesOf(found)); diff != "" || err != nil {
				t.Errorf("FetchSecrets: %v %s", err, diff)
			}
			protocols(t, func(t *testing.T, open func(*testing.T, *grpc.ClientConn) talk) {
				s := open(t, conn)
				s.ask(row.asks...)
				found, removed := s.next()
				if diff := cmp.Diff(row.want, namesOf(found)); diff != "" || len(removed) > 0 {
					t.Errorf("%s, removed %v", diff, removed)
				}
			})
		})
	}
}

func TestSDS_12_SDS_13_SDS_15_SDS_26_SecretsHoldWhatTheirNamesSay(t *testing.T) {
	n, other := newFederation(t)
	found, err := fetch(t, agenttest.Dial(t, n.path), nil, "default", "ROOTCA", "ALL", a, b, domain, foreign)
	if err != nil {
		t.Fatal(err)
	}
	for name, id := range map[string]string{"default": a, a: a, b: b} {
		if leaf := leafOf(t, found[name]); len(leaf.URIs) != 1 || leaf.URIs[0].String() != id {
			t.Errorf("%q is %v", name, leaf.URIs)
		}
	}
	for name, want := range map[string][]string{"ROOTCA": {"example.org"}, domain: {"example.org"}, foreign: {"foreign.org"},
		"ALL": {"example.org", "foreign.org"}} {
		domains, roots := trusts(t, found[name])
		if !cmp.Equal(domains, want) {
			t.Errorf("%q trusts %v", name, domains)
		}
		for i, d := range domains {
			if root := map[string]*x509.Certificate{"example.org": n.server.Root, "foreign.org": other.Root}[d]; !roots[i].Equal(root) {
				t.Errorf("%q has another root for %s", name, d)
			}
		}
	}
}

func built(major, minor, patch uint32) *corev3.Node {
	return &corev3.Node{UserAgentVersionType: &corev3.Node_UserAgentBuildVersion{UserAgentBuildVersion: &corev3.BuildVersion{
		Version: &typev3.SemanticVersion{MajorNumber: major, MinorNumber: minor, Patch: patch}}}}
}

func says(t *testing.T, value any) *corev3.Node {
	metadata, err := structpb.NewStruct(map[string]any{"disable_spiffe_cert_validation": value})
	if err != nil {
		t.Fatal(err)
	}
	return &corev3.Node{Metadata: metadata}
}

// An Envoy without the SPIFFE validator gets plain roots, and never several domains' in one pool.
func TestSDS_14_SDS_20_EXT_03_FlavourIsTheEnvoys(t *testing.T) {
	n, other := newFederation(t)
	conn := agenttest.Dial(t, n.path)
	for _, row := range []struct {
		name  string
		node  *corev3.Node
		plain bool
	}{
		{"no node", nil, false},
		{"no version", &corev3.Node{Id: "x"}, false},
		{"version 0.0.0, which is none", built(0, 0, 0), false},
		{"1.17.9", built(1, 17, 9), true},
		{"0.9.0", built(0, 9, 0), true},
		{"1.18.0", built(1, 18, 0), false},
		{"1.40.0", built(1, 40, 0), false},
		{"2.0.0", built(2, 0, 0), false},
		{"switched off", says(t, true), true},
		{"switched off by text", says(t, "true"), true},
		{"not switched off", says(t, false), false},
		{"not switched off by text", says(t, "no"), false},
		{"a number", says(t, 1), false},
	} {
		t.Run(row.name, func(t *testing.T) {
			found, err := fetch(t, conn, row.node, "ROOTCA", foreign)
			if err != nil {
				t.Fatal(err)
			}
			if !row.plain {
				trusts(t, found["ROOTCA"])
				return
			}
			for name, root := range map[string]*x509.Certificate{"ROOTCA": n.server.Root, foreign: other.Root} {
				v := found[name].GetValidationContext()
				if roots := certificates(t, v.GetTrustedCa()); len(roots) != 1 || !roots[0].Equal(root) || v.GetCustomValidatorConfig() != nil {
					t.Errorf("%q is %v", name, v)
				}
			}
			if _, err := fetch(t, conn, row.node, "ALL"); status.Code(err) != codes.InvalidArgument {
				t.Errorf("ALL: %v", err)
			}
		})
	}
	w := world(t, conn)
	w.names = []string{"ROOTCA"}
	first := request("ROOTCA")
	first.Node = built(1, 17, 0)
	w.send(first)
	w.next()
	w.ask("ROOTCA", "default") // without the node
	if found, _ := w.next(); found["ROOTCA"].GetValidationContext().GetTrustedCa() == nil {
		t.Error("a later request without a node changed the flavour")
	}
}
