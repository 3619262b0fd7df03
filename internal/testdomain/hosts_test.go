package testdomain_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/internal/testdomain"
)

// TestNodesHoldWhatTheirProofsGrant: each way to prove a node leads to the entries whose `where` it fulfils, and to no other.
func TestNodesHoldWhatTheirProofsGrant(t *testing.T) {
	t.Parallel()
	hosts := testdomain.Hosts(t, 4)
	ca := newNodeCA(t)
	server := startServer(t, hosts[0], testdomain.Settings{"attest": ca.verifier()})
	server.Apply(t, entries(
		entry{"token", `["join_token:name:web-1"]`}, entry{"cert", `["x509pop:subject:db-1"]`},
		entry{"both", `["join_token:name:both-1", "x509pop:subject:both-1"]`}, entry{"half", `["x509pop:subject:both-1"]`},
		entry{"crossed", `["join_token:name:web-1", "x509pop:subject:db-1"]`})+
		"---\npath: /anywhere\nany: true\nmatch: [\"unix:uid:0\"]\n")

	byToken := testdomain.NewAgent(t, server.Binary, hosts[1], nil)
	byToken.Join(t, server.Token(t, "--node", "web-1", "--cidr", hosts[1].Address+"/32"))
	byToken.Start(t)
	byCert := ca.agent(t, server, hosts[2], "db-1", time.Hour)
	byCert.Start(t)
	byBoth := ca.agent(t, server, hosts[3], "both-1", time.Hour)
	byBoth.Join(t, server.Token(t, "--node", "both-1"))
	byBoth.Start(t)

	for _, row := range []struct {
		node *testdomain.Agent
		want []string
	}{
		{byToken, []string{"/anywhere", "/token"}},
		{byCert, []string{"/anywhere", "/cert"}},
		{byBoth, []string{"/anywhere", "/both", "/half"}},
	} {
		if diff := cmp.Diff(row.want, held(t, row.node)); diff != "" {
			t.Errorf("%s holds (-want +got):\n%s", row.node.Host.Name, diff)
		}
	}
	var methods []string
	for _, n := range server.Nodes(t) {
		methods = append(methods, n.Method+" "+n.State)
	}
	slices.Sort(methods)
	if diff := cmp.Diff([]string{"join_token attested", "join_token+x509pop attested", "x509pop attested"}, methods); diff != "" {
		t.Errorf("node list (-want +got):\n%s", diff)
	}
	elsewhere := testdomain.NewAgent(t, server.Binary, hosts[2], nil)
	if text := refusedJoin(t, elsewhere, server.Token(t, "--cidr", hosts[1].Address+"/32")); !strings.Contains(text, "P300") {
		t.Errorf("a token for another address ended with %s", text)
	}
}

// TestBannedNodeStaysOut: the ban ends what is open, the agent says so, and neither the old keys nor new evidence of it get in.
func TestBannedNodeStaysOut(t *testing.T) {
	t.Parallel()
	hosts := testdomain.Hosts(t, 3)
	ca := newNodeCA(t)
	server := startServer(t, hosts[0], testdomain.Settings{"attest": ca.verifier()})
	good := testdomain.NewAgent(t, server.Binary, hosts[1], nil)
	good.Join(t, server.Token(t, "--node", "good"))
	good.Start(t)
	bad := ca.agent(t, server, hosts[2], "bad-1", time.Hour)
	bad.Start(t)
	server.Writ(t, 0, "", "node", "ban", "x509pop:subject:bad-1", "--reason", "stolen")

	untilTurnedAway(t, bad, "banned")
	for _, n := range server.Nodes(t) {
		if banned := n.Method == "x509pop"; banned != (n.State == "banned") || banned == n.Connected {
			t.Errorf("after the ban: %+v", n)
		}
	}
	bad.Stop(t)
	bad.Launch(t)
	untilTurnedAway(t, bad, "banned")

	if text := refusedJoin(t, bad, server.Token(t, "--node", "bad-1")); !strings.Contains(text, "P3003") {
		t.Errorf("its node key joined by a new token: %s", text)
	}
	fresh := testdomain.NewAgent(t, server.Binary, hosts[1], bad.Settings)
	fresh.Settings["data_dir"] = fresh.DataDir()
	if text := refusedJoin(t, fresh, server.Token(t, "--node", "fresh")); !strings.Contains(text, "P3003") {
		t.Errorf("its certificate joined with a new node key: %s", text)
	}
	if _, err := good.Health(t); err != nil {
		t.Error(err)
	}
	good.UntilHealthy(t)
}

// TestEvictedNodeProvesItselfAnew where it can; a spent join token does not let its node in again.
func TestEvictedNodeProvesItselfAnew(t *testing.T) {
	t.Parallel()
	hosts := testdomain.Hosts(t, 3)
	ca := newNodeCA(t)
	server := startServer(t, hosts[0], testdomain.Settings{"attest": ca.verifier()})
	byCert := ca.agent(t, server, hosts[1], "db-1", time.Hour)
	byCert.Start(t)
	byToken := testdomain.NewAgent(t, server.Binary, hosts[2], nil)
	byToken.Join(t, server.Token(t, "--node", "web-1"))
	byToken.Start(t)
	before := map[string]testdomain.Listed{}
	for _, n := range server.Nodes(t) {
		before[n.Method] = n
		server.Writ(t, 0, "", "node", "evict", n.AgentID)
	}
	testdomain.Until(t, 20*time.Second, "the evicted x509pop node is back", func() error {
		for _, n := range server.Nodes(t) {
			if n.AgentID == before["x509pop"].AgentID && n.Connected && n.Serial != before["x509pop"].Serial {
				return nil
			}
		}
		return fmt.Errorf("the nodes are %+v", server.Nodes(t))
	})
	byCert.UntilHealthy(t)
	untilTurnedAway(t, byToken, "does not know the node")
	for _, n := range server.Nodes(t) {
		if n.Method == "join_token" {
			t.Errorf("a node came back with a spent token: %+v", n)
		}
	}
}

// TestCopiedDataDirectoryLocksTheNode at the first renewal of either copy; then neither side is served.
func TestCopiedDataDirectoryLocksTheNode(t *testing.T) {
	t.Parallel()
	hosts := testdomain.Hosts(t, 3)
	ca := newNodeCA(t)
	server := startServer(t, hosts[0], testdomain.Settings{"attest": ca.verifier()})
	original := ca.agent(t, server, hosts[1], "db-1", 24*time.Second) // the evidence's end bounds the agent SVID, half of it renews
	original.Start(t)
	replica := testdomain.NewAgent(t, server.Binary, hosts[2], original.Settings)
	replica.Settings["data_dir"] = replica.DataDir()
	replica.Settings["socket"] = filepath.Join(replica.Folder, "agent.sock")
	replica.Settings["admin_socket"] = filepath.Join(replica.Folder, "agent-admin.sock")
	if out, err := exec.Command("cp", "-a", original.DataDir(), replica.DataDir()).CombinedOutput(); err != nil {
		t.Fatalf("copy: %v\n%s", err, out)
	}
	replica.Launch(t)
	testdomain.Until(t, 40*time.Second, "the node is locked", func() error {
		nodes := server.Nodes(t)
		if len(nodes) != 1 || nodes[0].State != "locked" || nodes[0].Connected {
			return fmt.Errorf("the nodes are %+v", nodes)
		}
		return nil
	})
	untilTurnedAway(t, original, "locked")
	untilTurnedAway(t, replica, "locked")
}

// TestAgentRenewsAtHalfLife: generation and serial move on before the SVID ends, and workloads notice nothing.
func TestAgentRenewsAtHalfLife(t *testing.T) {
	t.Parallel()
	hosts := testdomain.Hosts(t, 2)
	ca := newNodeCA(t)
	server := startServer(t, hosts[0], testdomain.Settings{"attest": ca.verifier()})
	server.Apply(t, entries(entry{"cert", `["x509pop:subject:db-1"]`}))
	const life = 20 * time.Second
	agent := ca.agent(t, server, hosts[1], "db-1", life)
	agent.Start(t)
	started, first := time.Now(), server.Nodes(t)[0]
	testdomain.Until(t, life, "the agent SVID is renewed", func() error {
		if n := server.Nodes(t)[0]; n.Generation != first.Generation+1 || n.Serial == first.Serial || !n.Connected {
			return fmt.Errorf("the node is %+v", n)
		}
		return nil
	})
	if took := time.Since(started); took < life/4 || took > life*3/4 {
		t.Errorf("renewed after %s of a life of %s", took, life)
	}
	agent.UntilHealthy(t)
	if diff := cmp.Diff([]string{"/cert"}, held(t, agent)); diff != "" {
		t.Errorf("after renewal (-want +got):\n%s", diff)
	}
	server.Apply(t, entries(entry{"later", `["x509pop:subject:db-1"]`})) // a node of another generation is served as before
	wants(t, agent, "/cert", "/later")
	if n := metric(t, &agent.Daemon, `writ_agent_proofs_total{outcome="done"}`); n != "2" {
		t.Errorf("proofs: %s", n)
	}
}

// TestAgentsResumeAfterCutAndRestart: what changed while server and node could not hear each other arrives by deltas, and the
// node serves on meanwhile.
func TestAgentsResumeAfterCutAndRestart(t *testing.T) {
	t.Parallel()
	hosts := testdomain.Hosts(t, 2)
	server := startServer(t, hosts[0], nil)
	server.Apply(t, entries(entry{"first", `["join_token:name:web-1"]`}, entry{"gone", `["join_token:name:web-1"]`}))
	agent := testdomain.NewAgent(t, server.Binary, hosts[1], nil)
	agent.Join(t, server.Token(t, "--node", "web-1"))
	agent.Start(t)
	wants(t, agent, "/first", "/gone")

	server.Kill()
	if diff := cmp.Diff([]string{"/first", "/gone"}, held(t, agent)); diff != "" {
		t.Errorf("while the server is away (-want +got):\n%s", diff)
	}
	server.Start(t)
	server.Apply(t, entries(entry{"restarted", `["join_token:name:web-1"]`}))
	wants(t, agent, "/first", "/gone", "/restarted")

	hosts[1].Cut(t)
	server.Stop(t)
	server.Start(t)
	server.Apply(t, entries(entry{"cut", `["join_token:name:web-1"]`}))
	server.Writ(t, 0, "", "entry", "delete", "gone")
	if diff := cmp.Diff([]string{"/first", "/gone", "/restarted"}, held(t, agent)); diff != "" {
		t.Errorf("while the network is cut (-want +got):\n%s", diff)
	}
	hosts[1].Mend(t)
	wants(t, agent, "/cut", "/first", "/restarted")

	agent.Stop(t)
	server.Apply(t, entries(entry{"stopped", `["join_token:name:web-1"]`}))
	agent.Start(t)
	wants(t, agent, "/cut", "/first", "/restarted", "/stopped")
	if n := metric(t, &agent.Daemon, "writ_agent_sync_digest_mismatches_total"); n != "0" {
		t.Errorf("digest mismatches: %s", n)
	}
}

func startServer(t *testing.T, host testdomain.Host, more testdomain.Settings) *testdomain.Server {
	t.Helper()
	s := testdomain.NewServer(t, testdomain.Built(t), host, more)
	s.Start(t)
	return s
}

type entry struct{ name, where string }

// entries are documents for workloads of uid 0.
func entries(list ...entry) string {
	var docs []string
	for _, e := range list {
		docs = append(docs, fmt.Sprintf("name: %s\npath: /%[1]s\nwhere: %s\nmatch: [\"unix:uid:0\"]\n", e.name, e.where))
	}
	return strings.Join(docs, "---\n")
}

// held is what this process gets from a node: the paths of its SPIFFE IDs, sorted.
func held(t *testing.T, a *testdomain.Agent) []string {
	t.Helper()
	out, _ := a.Writ(t, 0, "svid", "get", "-o", "json")
	return pathsOf(t, out)
}

func pathsOf(t *testing.T, list string) []string {
	t.Helper()
	var got struct {
		Items []struct {
			ID string `json:"spiffe_id"`
		}
	}
	if err := json.Unmarshal([]byte(list), &got); err != nil {
		t.Fatalf("%v in %s", err, list)
	}
	var paths []string
	for _, item := range got.Items {
		paths = append(paths, strings.TrimPrefix(item.ID, "spiffe://"+testdomain.TrustDomain))
	}
	slices.Sort(paths)
	return paths
}

// wants waits until the node serves exactly these paths.
func wants(t *testing.T, a *testdomain.Agent, paths ...string) {
	t.Helper()
	testdomain.Until(t, 60*time.Second, "the node serves "+strings.Join(paths, " "), func() error {
		if got := held(t, a); !slices.Equal(got, paths) {
			return fmt.Errorf("it serves %v", got)
		}
		return nil
	})
}

// untilTurnedAway waits until the agent says in /healthz that it cannot do its job, and why.
func untilTurnedAway(t *testing.T, a *testdomain.Agent, why string) {
	t.Helper()
	testdomain.Until(t, 30*time.Second, "the agent says "+why, func() error {
		h, err := a.Health(t)
		if err == nil && (h.Status != "degraded" || !strings.Contains(h.Parts["agent"], why)) {
			err = fmt.Errorf("it says %v", h)
		}
		return err
	})
}

// refusedJoin joins and gives what was said; to be let in fails the test.
func refusedJoin(t *testing.T, a *testdomain.Agent, token string) string {
	t.Helper()
	a.Write(t)
	cmd := a.Host.Command(string(a.Binary), "agent", "join", "--config", a.File(), "-")
	cmd.Stdin = strings.NewReader(token)
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Errorf("it joined: %s", out)
	}
	return string(out)
}

// metric is the value of one line of /metrics.
func metric(t *testing.T, d *testdomain.Daemon, name string) string {
	t.Helper()
	body, err := d.Get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("no metric %s", name)
	return ""
}

// nodeCA certifies nodes.
type nodeCA struct {
	folder string
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
}

func newNodeCA(t *testing.T) *nodeCA {
	t.Helper()
	c := &nodeCA{folder: testdomain.ShortFolder(t), key: newKey(t)}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "nodes"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, c.key.Public(), c.key)
	if err != nil {
		t.Fatal(err)
	}
	if c.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(c.folder, "roots.pem"), "CERTIFICATE", der)
	return c
}

// verifier is the server's attest section.
func (c *nodeCA) verifier() string {
	return fmt.Sprintf("{join_token: {}, x509pop: {roots: %s}}", filepath.Join(c.folder, "roots.pem"))
}

// agent gives an agent with a certificate for that name.
func (c *nodeCA) agent(t *testing.T, s *testdomain.Server, host testdomain.Host, name string, life time.Duration) *testdomain.Agent {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: time.Now().Add(life), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, key.Public(), c.key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	a := testdomain.NewAgent(t, s.Binary, host, testdomain.Settings{"server": s.Settings["listen"], "bundle": s.Bundle(t)})
	certFile, keyFile := filepath.Join(a.Folder, "node.pem"), filepath.Join(a.Folder, "node.key")
	writePEM(t, certFile, "CERTIFICATE", der)
	writePEM(t, keyFile, "PRIVATE KEY", secret)
	a.Settings["attest"] = fmt.Sprintf("{x509pop: {cert: %s, key: %s}}", certFile, keyFile)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
