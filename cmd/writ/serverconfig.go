package main

import (
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/ca/keystore"
	"github.com/writ-dev/writ/store"
	"github.com/writ-dev/writ/svid"
)

// serverConfig is server.yaml. A key left out has the value that its comment names.
type serverConfig struct {
	TrustDomain string         `yaml:"trust_domain"` // required
	DataDir     string         `yaml:"data_dir"`     // /var/lib/writ/server
	Name        string         `yaml:"name"`         // of /writ/server/NAME; the host name
	Listen      string         `yaml:"listen"`       // node API; ":8443"
	Addresses   []string       `yaml:"addresses"`    // what join tokens carry; the host name with the port of listen
	AdminSocket string         `yaml:"admin_socket"` // /run/writ/admin.sock
	Metrics     string         `yaml:"metrics"`      // 127.0.0.1:8088; loopback only
	Store       string         `yaml:"store"`        // sqlite
	CA          caConfig       `yaml:"ca"`
	SVID        svidConfig     `yaml:"svid"`
	Attest      verifierConfig `yaml:"attest"` // join_token where nothing is named
	Federation  map[string]any `yaml:"federation"`
	OIDC        oidcConfig     `yaml:"oidc"`
	Audit       auditConfig    `yaml:"audit"`
	Log         logConfig      `yaml:"log"`

	adminMode uint32 // of the admin socket; in `writ dev` the owner's alone
}

type caConfig struct {
	TTL       time.Duration `yaml:"ttl"`         // the issuing certificate's; 24h
	RootTTL   time.Duration `yaml:"root_ttl"`    // 87600h
	JWTKeyTTL time.Duration `yaml:"jwt_key_ttl"` // of a key that signs JWT-SVIDs; a new one is made at half of it; 24h
	JWTAlg    string        `yaml:"jwt_alg"`     // ES256, or RS256 where a verifier knows nothing else; of new keys; ES256
	Keys      string        `yaml:"keys"`        // disk, memory or a kms URI; disk
}

// jwtKinds are the keys that sign by each algorithm.
var jwtKinds = map[string]keystore.Kind{"ES256": keystore.P256, "RS256": keystore.RSA2048}

type svidConfig struct {
	X509TTL time.Duration `yaml:"x509_ttl"` // where an entry names none; 1h
	JWTTTL  time.Duration `yaml:"jwt_ttl"`  // 5m
}

// verifierConfig names the methods of node attestation that the server takes: a section that is there switches one on.
type verifierConfig struct {
	JoinToken *struct{}           `yaml:"join_token"`
	X509pop   *x509popRootsConfig `yaml:"x509pop"`
}

type x509popRootsConfig struct {
	Roots string `yaml:"roots"` // PEM file
}

type auditConfig struct {
	File string `yaml:"file"` // JSON lines beside the store's own rows; none
}

type logConfig struct {
	Level  string `yaml:"level"`  // debug, info, warn, error; info
	Format string `yaml:"format"` // json or text; json
}

// withDefaults fills what was left out.
func (c serverConfig) withDefaults() serverConfig {
	orDefault(&c.DataDir, "/var/lib/writ/server")
	if c.Name == "" {
		c.Name = hostName()
	}
	orDefault(&c.Listen, ":8443")
	orDefault(&c.AdminSocket, defaultAdminSocket)
	orDefault(&c.Metrics, "127.0.0.1:8088")
	orDefault(&c.Store, "sqlite")
	orDefault(&c.CA.TTL, 24*time.Hour)
	orDefault(&c.CA.RootTTL, 87600*time.Hour)
	orDefault(&c.CA.JWTKeyTTL, 24*time.Hour)
	orDefault(&c.CA.JWTAlg, "ES256")
	orDefault(&c.CA.Keys, "disk")
	orDefault(&c.SVID.X509TTL, time.Hour)
	orDefault(&c.SVID.JWTTTL, 5*time.Minute)
	orDefault(&c.adminMode, 0o660)
	if c.OIDC != (oidcConfig{}) {
		orDefault(&c.OIDC.Listen, ":8444")
	}
	if c.Attest.JoinToken == nil && c.Attest.X509pop == nil {
		c.Attest.JoinToken = &struct{}{}
	}
	c.AdminSocket = socketPath(c.AdminSocket)
	return c
}

// problems says all that is wrong with the configuration, defaults filled in.
func (c serverConfig) problems() problems {
	var p problems
	p.trustDomain(c.TrustDomain)
	if _, err := spiffeid.FromSegments(spiffeid.RequireTrustDomainFromString("x"), "writ", "server", c.Name); err != nil {
		p.add("name", "%q cannot stand in a SPIFFE ID: %v", c.Name, err)
	}
	p.address("listen", c.Listen)
	for _, a := range c.Addresses {
		p.address("addresses", a)
	}
	p.socket("admin_socket", c.AdminSocket)
	p.loopback("metrics", c.Metrics)
	p.opens("store", store.CheckURL(c.Store))
	p.opens("ca.keys", keystore.Check(c.CA.Keys))
	if c.CA.TTL < time.Minute {
		p.add("ca.ttl", "%s is under a minute", c.CA.TTL)
	}
	if c.CA.RootTTL < 2*c.CA.TTL {
		p.add("ca.root_ttl", "%s is under twice ca.ttl, %s", c.CA.RootTTL, c.CA.TTL)
	}
	if c.SVID.X509TTL < 5*time.Second || c.SVID.X509TTL > c.CA.TTL/2 {
		p.add("svid.x509_ttl", "%s is not between 5s and half of ca.ttl, %s", c.SVID.X509TTL, c.CA.TTL/2)
	}
	if c.CA.JWTKeyTTL < time.Minute {
		p.add("ca.jwt_key_ttl", "%s is under a minute", c.CA.JWTKeyTTL)
	}
	if _, known := jwtKinds[c.CA.JWTAlg]; !known {
		p.add("ca.jwt_alg", "%q is neither ES256 nor RS256", c.CA.JWTAlg)
	}
	if c.SVID.JWTTTL < time.Second || c.SVID.JWTTTL > c.CA.JWTKeyTTL/2 {
		p.add("svid.jwt_ttl", "%s is not between 1s and half of ca.jwt_key_ttl, %s", c.SVID.JWTTTL, c.CA.JWTKeyTTL/2)
	}
	if c.Attest.X509pop != nil && c.Attest.X509pop.Roots == "" {
		p.add("attest.x509pop.roots", "is missing: the PEM file of the CAs whose nodes may join")
	}
	if len(c.Federation) > 0 {
		p.notYet("federation")
	}
	if c.OIDC != (oidcConfig{}) {
		c.OIDC.problems(&p)
	}
	p.log(c.Log)
	return p
}

// orDefault sets what is still zero.
func orDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// hostName is the host's first label in the form that a SPIFFE ID takes, or "server".
func hostName() string {
	name, err := os.Hostname()
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	id := spiffeid.RequireTrustDomainFromString("x").ID()
	if _, bad := id.AppendSegments(name); err != nil || bad != nil {
		return "server"
	}
	return name
}

// domain is the trust domain of a configuration that has no problems.
func (c serverConfig) domain() (spiffeid.TrustDomain, error) {
	return svid.ParseTrustDomain(c.TrustDomain)
}
