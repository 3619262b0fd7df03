package testdomain_test

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/writ-dev/writ/internal/testdomain"
)

// setRoutes has a route that names its policy set, one that names a set that is not there, and a virtual host of its own for a name.
const setRoutes = `[
  {name: pinned, domains: [pinned.example.org], routes: [{match: {prefix: /}, route: {cluster: service}}]},
  {name: service, domains: ["*"], routes: [
    {match: {prefix: /admin}, route: {cluster: service}, typed_per_filter_config: &named {envoy.filters.http.ext_authz: {
      "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute,
      check_settings: {context_extensions: {writ_policy_set: admin}}}}},
    {match: {prefix: /lost}, route: {cluster: service}, typed_per_filter_config: {envoy.filters.http.ext_authz: {
      "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute,
      check_settings: {context_extensions: {writ_policy_set: lost}}}}},
    {match: {prefix: /}, route: {cluster: service}}]}]`

// One agent decides by the set that Envoy's route names, by the upstream's attested identity, and by a host that a virtual host pins.
// Nothing that a client sends makes it another one.
func TestEnvoyChoosesThePolicySet(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	config := "agent: {authz: {sets: {"
	for name, choice := range map[string]string{"admin": "", "web": "destinations: [spiffe://dev.writ/web]", "api": `destinations: ["spiffe://dev.writ/*"]`,
		"pinned": "hosts: [pinned.example.org], hosts_pinned: true"} {
		if err := os.Mkdir(filepath.Join(folder, name), 0o700); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(folder, name, "a.rego"), `package envoy.authz
allow := {"allowed": true, "headers": {"x-set": "`+name+`"}}
`)
		config += name + ": {policy: " + filepath.Join(folder, name) + ", " + choice + "}, "
	}
	writeFile(t, filepath.Join(folder, "dev.yaml"), config+"}}}\n")
	m := &mesh{Domain: testdomain.New(t, testdomain.Built(t), "--config", filepath.Join(folder, "dev.yaml"), "--entries", os.DevNull)}
	m.web, m.api = testdomain.Sides(t, m.Node())
	m.api.VirtualHosts = setRoutes
	m.up(t, "1h")

	for _, row := range []struct {
		name, target, host string
		code               int
		set                string
	}{
		{"the destination's", "/orders", "", 200, "api"},
		{"the route's", "/admin/x", "", 200, "admin"},
		{"a route's that is not there", "/lost", "", 503, ""},
		// Envoy shows its own certificate as the destination, so that identity decides before the host does.
		{"a host, where the destination has a set", "/orders", "pinned.example.org", 200, "api"},
	} {
		t.Run(row.name, func(t *testing.T) {
			header := http.Header{"Writ_policy_set": {"web"}, "X-Writ-Policy-Set": {"web"}}
			a, err := m.web.CallHost(row.host, "GET", row.target, header)
			if err != nil || a.Code != row.code {
				t.Fatalf("%s answers %d %s, %v; want %d", row.target, a.Code, a.Body, err, row.code)
			}
			if row.code == 200 && a.Got.Header.Get("X-Set") != row.set {
				t.Errorf("set %q decided, want %q", a.Got.Header.Get("X-Set"), row.set)
			}
		})
	}
}
