// Whole trust domains with real Envoys: mutual TLS by SDS, each request decided by ext_authz, configured as examples/envoy shows.
package testdomain_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/internal/testdomain"
)

// mesh is a writ dev with web and api behind real Envoys.
type mesh struct {
	*testdomain.Domain
	web, api *testdomain.Side
	policy   string // the folder
}

// newMesh starts writ dev, with further arguments, and the services; the entries and the Envoys are for the test to bring.
func newMesh(t *testing.T, more ...string) *mesh {
	t.Helper()
	m := &mesh{policy: t.TempDir()}
	m.writePolicy(t, "authz.rego", webReadsOrders("1"))
	m.Domain = testdomain.New(t, testdomain.Built(t), append([]string{"--policy", m.policy, "--entries", os.DevNull}, more...)...)
	m.web, m.api = testdomain.Sides(t, m.Node())
	return m
}

// writePolicy replaces a file of the policy set at once, as an editor does.
func (m *mesh) writePolicy(t *testing.T, name, text string) {
	writeFile(t, filepath.Join(m.policy, name), text)
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	staged := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(staged, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(staged, path); err != nil {
		t.Fatal(err)
	}
}

// webReadsOrders lets web read orders and shows the upstream what the policy saw.
func webReadsOrders(edition string) string {
	return `package envoy.authz

default allow := {"allowed": false, "reason": "no rule allows this caller to do this"}

allow := {"allowed": true, "rule": "web reads orders", "headers": {
	"x-seen-source": input.source.spiffe_id,
	"x-seen-entry": object.get(input.source, "entry", "none"),
	"x-edition": "` + edition + `",
}} if {
	input.source.spiffe_id == sprintf("spiffe://%s/web", [input.destination.trust_domain])
	input.source.certificate
	input.attributes.request.http.method == "GET"
	input.parsed_path[0] == "orders"
}
`
}

// proxyEntry is one for the Envoy of a side.
func proxyEntry(s *testdomain.Side, where, ttl string) string {
	return fmt.Sprintf("---\nname: %s\npath: /%[1]s\nttl: %s\nwhere: [%q]\nmatch: [\"unix:uid:%d\", \"unix:path:%s\"]\n",
		s.Name, ttl, where, os.Getuid(), s.Path)
}

// onDev is the node of writ dev.
const onDev = "join_token:name:dev"

// up brings entries and Envoys, and waits until web reaches api.
func (m *mesh) up(t *testing.T, ttl string) {
	t.Helper()
	m.Apply(t, proxyEntry(m.web, onDev, ttl)+proxyEntry(m.api, onDev, ttl))
	m.web.Start(t)
	m.api.Start(t)
	m.web.Reaches(t, 30*time.Second, http.StatusOK, "GET", "/orders")
}

func TestEnvoyAllowsAndDeniesByAttestedIdentity(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.up(t, "1h")
	forged := http.Header{"X-Writ-Decision-Id": {"forged", "twice"}, "X-Seen-Source": {"spiffe://dev.writ/admin"}}

	allowed, err := m.web.Call("GET", "/orders/7", forged)
	if err != nil {
		t.Fatal(err)
	}
	if allowed.Code != http.StatusOK || allowed.Got == nil {
		t.Fatalf("web reads an order: %d %s", allowed.Code, allowed.Body)
	}
	if diff := cmp.Diff([]string{m.web.ID}, allowed.Got.Header["X-Seen-Source"]); diff != "" {
		t.Errorf("the policy saw another source than web (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"web"}, allowed.Got.Header["X-Seen-Entry"]); diff != "" {
		t.Errorf("the policy saw another entry than web's (-want +got):\n%s", diff)
	}
	ids := allowed.Got.Header["X-Writ-Decision-Id"]
	if len(ids) != 1 || strings.Contains(ids[0], "forged") {
		t.Fatalf("the upstream got decision ids %q, want one, and not the client's", ids)
	}
	if id := allowed.Header.Get("X-Writ-Decision-Id"); id != "" {
		t.Errorf("the client got the decision id %s of an allowed call", id)
	}
	want := testdomain.Decision{ID: ids[0], Source: m.web.ID, Method: "GET", Path: "/orders/7", Allow: true, Rule: "web reads orders"}
	found := testdomain.FindDecision(t, m.Decisions, ids[0])
	want.Revision = found.Revision
	if diff := cmp.Diff(want, found); diff != "" || found.Revision == "" {
		t.Errorf("record of the allowed call (-want +got):\n%s", diff)
	}

	asked := m.api.Asked()
	denied, err := m.web.Call("DELETE", "/orders/7", forged)
	if err != nil {
		t.Fatal(err)
	}
	if denied.Code != http.StatusForbidden || denied.Got != nil || m.api.Asked() != asked {
		t.Errorf("web deletes an order: %d %s; %d calls reached api", denied.Code, denied.Body, m.api.Asked()-asked)
	}
	ids = denied.Header["X-Writ-Decision-Id"]
	if len(ids) != 1 || strings.Contains(ids[0], "forged") || ids[0] == want.ID {
		t.Fatalf("the denied call has decision ids %q, want one of its own", ids)
	}
	want = testdomain.Decision{ID: ids[0], Revision: want.Revision, Source: m.web.ID, Method: "DELETE", Path: "/orders/7",
		Reason: "no rule allows this caller to do this", Rule: found.Rule}
	found = testdomain.FindDecision(t, m.Decisions, ids[0])
	want.Rule = found.Rule
	if diff := cmp.Diff(want, found); diff != "" {
		t.Errorf("record of the denied call (-want +got):\n%s", diff)
	}

	answer, err := m.api.Call("GET", "/orders", nil)
	if err != nil {
		t.Fatal(err)
	}
	if answer.Code != http.StatusForbidden || answer.Got != nil {
		t.Errorf("api reads orders of web, which no rule allows: %d %s", answer.Code, answer.Body)
	}
}

// traffic makes calls without a pause, one after the other, until it is stopped.
type traffic struct {
	stop, ended chan struct{}
	once        sync.Once
	made        atomic.Int64
	failed      []string // read after ended
}

func constantly(t *testing.T, call func() (testdomain.Answer, error)) *traffic {
	c := &traffic{stop: make(chan struct{}), ended: make(chan struct{})}
	pace := time.NewTicker(10 * time.Millisecond)
	start := time.Now()
	go func() {
		defer close(c.ended)
		defer pace.Stop()
		for {
			select {
			case <-c.stop:
				return
			case <-pace.C:
			}
			a, err := call()
			c.made.Add(1)
			if err != nil || a.Code != http.StatusOK {
				c.failed = append(c.failed, fmt.Sprintf("after %s: %d %s %v", time.Since(start).Round(time.Millisecond), a.Code, a.Body, err))
			}
		}
	}()
	t.Cleanup(c.end)
	return c
}

func (c *traffic) end() {
	c.once.Do(func() { close(c.stop) })
	<-c.ended
}

// more waits for n further calls, answered or not.
func (c *traffic) more(t *testing.T, n int64) {
	t.Helper()
	goal := c.made.Load() + n
	testdomain.Until(t, 60*time.Second, fmt.Sprintf("%d more calls", n), func() error {
		if made := c.made.Load(); made < goal {
			return fmt.Errorf("%d to go", goal-made)
		}
		return nil
	})
}

// allAnswered ends the traffic; every call must have got 200.
func (c *traffic) allAnswered(t *testing.T, what string) {
	t.Helper()
	c.end()
	t.Logf("%s: %d calls", what, c.made.Load())
	if len(c.failed) > 0 {
		t.Errorf("%s: %d of %d calls failed, the first ones %q", what, len(c.failed), c.made.Load(), c.failed[:min(3, len(c.failed))])
	}
}

// soon bounds what is promised within 250 ms or so: the machine that runs the tests may be busy with others.
const soon = 2 * time.Second

// within logs how long something took and fails the test if that was not soon.
func within(t *testing.T, what string, since time.Time) {
	t.Helper()
	took := time.Since(since)
	t.Logf("%s: %s", what, took.Round(time.Millisecond))
	if took > soon {
		t.Errorf("%s took %s, more than %s", what, took, soon)
	}
}

func TestDeletedEntryIsServedNoMore(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	// Every process of this user is web here, so that the test may ask as one.
	web := fmt.Sprintf("---\nname: web\npath: /web\nwhere: [%q]\nmatch: [\"unix:uid:%d\"]\n", onDev, os.Getuid())
	m.Apply(t, web+proxyEntry(m.api, onDev, "1h"))
	m.web.Delta = true // so that it hears of the removal
	m.web.Start(t)
	m.api.Start(t)
	before := m.web.Reaches(t, 30*time.Second, http.StatusOK, "GET", "/orders")
	if seen := before.Got.Header.Get("X-Seen-Entry"); seen != "web" {
		t.Fatalf("the policy sees the entry %q, want web", seen)
	}
	conn := socketConn(t, m.Node().Agent)
	svids := watchSVIDs(t, conn)
	if ids, err := holds(svids); err != nil || !slices.Contains(ids, m.web.ID) {
		t.Fatalf("this process holds %q, %v; want %s", ids, err, m.web.ID)
	}

	deleted := time.Now()
	m.Writ(t, 0, "", "entry", "delete", "web")
	if ids, err := holds(svids); status.Code(err) != codes.PermissionDenied {
		t.Fatalf("the open Workload API stream gave %q, %v; want PermissionDenied", ids, err)
	}
	within(t, "deleted to denied on the Workload API", deleted)
	if ids, err := holds(watchSVIDs(t, conn)); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a new Workload API stream gave %q, %v; want PermissionDenied", ids, err)
	}
	testdomain.Until(t, soon, "policies see no entry", func() error {
		a, err := m.web.Call("GET", "/orders", nil)
		if err == nil && (a.Code != http.StatusOK || a.Got.Header.Get("X-Seen-Entry") != "none") {
			err = fmt.Errorf("%d %s", a.Code, a.Body)
		}
		return err
	})

	secrets := askSecrets(t, conn, "ROOTCA", m.web.ID)
	if diff := cmp.Diff([]string{"ROOTCA"}, nextSecrets(t, secrets)); diff != "" {
		t.Errorf("a new SDS stream (-want +got):\n%s", diff)
	}
	late, _ := testdomain.Sides(t, m.Node())
	late.Peer = m.api.Inbound
	late.Start(t)
	testdomain.Until(t, 30*time.Second, "a new Envoy waits for web's certificate", late.Waits)
	if a, err := late.Call("GET", "/orders", nil); err == nil && a.Code == http.StatusOK {
		t.Errorf("a new Envoy reaches api without a certificate: %v", a)
	}

	m.Apply(t, web)
	late.Reaches(t, 30*time.Second, http.StatusOK, "GET", "/orders")
	if diff := cmp.Diff([]string{"ROOTCA", m.web.ID}, nextSecrets(t, secrets)); diff != "" {
		t.Errorf("the SDS stream once the entry is there again (-want +got):\n%s", diff)
	}
}

func TestEnvoyStartedBeforeItsEntriesComesUp(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.api.Delta = true
	for _, s := range []*testdomain.Side{m.web, m.api} {
		s.Start(t)
		testdomain.Until(t, 30*time.Second, "Envoy waits for its certificate", s.Waits)
	}
	m.Apply(t, proxyEntry(m.web, onDev, "1h")+proxyEntry(m.api, onDev, "1h"))
	applied := time.Now()
	m.web.Reaches(t, 30*time.Second, http.StatusOK, "GET", "/orders")
	within(t, "entries applied to first request answered", applied)
}

// policyHealth is what /healthz says of the policy set.
func (m *mesh) policyHealth() (h struct {
	Policy struct {
		Revision  string
		LastError string `json:"last_error"`
	}
}, err error) {
	response, err := http.Get(m.Health)
	if err != nil {
		return h, err
	}
	defer response.Body.Close()
	return h, json.NewDecoder(response.Body).Decode(&h)
}

// untilPolicy waits until /healthz shows that the folder as it stands was refused, or taken.
func (m *mesh) untilPolicy(t *testing.T, refused bool) (revision string) {
	t.Helper()
	testdomain.Until(t, 10*time.Second, fmt.Sprintf("/healthz says whether the set was refused: %v", refused), func() error {
		h, err := m.policyHealth()
		if err == nil && (h.Policy.LastError != "") != refused {
			err = fmt.Errorf("it says %+v", h)
		}
		revision = h.Policy.Revision
		return err
	})
	return revision
}

func TestPolicyGoesLiveOnlyWhenGood(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.up(t, "1h")
	calls := constantly(t, func() (testdomain.Answer, error) { return m.web.Call("GET", "/orders", nil) })
	edition := func() (string, error) {
		a, err := m.web.Call("GET", "/orders", nil)
		if err != nil || a.Got == nil {
			return "", fmt.Errorf("%d %s %v", a.Code, a.Body, err)
		}
		return a.Got.Header.Get("X-Edition"), nil
	}
	for _, next := range []string{"2", "3", "4"} {
		m.writePolicy(t, "authz.rego", webReadsOrders(next))
		written := time.Now()
		testdomain.Until(t, 10*time.Second, "edition "+next+" decides", func() error {
			seen, err := edition()
			if err == nil && seen != next {
				err = fmt.Errorf("edition %s does", seen)
			}
			return err
		})
		within(t, "edition "+next+" written to live in Envoy", written)
	}
	live := m.untilPolicy(t, false)
	for _, bad := range []struct{ name, file, text string }{
		{"a set that does not parse", "authz.rego", "package envoy.authz\n\nallow if input."},
		{"a set that reads what no input has", "authz.rego", "package envoy.authz\n\nallow if input.attributes.request.http.metod == \"GET\""},
		{"a set without its decision", "authz.rego", "package other\n\nallow := true"},
		{"a set whose test fails", "authz_test.rego", "package envoy.authz_test\n\ntest_all if data.envoy.authz.allow.allowed with input as {}"},
		{"data that does not parse", "data.json", "{"},
		{"an unknown key in policy.yaml", "policy.yaml", "decisions: envoy/authz/allow\n"},
	} {
		t.Run(bad.name, func(t *testing.T) {
			m.writePolicy(t, bad.file, bad.text)
			if revision := m.untilPolicy(t, true); revision != live {
				t.Errorf("revision %s is live, not %s", revision, live)
			}
			if seen, err := edition(); err != nil || seen != "4" {
				t.Errorf("edition %q decides, %v; want 4", seen, err)
			}
			if err := os.Remove(filepath.Join(m.policy, bad.file)); err != nil {
				t.Fatal(err)
			}
			m.writePolicy(t, "authz.rego", webReadsOrders("4"))
			if revision := m.untilPolicy(t, false); revision != live {
				t.Errorf("revision %s is live once mended, not %s", revision, live)
			}
		})
	}
	t.Run("an emptied folder", func(t *testing.T) {
		if err := os.Remove(filepath.Join(m.policy, "authz.rego")); err != nil {
			t.Fatal(err)
		}
		m.untilPolicy(t, true)
		if seen, err := edition(); err != nil || seen != "4" {
			t.Errorf("edition %q decides, %v; want 4", seen, err)
		}
	})
	calls.allAnswered(t, "while policies changed")
}

func TestWithoutPolicyEverythingIsDenied(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.up(t, "1h")
	good := webReadsOrders("1")
	for _, row := range []struct{ name, text string }{
		{"an empty folder", ""},
		{"a broken set", "package envoy.authz\n\nallow if input."},
	} {
		t.Run(row.name, func(t *testing.T) {
			m.Stop(t)
			m.writePolicy(t, "authz.rego", row.text)
			if row.text == "" {
				if err := os.Remove(filepath.Join(m.policy, "authz.rego")); err != nil {
					t.Fatal(err)
				}
			}
			asked := m.api.Asked()
			m.Restart(t)
			a := m.web.Reaches(t, 30*time.Second, http.StatusServiceUnavailable, "GET", "/orders")
			d := testdomain.FindDecision(t, m.Decisions, a.Header.Get("X-Writ-Decision-Id"))
			if d.Allow || !strings.HasPrefix(d.Reason, "P4") || d.Revision != "" || m.api.Asked() != asked {
				t.Errorf("decision %+v, %d calls reached api; want a denial that names what is wrong", d, m.api.Asked()-asked)
			}
			m.untilPolicy(t, true)
			m.writePolicy(t, "authz.rego", good)
			m.web.Reaches(t, 10*time.Second, http.StatusOK, "GET", "/orders")
		})
	}
}

func TestAmbiguousPathsThroughEnvoy(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.up(t, "1h")
	for _, row := range []struct {
		name, target string
		code         int
		byWrit       bool // decided by writ, not by Envoy before it
		reaches      string
	}{
		{"a plain path", "/orders/7", 200, true, "/orders/7"},
		{"a trailing slash", "/orders/", 200, true, "/orders/"},
		{"a percent sign, escaped", "/orders/%2561", 200, true, "/orders/%2561"},
		{"two slashes, which Envoy merges first", "/orders//7", 200, true, "/orders/7"},
		{"dots out of what is allowed, which Envoy resolves first", "/orders/../accounts", 403, true, ""},
		{"the same, escaped", "/orders/%2e%2e/accounts", 403, true, ""},
		{"dots into what is allowed", "/accounts/../orders", 200, true, "/orders"},
		{"dots with a parameter, which Envoy resolves first", "/orders/..;/accounts", 403, true, ""},
		{"escaped dots with a parameter", "/orders/%2e%2e;x/accounts", 400, true, ""},
		{"an escaped slash", "/orders/..%2Faccounts", 400, false, ""},
		{"an escaped backslash", "/orders/..%5Caccounts", 400, false, ""},
		{"an escaped zero", "/orders/%00", 400, false, ""},
		{"escaped bytes that are not UTF-8", "/orders/%FF", 400, true, ""},
		{"an invalid escape", "/orders/%zz", 400, true, ""},
		{"a semicolon in the query", "/orders?a=1;b=2", 400, true, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			asked := m.api.Asked()
			a, err := m.web.Call("GET", row.target, nil)
			if err != nil {
				t.Fatal(err)
			}
			if a.Code != row.code {
				t.Errorf("%s answers %d %q, want %d", row.target, a.Code, a.Body, row.code)
			}
			if reached := m.api.Asked() - asked; (a.Got != nil) != (reached == 1) || reached > 1 {
				t.Errorf("%d calls reached api", reached)
			}
			if a.Got == nil {
				if row.reaches != "" || (a.Header.Get("X-Writ-Decision-Id") != "") != row.byWrit {
					t.Errorf("refused with headers %v; by writ: want %v", a.Header, row.byWrit)
				}
			} else if a.Got.Path != row.reaches {
				t.Errorf("api was asked for %s, want %s", a.Got.Path, row.reaches)
			}
		})
	}
}

func TestSeveralValuesOfOneHeaderPassThroughEnvoy(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.writePolicy(t, "authz.rego", `package envoy.authz

allow := {
	"allowed": true,
	"headers": {"x-many": ["a", "b", "c"], "x-one": "1"},
	"response_headers_to_add": {"x-back": ["d", "e", "f"]},
	"request_headers_to_remove": ["x-secret"],
} if input.attributes.request.http.method == "GET"

allow := {"allowed": false, "headers": {"x-many": ["g", "h", "i"]}, "body": "no\n", "http_status": 429} if input.attributes.request.http.method == "DELETE"
`)
	m.up(t, "1h")
	sent := http.Header{"X-Many": {"forged"}, "X-One": {"forged"}, "X-Secret": {"s"}}
	testdomain.Until(t, 10*time.Second, "the set is live", func() error {
		a, err := m.web.Call("GET", "/orders", sent)
		if err == nil && (a.Got == nil || a.Got.Header.Get("X-One") == "forged") {
			err = fmt.Errorf("%d %s", a.Code, a.Body)
		}
		return err
	})
	allowed, err := m.web.Call("GET", "/orders", sent)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{"X-Many": allowed.Got.Header["X-Many"], "X-One": allowed.Got.Header["X-One"],
		"X-Secret": allowed.Got.Header["X-Secret"], "X-Back": allowed.Header["X-Back"]}
	want := map[string][]string{"X-Many": {"a,b,c"}, "X-One": {"1"}, "X-Secret": nil, "X-Back": {"d", "e", "f"}} // Envoy joins what a request has
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("headers of an allowed call (-want +got):\n%s", diff)
	}

	denied, err := m.web.Call("DELETE", "/orders", nil)
	if err != nil {
		t.Fatal(err)
	}
	if denied.Code != http.StatusTooManyRequests || denied.Body != "no\n" {
		t.Errorf("the denied call: %d %q", denied.Code, denied.Body)
	}
	if diff := cmp.Diff([]string{"g", "h", "i"}, denied.Header["X-Many"]); diff != "" {
		t.Errorf("headers of a denied call (-want +got):\n%s", diff)
	}
}
