package sds

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-dev/writ/agent"
)

// The names beside SPIFFE IDs and trust domain IDs, as SPIRE's users know them.
const (
	defaultName = "default" // the first identity
	rootsName   = "ROOTCA"  // our own trust domain's bundle
	allName     = "ALL"     // every bundle that the caller may trust, each for its own trust domain
	wildcard    = "*"       // every identity by its SPIFFE ID and every bundle by its trust domain's
)

// flavour says how an Envoy validates.
type flavour uint8

const (
	spiffeValidator flavour = iota // the trust domain of the peer's ID picks the roots
	trustedCA                      // Envoy before 1.18, or told not to: a plain list of roots
)

// flavourOf reads it from the node that the first request names (SDS-14).
func flavourOf(node *corev3.Node) flavour {
	if v := node.GetUserAgentBuildVersion().GetVersion(); v != nil && (v.MajorNumber < 1 || v.MajorNumber == 1 && v.MinorNumber < 18) {
		if v.MajorNumber|v.MinorNumber|v.Patch != 0 {
			return trustedCA
		}
	}
	value := node.GetMetadata().GetFields()["disable_spiffe_cert_validation"]
	if value.GetBoolValue() || strings.EqualFold(value.GetStringValue(), "true") {
		return trustedCA
	}
	return spiffeValidator
}

// build is what a view offers: secrets are made when they are asked for, under the name they are asked for.
type build struct {
	view    agent.View
	flavour flavour
}

func secretsOf(v agent.View, f flavour) build { return build{v, f} }

// named gives the secrets of these names that there are.
func (b build) named(names []string) secrets {
	if slices.Contains(names, wildcard) {
		names = slices.Concat(names, b.everything())
	}
	out := secrets{}
	for _, name := range names {
		if secret := b.secret(name); secret != nil {
			if resource, err := anypb.New(secret); err == nil {
				out[name] = resource
			}
		}
	}
	return out
}

func (b build) everything() []string {
	var names []string
	for _, identity := range b.view.Identities {
		names = append(names, identity.ID.String())
	}
	for _, bundle := range b.view.Bundles {
		names = append(names, bundle.TrustDomain.IDString())
	}
	return names
}

// secret gives the secret of one name, nil where there is none.
func (b build) secret(name string) *tlsv3.Secret {
	switch {
	case name == defaultName && len(b.view.Identities) > 0:
		return certificate(name, b.view.Identities[0])
	case name == rootsName && len(b.view.Bundles) > 0:
		return b.roots(name, b.view.Bundles[:1])
	case name == allName && b.flavour == spiffeValidator: // pooled roots would let one domain speak for another
		return b.roots(name, b.view.Bundles)
	}
	for _, identity := range b.view.Identities {
		if identity.ID.String() == name {
			return certificate(name, identity)
		}
	}
	for i, bundle := range b.view.Bundles {
		if bundle.TrustDomain.IDString() == name {
			return b.roots(name, b.view.Bundles[i:i+1])
		}
	}
	return nil
}

// certificate is a TlsCertificate: PEM, leaf first, the key as PKCS #8 (SDS-12).
func certificate(name string, identity agent.Identity) *tlsv3.Secret {
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(certificatesPEM(identity.Chain)),
		PrivateKey:       inline(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: identity.Key})),
	}}}
}

// roots is a validation context over these bundles, nil where none has a root. It holds no name matchers: who may be at the other
// end is Envoy's own configuration (SDS-15).
func (b build) roots(name string, bundles []agent.Bundle) *tlsv3.Secret {
	sorted := slices.DeleteFunc(slices.Clone(bundles), func(b agent.Bundle) bool { return len(b.Roots) == 0 }) // SDS-26
	if len(sorted) == 0 {
		return nil
	}
	slices.SortFunc(sorted, func(x, y agent.Bundle) int { return x.TrustDomain.Compare(y.TrustDomain) })
	context := &tlsv3.CertificateValidationContext{}
	if b.flavour == trustedCA {
		context.TrustedCa = inline(certificatesPEM(sorted[0].Roots))
	} else {
		config := &tlsv3.SPIFFECertValidatorConfig{}
		for _, bundle := range sorted {
			config.TrustDomains = append(config.TrustDomains, &tlsv3.SPIFFECertValidatorConfig_TrustDomain{
				Name: bundle.TrustDomain.Name(), TrustBundle: inline(certificatesPEM(bundle.Roots))})
		}
		typed, err := anypb.New(config)
		if err != nil {
			return nil
		}
		context.CustomValidatorConfig = &corev3.TypedExtensionConfig{Name: "envoy.tls.cert_validator.spiffe", TypedConfig: typed}
	}
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{ValidationContext: context}}
}

func inline(data []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: data}}
}

func certificatesPEM(chain [][]byte) []byte {
	var out bytes.Buffer
	for _, der := range chain {
		pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	return out.Bytes()
}

// secrets are the resources that one caller may have now, by name.
type secrets map[string]*anypb.Any

// resources gives them by name, sorted.
func (s secrets) resources() []*anypb.Any {
	out := make([]*anypb.Any, 0, len(s))
	for _, name := range s.names() {
		out = append(out, s[name])
	}
	return out
}

func (s secrets) names() []string {
	names := make([]string, 0, len(s))
	for name := range s {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// missing gives those of the names that are not there.
func (s secrets) missing(names []string) []string {
	var out []string
	for _, name := range names {
		if s[name] == nil && name != wildcard {
			out = append(out, name)
		}
	}
	return out
}

// version names content: the same secrets have the same version over streams, reconnects and restarts.
func (s secrets) version() string {
	h := sha256.New()
	for _, name := range s.names() {
		h.Write([]byte(versionOf(s[name])))
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// versionOf names one secret's content.
func versionOf(resource *anypb.Any) string {
	encoded, _ := proto.MarshalOptions{Deterministic: true}.Marshal(resource)
	sum := sha256.Sum256(encoded)
	return hex.EncodeToString(sum[:8])
}
