package testdomain_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/internal/testdomain"
)

// apart is a trust domain whose authority and agent are processes of their own, with web and api behind real Envoys.
type apart struct {
	server   *testdomain.Server
	agent    *testdomain.Agent
	web, api *testdomain.Side
}

// onOne is the node of apart.
const onOne = "join_token:name:one"

func newApart(t *testing.T) *apart {
	t.Helper()
	local := func() string { return fmt.Sprintf("127.0.0.1:%d", testdomain.Port(t)) }
	b, here := testdomain.Built(t), testdomain.Host{}
	d := &apart{server: testdomain.NewServer(t, b, here, testdomain.Settings{"listen": local(), "metrics": local()})}
	d.server.Start(t)

	folder := testdomain.ShortFolder(t)
	writeFile(t, filepath.Join(folder, "authz.rego"), webReadsOrders("1"))
	authz := filepath.Join(testdomain.ShortFolder(t), "authz.sock")
	d.agent = testdomain.NewAgent(t, b, here, testdomain.Settings{"metrics": local(),
		"authz": fmt.Sprintf("{listen: [\"unix://%s\"], policy: %q}", authz, folder)})
	d.agent.Join(t, d.server.Token(t, "--node", "one"))
	d.agent.Start(t)

	d.web, d.api = testdomain.Sides(t, testdomain.Node{TrustDomain: testdomain.TrustDomain, Agent: d.socket(), Authz: authz})
	d.server.Apply(t, proxyEntry(d.web, onOne, "1h")+proxyEntry(d.api, onOne, "1h"))
	d.web.Start(t)
	d.api.Start(t)
	d.web.Reaches(t, 30*time.Second, http.StatusOK, "GET", "/orders")
	return d
}

// socket is the path of the Workload API.
func (d *apart) socket() string { return strings.TrimPrefix(d.agent.Socket(), "unix://") }

// untilAuthority waits until the agent, which can do its job all the while, says whether it follows a server.
func (d *apart) untilAuthority(t *testing.T, followed bool) {
	t.Helper()
	testdomain.Until(t, 30*time.Second, fmt.Sprintf("/healthz says whether a server is followed: %v", followed), func() error {
		h, err := d.agent.Health(t)
		if err == nil && h.Status != "ok" {
			t.Fatalf("the agent's /healthz: %+v; want ok", h)
		}
		if err == nil && (h.Parts["authority"] == "ok") != followed {
			err = fmt.Errorf("it says %+v", h)
		}
		return err
	})
}

func TestTrafficGoesOnWithoutAuthority(t *testing.T) {
	t.Parallel()
	d := newApart(t)
	d.untilAuthority(t, true)
	kept := constantly(t, func() (testdomain.Answer, error) { return d.web.Call("GET", "/orders", nil) })
	fresh := constantly(t, func() (testdomain.Answer, error) { return d.web.CallFresh("GET", "/orders", nil) })

	d.server.Stop(t)
	d.untilAuthority(t, false)
	kept.more(t, 100)
	fresh.more(t, 100)
	// An Envoy that comes now gets what the agent holds.
	late, _ := testdomain.Sides(t, testdomain.Node{TrustDomain: testdomain.TrustDomain, Agent: d.socket(), Authz: d.web.AuthzSocket})
	late.Path, late.Peer = d.web.Path, d.api.Inbound
	late.Start(t)
	late.Reaches(t, 30*time.Second, http.StatusOK, "GET", "/orders")

	d.server.Start(t)
	d.server.Apply(t, fmt.Sprintf("name: late\npath: /late\nwhere: [%q]\nmatch: [\"unix:uid:%d\"]\n", onOne, os.Getuid()))
	untilHeld(t, socketConn(t, d.socket()), 30*time.Second, "spiffe://"+testdomain.TrustDomain+"/late")
	d.untilAuthority(t, true)
	kept.allAnswered(t, "connections kept")
	fresh.allAnswered(t, "a handshake each")
}

func TestEnvoyDeniesWhileTheAgentIsDown(t *testing.T) {
	t.Parallel()
	d := newApart(t)
	before, err := d.web.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	d.agent.Kill()
	asked := d.api.Asked()
	for range 20 {
		for _, call := range []func(string, string, http.Header) (testdomain.Answer, error){d.web.Call, d.web.CallFresh} {
			if a, err := call("GET", "/orders", nil); err != nil || a.Code != http.StatusForbidden || a.Got != nil {
				t.Fatalf("a call without decisions: %d %s %v, want 403", a.Code, a.Body, err)
			}
		}
	}
	if n := d.api.Asked() - asked; n != 0 {
		t.Errorf("%d calls reached api undecided", n)
	}

	d.agent.Start(t)
	back := time.Now()
	d.web.Reaches(t, 30*time.Second, http.StatusOK, "GET", "/orders")
	t.Logf("agent healthy again to first request answered: %s", time.Since(back).Round(time.Millisecond))
	// The keys went with the agent, so the Envoys get new certificates by themselves.
	testdomain.Until(t, 60*time.Second, "web has a new certificate", func() error {
		now, err := d.web.Certificate()
		if err == nil && now.Serial == before.Serial {
			err = fmt.Errorf("it shows %s still", now.Serial)
		}
		return err
	})
}
