package main

import (
	"maps"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/authz/policy"
	"github.com/writ-dev/writ/svid"
)

// agentConfig is agent.yaml. A key left out has the value that its comment names.
type agentConfig struct {
	TrustDomain string         `yaml:"trust_domain"` // required, but for `agent join`, which has it from the token
	DataDir     string         `yaml:"data_dir"`     // /var/lib/writ/agent
	Server      string         `yaml:"server"`       // HOST:PORT, several with commas; those of the join token
	Bundle      string         `yaml:"bundle"`       // PEM file of the roots; what joining left in the data directory
	Socket      string         `yaml:"socket"`       // Workload API and SDS; /run/writ/agent.sock
	Metrics     string         `yaml:"metrics"`      // 127.0.0.1:8089; loopback only
	Attest      attestorConfig `yaml:"attest"`
	AdminSocket string         `yaml:"admin_socket"` // /run/writ/agent-admin.sock
	Authz       authzConfig    `yaml:"authz"`
	Log         logConfig      `yaml:"log"`

	socketMode, authzMode uint32 // in `writ dev` both are open to every user
	adminMode             uint32 // of the admin socket; in `writ dev` the owner's alone
	example               bool   // `writ dev` decides by the example set where no folder is named
}

// attestorConfig names how the node proves itself.
type attestorConfig struct {
	X509pop *x509popKeyConfig `yaml:"x509pop"`
}

type x509popKeyConfig struct {
	Cert string `yaml:"cert"` // PEM file, chain with the leaf first
	Key  string `yaml:"key"`  // PEM file, 0600
}

type authzConfig struct {
	Listen      []string       `yaml:"listen"`           // unix URIs and loopback addresses; none: no decisions here
	ForwardAuth string         `yaml:"forward_auth"`     // not there yet
	Policy      string         `yaml:"policy"`           // a folder, for all requests; this or sets where listen is set
	Sets        setsConfig     `yaml:"sets"`             // several folders, by the name of the policy set
	PolicySize  int            `yaml:"policy_megabytes"` // that the files of one set may have in all; 32
	Reflection  bool           `yaml:"reflection"`       // gRPC server reflection on the doors of ext_authz
	Records     recordsConfig  `yaml:"records"`          // decision records: a file, "off", or the keys of recordsConfig
	Traces      *tracesConfig  `yaml:"traces"`           // spans of decisions for OpenTelemetry; none
	TLS         map[string]any `yaml:"tls"`              // not there yet
}

// setsConfig is the folders of policy sets, and which requests each is for.
type setsConfig map[string]setConfig

type setConfig struct {
	Policy       string   `yaml:"policy"`       // a folder; required
	Destinations []string `yaml:"destinations"` // SPIFFE IDs of upstreams; one that ends in /* is all below it
	Hosts        []string `yaml:"hosts"`        // needs hosts_pinned
	HostsPinned  bool     `yaml:"hosts_pinned"` // the proxy's virtual host has these names only
	Any          bool     `yaml:"any"`          // whatever no other set is for
}

// choices says which requests each set is for.
func (c setsConfig) choices() map[string]policy.Choice {
	out := make(map[string]policy.Choice, len(c))
	for name, s := range c {
		out[name] = policy.Choice{Destinations: s.Destinations, Hosts: s.Hosts, HostsPinned: s.HostsPinned, Any: s.Any}
	}
	return out
}

func (p *problems) sets(c setsConfig) {
	for _, name := range slices.Sorted(maps.Keys(c)) {
		if c[name].Policy == "" {
			p.add("authz.sets."+name+".policy", "is missing: the folder of the policy set")
		}
	}
	if err := policy.CheckChoices(c.choices()); err != nil {
		for _, line := range strings.Split(err.Error(), "\n") {
			*p = append(*p, "authz.sets."+line)
		}
	}
}

func (c agentConfig) withDefaults() agentConfig {
	orDefault(&c.DataDir, "/var/lib/writ/agent")
	orDefault(&c.Socket, "/run/writ/agent.sock")
	orDefault(&c.Metrics, "127.0.0.1:8089")
	orDefault(&c.AdminSocket, "/run/writ/agent-admin.sock")
	orDefault(&c.socketMode, 0o777)
	orDefault(&c.authzMode, 0o660)
	orDefault(&c.adminMode, 0o660)
	c.Socket, c.AdminSocket = socketPath(c.Socket), socketPath(c.AdminSocket)
	return c
}

// problems says all that is wrong with the configuration, defaults filled in.
func (c agentConfig) problems() problems {
	var p problems
	p.trustDomain(c.TrustDomain)
	for _, server := range c.servers() {
		p.address("server", server)
	}
	p.socket("socket", c.Socket)
	p.socket("admin_socket", c.AdminSocket)
	p.loopback("metrics", c.Metrics)
	if x := c.Attest.X509pop; x != nil && (x.Cert == "" || x.Key == "") {
		p.add("attest.x509pop", "needs cert and key, both PEM files")
	}
	if x := c.Attest.X509pop; x != nil && (c.Bundle == "" || c.Server == "") {
		p.add("attest.x509pop", "needs server and bundle: which server to ask, and the PEM file of the roots that it must have")
	}
	p.authz(c.Authz, c.example)
	p.log(c.Log)
	return p
}

func (p *problems) authz(c authzConfig, example bool) {
	for _, listen := range c.Listen {
		if strings.HasPrefix(listen, "unix:") {
			p.socket("authz.listen", socketPath(listen))
		} else {
			p.loopback("authz.listen", listen)
		}
	}
	switch {
	case c.Policy != "" && len(c.Sets) > 0:
		p.add("authz", "has both policy and sets: name the folder of policy in a set, with any: true")
	case len(c.Listen) > 0 && c.Policy == "" && len(c.Sets) == 0 && !example:
		p.add("authz.policy", "is missing: the folder of the policy set")
	}
	p.sets(c.Sets)
	if c.PolicySize < 0 || c.PolicySize > policy.MostMegabytes {
		p.add("authz.policy_megabytes", "%d is not between 1 and %d", c.PolicySize, policy.MostMegabytes)
	}
	p.records(c.Records)
	p.traces(c.Traces)
	if c.ForwardAuth != "" {
		p.notYet("authz.forward_auth")
	}
	if len(c.TLS) > 0 {
		p.notYet("authz.tls")
	}
}

// servers gives the addresses of server, one by one.
func (c agentConfig) servers() []string {
	var out []string
	for _, s := range strings.Split(c.Server, ",") {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// domain is the trust domain of a configuration that has no problems.
func (c agentConfig) domain() (spiffeid.TrustDomain, error) {
	return svid.ParseTrustDomain(c.TrustDomain)
}
