//go:build clients

package testdomain_test

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/writ-dev/writ/internal/testdomain"
)

// client is one of other people's libraries.
type client struct {
	*program
	path string   // of its process
	cmd  []string // that runs it
	uses string   // library and version

	// gaps are between its tries once a stream ended, in seconds, the last for ever. What it does by itself is not ours to mend;
	// that the first try after the agent's return succeeds is.
	gaps []float64
	// connects are between its gRPC's tries to connect, give or take 20 %, from its first try. nil: it connects whenever it tries.
	connects []float64
	// loses says that it throws its identity away when it is denied, as it should; the others go on with the old one.
	loses bool
	// oneOfAHint says that it takes one JWT-SVID of those with the same hint, no hint being one.
	oneOfAHint bool

	first event
	row   map[string]string // of the table
}

func (c *client) id() string { return "spiffe://" + testdomain.TrustDomain + "/" + c.name }

func foreignClients(t *testing.T) []*client {
	t.Helper()
	root := testdomain.Root(t)
	built, programs := filepath.Join(root, ".cache/clients"), filepath.Join(root, "tools/clients")
	java, node := realPath(t, "java"), realPath(t, "node")
	doubling := func(first, most float64) (gaps []float64) {
		for ; first < most; first *= 2 {
			gaps = append(gaps, first)
		}
		return append(gaps, most)
	}
	grpc := []float64{1, 1.6, 2.56, 4.096, 6.554, 10.486} // its connection-backoff.md
	clients := []*client{
		{path: realPath(t, filepath.Join(built, "go")), uses: "go-spiffe 2.9.0", gaps: []float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, connects: grpc},
		{path: pythonPath(t), uses: "spiffe 0.3.2, spiffe-tls 0.4.0", gaps: doubling(0.1, 5), connects: grpc,
			cmd: []string{filepath.Join(root, ".cache/python/bin/python"), filepath.Join(programs, "python/workload.py")}},
		{path: realPath(t, filepath.Join(built, "rust/debug/workload")), uses: "spiffe 0.19.0, spiffe-rustls 0.11.0", gaps: doubling(0.2, 10), loses: true},
		{path: java, uses: "java-spiffe 0.8.17", oneOfAHint: true, gaps: doubling(1, 60), connects: grpc,
			cmd: []string{java, "-cp", filepath.Join(built, "java/classes") + ":" + filepath.Join(built, "java/lib/*"), "Workload"}},
		{path: node, uses: "grpc-js 1.14.7, jose 6.2.18", gaps: []float64{0.2}, cmd: []string{node, filepath.Join(programs, "node/workload.mjs")}},
	}
	for i, name := range []string{"go", "python", "rust", "java", "node"} {
		clients[i].program, clients[i].row = &program{name: name}, map[string]string{}
		if clients[i].cmd == nil {
			clients[i].cmd = []string{clients[i].path}
		}
	}
	return clients
}

// TestForeignClients: every one fetches and validates X.509-SVIDs and JWT-SVIDs, speaks mutual TLS with every other in both
// directions, watches a rotation, keeps its identity while the agent is away and is back with its own first retry, and learns that
// its entry went and came back.
func TestForeignClients(t *testing.T) {
	f := startForeign(t)
	defer f.table()
	for _, step := range []struct {
		name string
		run  func(t *testing.T)
	}{
		{"fetch and verify", f.fetch},
		{"mutual TLS of each with each", f.mutualTLS},
		{"JWT-SVIDs of each for each", f.tokens},
		{"two identities", f.identities},
		{"rotation", f.rotation},
		{"the agent restarts", f.restart},
		{"the entries go and come back", f.withdrawal},
	} {
		if !t.Run(step.name, step.run) {
			return
		}
	}
}

type foreign struct {
	*testing.T // of the whole
	clients    []*client
	server     *testdomain.Server
	agent      *testdomain.Agent
	token      string // of the first client, from before the restart
}

const audience = "db"

func startForeign(t *testing.T) *foreign {
	t.Helper()
	f := &foreign{T: t, clients: foreignClients(t)}
	host := testdomain.Hosts(t, 1)[0]
	f.server = startServer(t, host, nil)
	f.entries(t)
	f.agent = testdomain.NewAgent(t, f.server.Binary, host, nil)
	f.agent.Join(t, f.server.Token(t, "--node", "web-1"))
	f.agent.Start(t)
	environment := []string{"LIBRARIES=" + filepath.Join(testdomain.Root(t), ".cache/node"), "PROTO=" + protoFile(t)}
	for _, c := range f.clients {
		cmd := exec.Command(c.cmd[0], c.cmd[1:]...)
		cmd.Env = append(os.Environ(), environment...)
		started := time.Now()
		c.program = startProgram(t, f.agent, c.name, cmd)
		c.first = c.svid(t, func(event) bool { return true })
		c.row["first SVID"] = seconds(c.first.at.Sub(started))
	}
	return f
}

// entries applies one for each, found by the executable: of this user, but not of any other program.
func (f *foreign) entries(t *testing.T) {
	var all []string
	for _, c := range f.clients {
		all = append(all, f.entry(c, c.name))
	}
	f.server.Apply(t, strings.Join(all, "---\n"))
}

func (f *foreign) entry(c *client, name string) string {
	return fmt.Sprintf("name: %s\npath: /%[1]s\nwhere: [\"join_token:name:web-1\"]\nmatch: [\"unix:uid:%d\", \"unix:path:%s\"]\nttl: 20s\ndns: [%[1]s.internal]\n",
		name, os.Getuid(), c.path)
}

// protoFile is the Workload API's, as go-spiffe has it.
func protoFile(t *testing.T) string {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/spiffe/go-spiffe/v2").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "proto/spiffe/workload/workload.proto")
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

func (f *foreign) fetch(t *testing.T) {
	for _, c := range f.clients {
		if e := c.first; e.ID != c.id() || e.Roots != 1 || !slices.Equal(e.DNS, []string{c.name + ".internal"}) {
			t.Errorf("%s has %+v", c.name, e)
		}
	}
}

// meet has one call the other, each expecting an ID, and gives what either side says of it.
func meet(t *testing.T, caller, callee *client, callerID, calleeID string) (called, answered event) {
	t.Helper()
	port := callee.do(t, "serve "+callerID, "listening").Port
	caller.start(t, fmt.Sprintf("dial 127.0.0.1:%d %s", port, calleeID))
	return caller.next(t, "peer", "refused"), callee.next(t, "peer", "refused")
}

func talks(t *testing.T, caller, callee *client) {
	t.Helper()
	called, answered := meet(t, caller, callee, caller.id(), callee.id())
	if hello := "hello from " + caller.name; answered.Said != hello || called.Said != callee.name+" heard "+hello {
		t.Errorf("%s calls %s: %+v, answered %+v", caller.name, callee.name, called, answered)
	}
}

// ring has everyone call the next.
func (f *foreign) ring(t *testing.T) {
	t.Helper()
	for i, c := range f.clients {
		talks(t, c, f.clients[(i+1)%len(f.clients)])
	}
}

func (f *foreign) mutualTLS(t *testing.T) {
	for _, caller := range f.clients {
		for _, callee := range f.clients {
			if caller != callee {
				talks(t, caller, callee)
			}
		}
	}
	other := "spiffe://" + testdomain.TrustDomain + "/other"
	for i, caller := range f.clients {
		callee := f.clients[(i+1)%len(f.clients)]
		if called, _ := meet(t, caller, callee, caller.id(), other); called.Event != "refused" {
			t.Errorf("%s speaks with whom it did not mean: %+v", caller.name, called)
		}
		if _, answered := meet(t, caller, callee, other, callee.id()); answered.Event != "refused" {
			t.Errorf("%s lets in whom it does not know: %+v", callee.name, answered)
		}
		caller.row["mutual TLS"] = "with all"
	}
}

func (f *foreign) tokens(t *testing.T) {
	for _, c := range f.clients {
		fetched := c.do(t, "token "+audience, "token", "refused")
		if fetched.ID != c.id() {
			t.Fatalf("%s fetched %+v", c.name, fetched)
		}
		if f.token == "" {
			f.token = fetched.Token
		}
		changed := fetched.Token[:len(fetched.Token)-10] + strings.Repeat("A", 10)
		for _, verifier := range f.clients {
			if e := verifier.do(t, "check "+audience+" "+fetched.Token, "checked", "refused"); e.ID != c.id() {
				t.Errorf("%s takes the token of %s as %+v", verifier.name, c.name, e)
			}
			verifier.do(t, "check other "+fetched.Token, "refused")
			verifier.do(t, "check "+audience+" "+changed, "refused")
		}
		c.row["JWT-SVID"] = "of all"
	}
}

// identities gives each a second one. The first stays the default, and a library that takes one JWT-SVID of those with the same hint
// takes both once they have hints of their own.
func (f *foreign) identities(t *testing.T) {
	for _, hint := range []string{"", "second"} {
		var second []string
		for _, c := range f.clients {
			second = append(second, f.entry(c, "z-"+c.name)+fmt.Sprintf("hint: %q\n", hint))
		}
		applied := time.Now()
		f.server.Apply(t, strings.Join(second, "---\n"))
		f.clients[len(f.clients)-1].svid(t, func(e event) bool { return e.at.After(applied) })
		for _, c := range f.clients {
			want := []string{c.id(), "spiffe://" + testdomain.TrustDomain + "/z-" + c.name}
			if c.oneOfAHint && hint == "" {
				want = want[:1]
			}
			testdomain.Until(t, 30*time.Second, c.name+" has two JWT-SVIDs", func() error {
				if e := c.do(t, "tokens "+audience, "tokens", "refused"); !slices.Equal(e.IDs, want) {
					return fmt.Errorf("it has %+v", e)
				}
				return nil
			})
			if e := c.do(t, "held", "held"); e.ID != c.id() {
				t.Errorf("%s now uses %s", c.name, e.ID)
			}
			if e := c.do(t, "token "+audience, "token"); e.ID != c.id() {
				t.Errorf("%s now sends a token of %s", c.name, e.ID)
			}
			c.row["2 identities"] = "kept apart"
			if c.oneOfAHint {
				c.row["2 identities"] = "by hint"
			}
		}
	}
	for _, c := range f.clients {
		f.server.Writ(t, 0, "", "entry", "delete", "z-"+c.name)
	}
}

func (f *foreign) rotation(t *testing.T) {
	for _, c := range f.clients {
		renewed := c.svid(t, func(e event) bool { return e.Serial != c.first.Serial })
		if renewed.ID != c.id() {
			t.Errorf("%s has %+v", c.name, renewed)
		}
		c.row["rotation"] = "seen"
	}
	f.ring(t)
}

// listens is when the agent's socket takes connections.
func (f *foreign) listens(t *testing.T) time.Time {
	testdomain.Until(t, 30*time.Second, "the agent listens", func() error {
		conn, err := net.Dial("unix", f.agent.Settings["socket"])
		if err == nil {
			conn.Close()
		}
		return err
	})
	return time.Now()
}

// next is the first moment after `after` that these gaps lead to from start.
func next(start time.Time, gaps []float64, after time.Time) time.Time {
	for i := 0; ; i++ {
		start = start.Add(time.Duration(gaps[min(i, len(gaps)-1)] * float64(time.Second)))
		if start.After(after) {
			return start
		}
	}
}

// due is when a client whose stream ended has, at the latest, its first own try over a connection that its gRPC does not hold back any
// more, at an agent that returned.
func (c *client) due(ended, back time.Time) time.Time {
	ready, connected := back, next(ended, c.gaps, ended)
	for _, gap := range c.connects {
		if connected.After(back) {
			break
		}
		ready = back.Add(time.Duration(gap * 1.2 * float64(time.Second)))
		connected = connected.Add(time.Duration(gap * 0.8 * float64(time.Second)))
	}
	return next(ended, c.gaps, ready)
}

// ended is when the streams ended, which the client without a library sees.
func (f *foreign) ended(t *testing.T, since time.Time) time.Time {
	t.Helper()
	node := f.clients[len(f.clients)-1]
	for _, e := range node.since(t, since) {
		if e.Event == "ended" {
			return e.at
		}
	}
	t.Fatalf("no stream of %s ended", node.name)
	return since
}

func (f *foreign) restart(t *testing.T) {
	stopping := time.Now()
	if code := f.agent.Stop(t); code != 0 {
		t.Errorf("the agent ended with %d", code)
	}
	stopped, ended := time.Now(), f.ended(t, stopping)
	if took := stopped.Sub(ended); took > time.Second {
		t.Errorf("the agent ended %s after its streams: clients are turned away for longer than they must", took)
	}
	f.ring(t) // with what they hold
	for _, c := range f.clients {
		if e := c.do(t, "held", "held", "nothing"); e.ID != c.id() {
			t.Errorf("%s, without an agent, has %+v", c.name, e)
		}
		c.row["agent away"] = "keeps it"
	}
	f.agent.Launch(f.T) // which it shall outlive
	back := f.listens(t)
	f.agent.UntilHealthy(t)
	t.Logf("streams ended %s after SIGTERM, the process %s, it listened %s later and was healthy after %s more",
		ended.Sub(stopping), stopped.Sub(stopping), back.Sub(stopped), time.Since(back))
	for _, c := range f.clients {
		var again event
		testdomain.Until(t, 60*time.Second, c.name+" has an SVID of the restarted agent", func() error {
			for _, again = range c.since(t, back) {
				if again.Event == "svid" {
					return nil
				}
			}
			return fmt.Errorf("its news are %+v", c.since(t, stopping))
		})
		due := c.due(ended, back)
		c.row["back after restart"] = fmt.Sprintf("%s (due: %s)", seconds(again.at.Sub(back)), seconds(due.Sub(back)))
		const slack = 2 * time.Second // for a signature and a loaded machine
		if late := again.at.Sub(due); late > slack {
			t.Errorf("%s is back %s after its own first try", c.name, late)
		}
		for _, e := range c.since(t, stopping) {
			if e.Event == "lost" || e.Event == "ended" && e.Code != "UNAVAILABLE" {
				t.Errorf("%s, over the restart: %+v", c.name, e)
			}
		}
		if e := c.do(t, "check "+audience+" "+f.token, "checked", "refused"); e.ID != f.clients[0].id() {
			t.Errorf("%s takes the token from before the restart as %+v", c.name, e)
		}
	}
	f.ring(t)
}

func (f *foreign) withdrawal(t *testing.T) {
	start := time.Now()
	for _, c := range f.clients {
		f.server.Writ(t, 0, "", "entry", "delete", c.name)
	}
	for _, c := range f.clients {
		c.row["entry gone"] = "keeps the old one"
		switch {
		case c.loses:
			c.await(t, "lost", func(e event) bool { return e.at.After(start) })
			c.row["entry gone"] = "drops it at once"
		case c.name == "node":
			c.await(t, "ended", func(e event) bool {
				return e.at.After(start) && e.Code == "PERMISSION_DENIED" && strings.Contains(e.Error, "no identity issued")
			})
		}
		if held := c.do(t, "held", "held", "nothing"); (held.Event == "nothing") != c.loses || !c.loses && held.ID != c.id() {
			t.Errorf("%s, without an entry, has %+v", c.name, held)
		}
	}
	applied := time.Now()
	f.entries(t)
	for _, c := range f.clients {
		again := c.svid(t, func(e event) bool { return e.at.After(applied) })
		c.row["entry back"] = seconds(again.at.Sub(applied))
	}
	f.ring(t)
}

// table prints what each did, and "-" where it came to nothing.
func (f *foreign) table() {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	columns := []string{"first SVID", "mutual TLS", "JWT-SVID", "2 identities", "rotation", "agent away", "back after restart", "entry gone", "entry back"}
	fmt.Fprintf(w, "\nclient\tlibraries\t%s\n", strings.Join(columns, "\t"))
	for _, c := range f.clients {
		fmt.Fprintf(w, "%s\t%s", c.name, c.uses)
		for _, column := range columns {
			fmt.Fprintf(w, "\t%s", cmp.Or(c.row[column], "-"))
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	f.Log(text.String())
}
