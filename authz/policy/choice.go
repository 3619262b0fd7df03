package policy

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/writ-dev/writ/authz"
	"github.com/writ-dev/writ/svid"
)

// ContextKey is the context extension by which a route of the proxy names its policy set. It stands in the proxy's configuration,
// out of a client's reach.
const ContextKey = "writ_policy_set"

// Choice says which requests a policy set decides, beside those whose route names it by ContextKey.
type Choice struct {
	Destinations []string // the SPIFFE IDs of upstreams; one that ends in /* is all below it
	Hosts        []string // the Host as the client sends it, port and all, in any case
	HostsPinned  bool     // the proxy's virtual host has these names only: a client that names another host reaches another upstream
	Any          bool     // whatever no other set is for
}

var setName = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,62}$`)

// CheckChoices says all that is wrong with choices, by the names of their sets: also that two sets are for the same requests.
func CheckChoices(choices map[string]Choice) error {
	_, err := newChooser(choices)
	return err
}

// A chooser finds the set of a request. What the proxy's configuration or the upstream's identity says counts before the host, which
// a client writes; of two destinations that fit, the longer.
type chooser struct {
	names        map[string]bool
	destinations map[string]string // by SPIFFE ID
	below        []below           // longest first
	hosts        map[string]string // in lower case
	spelled      map[string]bool   // the same without port and dots at the end
	any          string
}

// below is all SPIFFE IDs that begin with prefix, which ends in a slash.
type below struct{ prefix, set string }

func newChooser(choices map[string]Choice) (*chooser, error) {
	c := &chooser{names: map[string]bool{}, destinations: map[string]string{}, hosts: map[string]string{}, spelled: map[string]bool{}}
	var all []error
	for _, name := range slices.Sorted(maps.Keys(choices)) {
		for _, err := range c.add(name, choices[name]) {
			all = append(all, fmt.Errorf("%s: %w", name, err))
		}
	}
	slices.SortFunc(c.below, func(a, b below) int { return len(b.prefix) - len(a.prefix) })
	return c, errors.Join(all...)
}

func (c *chooser) add(name string, choice Choice) (all []error) {
	switch {
	case !setName.MatchString(name):
		all = append(all, errors.New("a set's name is of a-z, 0-9, dot, dash and underscore, up to 63 of them"))
	case name == authz.NoSetName:
		all = append(all, errors.New("is what metrics say where no set decides; name it otherwise"))
	}
	c.names[name] = true
	for _, d := range choice.Destinations {
		if err := c.addDestination(name, d); err != nil {
			all = append(all, fmt.Errorf("destinations: %w", err))
		}
	}
	if len(choice.Hosts) > 0 && !choice.HostsPinned {
		all = append(all, errors.New("hosts: a client names its host, and with it would choose its policy; say hosts_pinned: true "+
			"where the proxy's virtual host has these names only"))
	}
	for _, h := range choice.Hosts {
		if other, taken := c.hosts[lower(h)]; taken || h == "" || strings.Contains(h, "*") {
			all = append(all, fmt.Errorf("hosts: %q %s", h, whyNot(other, taken, "is no host; wildcards are not for hosts")))
		}
		c.hosts[lower(h)], c.spelled[bare(lower(h))] = name, true
	}
	if choice.Any {
		if c.any != "" {
			all = append(all, fmt.Errorf("any: is %s already", c.any))
		}
		c.any = name
	}
	return all
}

func (c *chooser) addDestination(name, destination string) error {
	parent, isBelow := strings.CutSuffix(destination, "/*")
	if _, err := svid.ParseID(parent); err != nil {
		return fmt.Errorf("%q: %w", destination, err)
	}
	other, taken := c.destinations[destination]
	if isBelow {
		prefix := parent + "/"
		i := slices.IndexFunc(c.below, func(b below) bool { return b.prefix == prefix })
		if taken = i >= 0; taken {
			other = c.below[i].set
		}
		c.below = append(c.below, below{prefix, name})
	} else {
		c.destinations[destination] = name
	}
	if taken {
		return fmt.Errorf("%q %s", destination, whyNot(other, taken, ""))
	}
	return nil
}

func whyNot(other string, taken bool, otherwise string) string {
	if taken {
		return "is " + other + "'s already"
	}
	return otherwise
}

// choose gives the name of the set that a request is for; empty, and why, where it is for none.
func (c *chooser) choose(g *glance) (set, why string) {
	if g.routed {
		if c.names[g.set] {
			return g.set, ""
		}
		return "", fmt.Sprintf("its route names the policy set %q, which is not configured", g.set)
	}
	if set := c.byDestination(g.Destination); set != "" {
		return set, ""
	}
	host := lower(g.Host)
	if set := c.hosts[host]; set != "" {
		return set, ""
	}
	if c.spelled[bare(host)] {
		return "", "its host is one that a set is for, with another port or with a dot at its end"
	}
	if c.any != "" {
		return c.any, ""
	}
	return "", "no policy set is for it: its route names none, and none is for its destination or host"
}

// lower is for letters that a host has. Unicode has others whose small letter is one of these.
func lower(host string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, host)
}

// bare is a host without its port and the dots at its end: proxies can be told to leave both out when they look for a route, and whoever
// adds one must not get another set by it.
func bare(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.Contains(host[i:], "]") {
		host = host[:i]
	}
	return strings.TrimRight(host, ".")
}

// byDestination compares whole SPIFFE IDs, never the beginning of one that is none.
func (c *chooser) byDestination(principal string) string {
	if set := c.destinations[principal]; set != "" || len(c.below) == 0 {
		return set
	}
	if _, err := svid.ParseID(principal); err != nil {
		return ""
	}
	for _, b := range c.below {
		if strings.HasPrefix(principal, b.prefix) {
			return b.set
		}
	}
	return ""
}
