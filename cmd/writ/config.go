package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/internal/strictyaml"
	"github.com/writ-dev/writ/svid"
)

// devConfig is the file of `writ dev --config`: the daemons' own keys, all optional.
type devConfig struct {
	Server serverConfig `yaml:"server"`
	Agent  agentConfig  `yaml:"agent"`
}

// problems collects all that is wrong with a configuration, each with the key it is about.
type problems []string

func (p *problems) add(key, format string, args ...any) {
	*p = append(*p, key+": "+fmt.Sprintf(format, args...))
}

// err is one error that names the file and every problem, nil where there is none.
func (p problems) err(file string) error {
	if len(p) == 0 {
		return nil
	}
	code := fault.BadConfig
	if strings.HasSuffix(p[0], notThereYet) {
		code = fault.NotThereYet
	}
	if file == "" {
		return fault.New(fault.Invalid, nil, "the command line asks for what cannot be").Because(p...).With(code, "writ dev --help")
	}
	return fault.New(fault.Invalid, nil, "configuration "+file+" is wrong").Because(p...).
		With(code, "edit it, then `writ config validate "+file+"`")
}

const notThereYet = "is not there yet: this version does not serve it"

func (p *problems) notYet(key string) { p.add(key, notThereYet) }

// opens adds why whoever opens what a key names would refuse it.
func (p *problems) opens(key string, err error) {
	var f *fault.Error
	if !errors.As(err, &f) {
		return
	}
	what := strings.TrimPrefix(f.What, key+": ")
	if thing, found := strings.CutSuffix(what, "is not there yet"); found {
		what = thing + notThereYet
	}
	p.add(key, "%s", what)
}

func (p *problems) trustDomain(name string) {
	if name == "" {
		p.add("trust_domain", "is missing: a name like example.org")
	} else if _, err := svid.ParseTrustDomain(name); err != nil {
		p.add("trust_domain", "%v", err)
	}
}

func (p *problems) address(key, address string) {
	if _, _, err := net.SplitHostPort(address); err != nil {
		p.add(key, "%q is not HOST:PORT: %v", address, err)
	}
}

// loopback refuses an address that others could reach: it is served without TLS.
func (p *problems) loopback(key, address string) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		p.add(key, "%q is not HOST:PORT: %v", address, err)
		return
	}
	if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
		p.add(key, "%q is not a loopback address, and it is served without TLS", address)
	}
}

// receiver refuses an address that what is sent to it would reach in clear over a network; nil where it is none.
func (p *problems) receiver(key, address string) *url.URL {
	u, err := url.Parse(address)
	switch {
	case err == nil && u.User != nil:
		p.add(key, "has a user or a password; a token stands in token_file") // which no error shows
		return nil
	case err != nil || u.Hostname() == "" || u.Port() != "" && !isPort(u.Port()):
		p.add(key, "%q is no URL of a receiver", address)
		return nil
	case u.Scheme != "https" && !(u.Scheme == "http" && isLoopback(u.Hostname())):
		p.add(key, "%q is neither https nor on loopback: all that is sent, and the token, would travel in clear", address)
		return nil
	}
	return u
}

func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// longestSocketPath is what sun_path holds beside its final NUL (unix(7)).
const longestSocketPath = 107

func (p *problems) socket(key, path string) {
	switch {
	case strings.Contains(path, "://"): // SPIFFE_Workload_Endpoint section 3: no TCP, where nobody knows who calls
		p.add(key, "%q is no Unix socket: give a path, or a URI that begins with unix:", path)
	case len(path) > longestSocketPath:
		p.add(key, "%s has %d bytes; a Unix socket's path has at most %d", path, len(path), longestSocketPath)
	}
}

func (p *problems) log(c logConfig) {
	if _, err := c.level(); err != nil {
		p.add("log.level", "%q is none of debug, info, warn, error", c.Level)
	}
	if c.Format != "" && c.Format != "json" && c.Format != "text" {
		p.add("log.format", "%q is neither json nor text", c.Format)
	}
}

// readConfig decodes a configuration file strictly; no file name leaves into as it is.
func readConfig(file string, into any) error {
	if file == "" {
		return nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return fault.New(fault.Invalid, err, "read configuration").With(fault.BadConfig, "name a file that exists with --config")
	}
	if err := strictyaml.Decode(file, data, into); err != nil {
		return fault.New(fault.Invalid, nil, "configuration "+file+" is wrong").Because(strings.Split(err.Error(), "\n")...).
			With(fault.BadConfig, "edit it, then `writ config validate "+file+"`")
	}
	return nil
}

func newConfigCommand() *cobra.Command {
	return group("config", "Configuration files", &cobra.Command{
		Use:   "validate FILE",
		Short: "Say all that is wrong with server.yaml, agent.yaml or the file of writ dev",
		Args:  checked(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := validateConfig(args[0]); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is valid\n", clean(args[0]))
			return nil
		},
	})
}

// validateConfig finds out whose file it is by the keys that only one of them has.
func validateConfig(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return fault.New(fault.Invalid, err, "read configuration").With(fault.BadConfig, "name a file that exists")
	}
	var keys map[string]any
	_ = yaml.Unmarshal(data, &keys) // what does not parse is said by the strict decoding below
	_, sections := keys["server"].(map[string]any)
	_, agents := keys["agent"].(map[string]any)
	switch {
	case sections || agents:
		var c devConfig
		err := readConfig(file, &c)
		return errors.Join(err, devProblems(c, err == nil).err(file))
	case hasAny(keys, "listen", "addresses", "ca", "svid", "store", "name", "audit", "federation", "oidc") || verifies(keys["attest"]):
		var c serverConfig
		if err := readConfig(file, &c); err != nil {
			return err
		}
		return c.withDefaults().problems().err(file)
	default:
		var c agentConfig
		if err := readConfig(file, &c); err != nil {
			return err
		}
		return c.withDefaults().problems().err(file)
	}
}

// devProblems checks both sections as `writ dev` would use them.
func devProblems(c devConfig, decoded bool) problems {
	if !decoded {
		return nil
	}
	c.Server.TrustDomain, c.Agent.TrustDomain = defaultDevDomain, defaultDevDomain
	var all problems
	for _, p := range c.Server.withDefaults().problems() {
		all = append(all, "server."+p)
	}
	for _, p := range c.Agent.withDefaults().problems() {
		all = append(all, "agent."+p)
	}
	return all
}

// verifies says whether an attest section is a server's.
func verifies(section any) bool {
	methods, _ := section.(map[string]any)
	x509pop, _ := methods["x509pop"].(map[string]any)
	return hasAny(methods, "join_token") || hasAny(x509pop, "roots")
}

func hasAny(keys map[string]any, names ...string) bool {
	for _, name := range names {
		if _, ok := keys[name]; ok {
			return true
		}
	}
	return false
}
