package ca

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/writ-dev/writ/svid"
)

// Profile says what a certificate may be. The zero Profile allows nothing.
type Profile struct {
	name       string
	authority  bool // the certificate may sign others
	extensions []byte
	admits     func(segments []string) error
}

// Name is how records and logs call the profile.
func (p Profile) Name() string { return p.name }

// WorkloadSVID is for any ID with a path outside of /writ/.
func WorkloadSVID() Profile {
	return Profile{name: "workload-svid", extensions: leafExtensions, admits: func(path []string) error {
		if path[0] == "writ" && len(path) > 1 {
			return errors.New("IDs under /writ/ are reserved for agents and servers")
		}
		return nil
	}}
}

// AgentSVID is for /writ/agent/METHOD/KEY.
func AgentSVID() Profile {
	return Profile{name: "agent-svid", extensions: leafExtensions, admits: func(path []string) error {
		if len(path) < 4 || path[0] != "writ" || path[1] != "agent" {
			return errors.New("an agent's ID is /writ/agent/METHOD/KEY")
		}
		return nil
	}}
}

// ServerSVID is for /writ/server/NAME.
func ServerSVID() Profile {
	return Profile{name: "server-svid", extensions: leafExtensions, admits: func(path []string) error {
		if len(path) != 3 || path[0] != "writ" || path[1] != "server" {
			return errors.New("a server's ID is /writ/server/NAME")
		}
		return nil
	}}
}

func rootProfile() Profile {
	return Profile{name: "root", authority: true, extensions: rootExtensions}
}

func issuingProfile() Profile {
	return Profile{name: "issuing", authority: true, extensions: issuingExtensions}
}

// admit refuses an ID that the profile is not for.
func (p Profile) admit(td spiffeid.TrustDomain, id spiffeid.ID) error {
	switch {
	case p.admits == nil:
		return errors.New("no profile for leaf certificates was named")
	case id.IsZero():
		return errors.New("no SPIFFE ID is asked for")
	case !id.MemberOf(td): // SPIFFE-ID section 4.1.2
		return errors.New("its trust domain is not " + td.Name())
	case id.Path() == "": // X509-SVID section 3.1
		return errors.New("it has no path")
	case len(id.String()) > svid.MaxIDLength: // SPIFFE-ID section 2.3
		return errors.New("it is longer than 2048 bytes")
	}
	return p.admits(svid.Segments(id))
}

// The extensions that all certificates of a profile share, as they stand in the certificate: key usage, extended key usage,
// basic constraints. crypto/x509 has them in this order too.
var (
	leafExtensions = der(func(b *cryptobyte.Builder) {
		addKeyUsage(b, x509.KeyUsageDigitalSignature) // X509-SVID section 4.3; alone, for RSA too: we speak no RSA key exchange
		addExtension(b, oidExtendedKeyUsage, false, func(b *cryptobyte.Builder) {
			b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) { // section 4.4: both or none
				b.AddASN1ObjectIdentifier(oidServerAuth)
				b.AddASN1ObjectIdentifier(oidClientAuth)
			})
		})
		addExtension(b, oidBasicConstraints, true, func(b *cryptobyte.Builder) {
			b.AddASN1(casn1.SEQUENCE, func(*cryptobyte.Builder) {}) // CA:FALSE; clients in the field want it to be there
		})
	})
	rootExtensions = der(func(b *cryptobyte.Builder) {
		addKeyUsage(b, x509.KeyUsageCertSign)
		addExtension(b, oidBasicConstraints, true, func(b *cryptobyte.Builder) {
			b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1Boolean(true) })
		})
	})
	// No name constraints: rustls and Python refuse every chain that has one for URIs.
	issuingExtensions = der(func(b *cryptobyte.Builder) {
		addKeyUsage(b, x509.KeyUsageCertSign)
		addExtension(b, oidBasicConstraints, true, func(b *cryptobyte.Builder) {
			b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Boolean(true)
				b.AddASN1Int64(0) // it signs leaves only
			})
		})
	})
)

var (
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidSubjectAltName   = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidExtendedKeyUsage = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidServerAuth       = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}
	oidClientAuth       = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}
)
