package testdomain_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/writ-dev/writ/internal/testdomain"
)

// TestEmptyFolderIsInitialised by `writ server run`, and nobody else can read what it makes, whatever the umask.
func TestEmptyFolderIsInitialised(t *testing.T) {
	t.Parallel()
	host := testdomain.Hosts(t, 1)[0]
	server := testdomain.NewServer(t, testdomain.Built(t), host, nil)
	server.Write(t)
	server.Process = testdomain.Start(t, "server", host.Command("sh", "-c", `umask 0; exec "$0" server run --config "$1"`,
		string(server.Binary), server.File()))
	server.UntilHealthy(t)
	agent := testdomain.NewAgent(t, server.Binary, host, nil)
	agent.Join(t, server.Token(t))
	agent.Start(t)
	var wide []string
	files := 0
	for _, folder := range []string{server.DataDir(), agent.DataDir()} {
		if err := filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if most := fs.FileMode(0o600); err == nil && !e.IsDir() && info.Mode().Perm()&^most != 0 {
				wide = append(wide, path)
			}
			if err == nil && e.IsDir() && info.Mode().Perm() != 0o700 {
				wide = append(wide, path)
			}
			files++
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if len(wide) > 0 || files < 6 {
		t.Errorf("of %d files these are open to others: %v", files, wide)
	}
	if info, err := os.Stat(server.Admin()); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("admin socket: %v %v", info.Mode(), err)
	}
}

// TestDaemonsRefuseToStart where they could not serve, or where others could have read their keys; a refusal takes nothing from
// whoever runs there already.
func TestDaemonsRefuseToStart(t *testing.T) {
	t.Parallel()
	hosts := testdomain.Hosts(t, 2)
	running := startServer(t, hosts[0], nil)
	node := testdomain.NewAgent(t, running.Binary, hosts[0], nil)
	node.Join(t, running.Token(t))
	node.Start(t)
	keys, err := filepath.Glob(filepath.Join(running.DataDir(), "keys", "*"))
	if err != nil || len(keys) == 0 {
		t.Fatalf("no keys in %s: %v", running.DataDir(), err)
	}
	long := filepath.Join(testdomain.ShortFolder(t), strings.Repeat("s", 100))
	for _, row := range []struct {
		name   string
		change func(server *testdomain.Server, agent *testdomain.Agent)
		server string // what it says; empty: it is not asked
		agent  string
	}{
		{"a second server on the same folder", func(s *testdomain.Server, _ *testdomain.Agent) { s.Settings["data_dir"] = running.DataDir() }, "P5004", ""},
		{"an admin socket in use", func(s *testdomain.Server, _ *testdomain.Agent) { s.Settings["admin_socket"] = running.Admin() }, "P1003", ""},
		{"a node address in use", func(s *testdomain.Server, _ *testdomain.Agent) {
			s.Host, s.Settings["listen"], s.Settings["metrics"] = hosts[0], running.Settings["listen"], "127.0.0.1:1088"
		}, "P1003", ""},
		{"a workload socket in use", func(_ *testdomain.Server, a *testdomain.Agent) { a.Settings["socket"] = node.Settings["socket"] }, "", "P1003"},
		{"a socket path over 107 bytes", func(s *testdomain.Server, a *testdomain.Agent) {
			s.Settings["admin_socket"], a.Settings["socket"] = long, long
		}, long, long},
		{"a data directory open to others", func(s *testdomain.Server, a *testdomain.Agent) {
			for _, folder := range []string{s.DataDir(), a.DataDir()} {
				chmod(t, folder, 0o750)
			}
		}, "0750", "P1005"},
		{"a key file open to others", func(s *testdomain.Server, a *testdomain.Agent) {
			copyFolder(t, running.DataDir(), s.DataDir())
			chmod(t, filepath.Join(s.DataDir(), "keys", filepath.Base(keys[0])), 0o640)
			copyFolder(t, node.DataDir(), a.DataDir())
			chmod(t, filepath.Join(a.DataDir(), "node.key"), 0o604)
		}, "0640", "P1005"},
		{"a store open to others", func(s *testdomain.Server, _ *testdomain.Agent) {
			copyFolder(t, running.DataDir(), s.DataDir())
			chmod(t, filepath.Join(s.DataDir(), "writ.db"), 0o644)
		}, "P1005", ""},
		{"an unknown key", func(s *testdomain.Server, a *testdomain.Agent) { s.Settings["zeal"], a.Settings["zeal"] = "1", "1" }, "zeal", "zeal"},
		{"a node that never joined", func(*testdomain.Server, *testdomain.Agent) {}, "", "P1001"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := testdomain.NewServer(t, running.Binary, hosts[1], nil)
			a := testdomain.NewAgent(t, running.Binary, hosts[1], testdomain.Settings{"server": running.Settings["listen"]})
			row.change(s, a)
			if row.server != "" {
				refusesToStart(t, &s.Daemon, row.server)
			}
			if row.agent != "" {
				refusesToStart(t, &a.Daemon, row.agent)
			}
			if _, err := os.Stat(running.Admin()); err != nil {
				t.Errorf("the refused daemon took the socket away: %v", err)
			}
		})
	}
	running.UntilHealthy(t)
	node.UntilHealthy(t)
	running.Writ(t, 0, "", "node", "list")
}

// refusesToStart wants exit 1 and a reason.
func refusesToStart(t *testing.T, d *testdomain.Daemon, why string) {
	t.Helper()
	d.Launch(t)
	select {
	case <-d.Done:
	case <-time.After(20 * time.Second):
		t.Fatalf("it went on running:\n%s", d.Tail())
	}
	if code := d.Cmd.ProcessState.ExitCode(); code != 1 && code != 5 || !strings.Contains(d.Tail(), why) || !strings.Contains(d.Tail(), "error") {
		t.Errorf("ended with %d, not naming %s:\n%s", code, why, d.Tail())
	}
}

// TestRestoredStoreIsServed: the agents take the older state for what it is, by a snapshot.
func TestRestoredStoreIsServed(t *testing.T) {
	t.Parallel()
	host := testdomain.Hosts(t, 1)[0]
	server := startServer(t, host, nil)
	node := `["join_token:name:web-1"]`
	server.Apply(t, entries(entry{"kept", node}, entry{"deleted", node}))
	agent := testdomain.NewAgent(t, server.Binary, host, nil)
	agent.Join(t, server.Token(t, "--node", "web-1"))
	agent.Start(t)
	wants(t, agent, "/deleted", "/kept")

	server.Stop(t)
	backup := filepath.Join(server.Folder, "backup")
	copyFolder(t, server.DataDir(), backup)
	server.Start(t)
	server.Apply(t, entries(entry{"newer", node}))
	server.Writ(t, 0, "", "entry", "delete", "deleted")
	wants(t, agent, "/kept", "/newer")

	restore := func() {
		t.Helper()
		server.Stop(t)
		if err := os.RemoveAll(server.DataDir()); err != nil {
			t.Fatal(err)
		}
		copyFolder(t, backup, server.DataDir())
		server.Start(t)
	}
	restore()
	wants(t, agent, "/deleted", "/kept")
	server.Writ(t, 0, "", "entry", "delete", "deleted")
	server.Apply(t, entries(entry{"after", node}))
	wants(t, agent, "/after", "/kept")

	// An agent that hears nothing of it until the restored store is further than it was.
	agent.Cmd.Process.Signal(syscall.SIGSTOP)
	restore()
	for _, name := range []string{"one", "two", "three", "four"} {
		server.Apply(t, entries(entry{name, node}))
	}
	agent.Cmd.Process.Signal(syscall.SIGCONT)
	wants(t, agent, "/deleted", "/four", "/kept", "/one", "/three", "/two")
	if n := metric(t, &agent.Daemon, "writ_agent_sync_digest_mismatches_total"); n != "0" {
		t.Errorf("deltas of another history were sent: %s digests did not fit", n)
	}
	agent.UntilHealthy(t)
}

// TestKilledServerLosesNothingAcknowledged: entries that a command said to be applied are there after every crash, and each SVID
// that a workload holds has one audit record.
func TestKilledServerLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	host := testdomain.Hosts(t, 1)[0]
	records := filepath.Join(testdomain.ShortFolder(t), "audit.jsonl")
	server := startServer(t, host, testdomain.Settings{"audit": "{file: " + records + "}"})
	agent := testdomain.NewAgent(t, server.Binary, host, nil)
	agent.Join(t, server.Token(t, "--node", "web-1"))
	agent.Start(t)
	const rounds, writers = 6, 2
	var mu sync.Mutex
	acknowledged, serials := map[string]bool{}, map[string]bool{}
	for round := range rounds {
		ctx, stop := context.WithCancel(t.Context())
		var g sync.WaitGroup
		for writer := range writers {
			g.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					name := fmt.Sprintf("e%d-%d-%d", round, writer, i)
					cmd := exec.Command(string(server.Binary), "--admin", server.Admin(), "entry", "apply", "-f", "-")
					cmd.Stdin = strings.NewReader(entries(entry{name, `["join_token:name:web-1"]`}))
					if cmd.Run() == nil {
						mu.Lock()
						acknowledged[name] = true
						mu.Unlock()
					}
				}
			})
		}
		before := len(acknowledged)
		testdomain.Until(t, 30*time.Second, "writes are acknowledged", func() error {
			mu.Lock()
			defer mu.Unlock()
			if len(acknowledged) < before+4 {
				return errors.New("too few")
			}
			return nil
		})
		time.Sleep(rand.N(100 * time.Millisecond)) // the crash comes at no particular moment
		server.Kill()
		stop()
		g.Wait()
		server.Start(t)
		for _, serial := range heldSerials(t, agent) {
			serials[serial] = true
		}
	}
	out, _ := server.Writ(t, 0, "", "entry", "get", "-o", "name")
	there := strings.Fields(out)
	for name := range acknowledged {
		if !slices.Contains(there, name) {
			t.Errorf("%s was acknowledged and is lost", name)
		}
	}
	wants(t, agent, pathsFor(there)...)
	for _, serial := range heldSerials(t, agent) {
		serials[serial] = true
	}
	testdomain.Until(t, 10*time.Second, "each serial has one record", func() error {
		data, err := os.ReadFile(records)
		if err != nil {
			return err
		}
		for serial := range serials {
			if n := bytes.Count(data, []byte(`"serial":"`+serial+`","spiffe_id"`)); n != 1 {
				return fmt.Errorf("serial %s has %d of them", serial, n)
			}
		}
		return nil
	})
	t.Logf("%d entries acknowledged, %d SVIDs over %d crashes", len(acknowledged), len(serials), rounds)
}

func pathsFor(names []string) []string {
	var paths []string
	for _, name := range names {
		paths = append(paths, "/"+name)
	}
	slices.Sort(paths)
	return paths
}

// heldSerials are those of the SVIDs that this process holds.
func heldSerials(t *testing.T, a *testdomain.Agent) []string {
	t.Helper()
	svids, err := workloadapi.FetchX509SVIDs(t.Context(), workloadapi.WithAddr(a.Socket()))
	if err != nil {
		t.Fatal(err)
	}
	var serials []string
	for _, s := range svids {
		serials = append(serials, s.Certificates[0].SerialNumber.Text(16))
	}
	return serials
}

// TestFullDiskRefusesIssuing and nothing else: what is held is served on, and all goes on by itself once there is space.
func TestFullDiskRefusesIssuing(t *testing.T) {
	t.Parallel()
	hosts := testdomain.Hosts(t, 2)
	server := testdomain.NewServer(t, testdomain.Built(t), hosts[0], nil)
	if err := os.Mkdir(server.DataDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", server.DataDir(), "tmpfs", 0, "size=12m,mode=0700"); err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(server.DataDir(), syscall.MNT_DETACH) })
	server.Start(t)
	server.Apply(t, entries(entry{"held", `["join_token:name:web-1"]`}))
	agent := testdomain.NewAgent(t, server.Binary, hosts[0], nil)
	agent.Join(t, server.Token(t, "--node", "web-1"))
	agent.Start(t)
	wants(t, agent, "/held")
	late := testdomain.NewAgent(t, server.Binary, hosts[1], nil)
	token := server.Token(t, "--node", "late")

	filler := filepath.Join(server.DataDir(), "filler")
	fill(t, filler)
	refused := func(name string) string {
		cmd := exec.Command(string(server.Binary), "--admin", server.Admin(), "entry", "apply", "-f", "-")
		cmd.Stdin = strings.NewReader(entries(entry{name, `["join_token:name:web-1"]`}))
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	testdomain.Until(t, 30*time.Second, "writes are refused with P5002", func() error { // the log's own slack is used up first
		if out := refused("slack"); !strings.Contains(out, "P5002") {
			return fmt.Errorf("it said %s", out)
		}
		return nil
	})
	if text := refusedJoin(t, late, token); !strings.Contains(text, "P5002") {
		t.Errorf("a node that asked for its SVID heard: %s", text)
	}
	if got := held(t, agent); !slices.Contains(got, "/held") {
		t.Errorf("the agent serves %v", got)
	}
	server.Writ(t, 0, "", "entry", "get")
	if h, err := server.Health(t); err != nil || h.Status != "degraded" || !strings.Contains(h.Parts["store"], "P5002") {
		t.Errorf("a server that cannot issue says of itself %+v (%v)", h, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	server.UntilHealthy(t) // though nobody writes
	testdomain.Until(t, 5*time.Second, "writes go on by themselves", func() error {
		if out := refused("after"); !strings.Contains(out, "after") || strings.Contains(out, "error") {
			return fmt.Errorf("it said %s", out)
		}
		return nil
	})
	late.Join(t, token)
	testdomain.Until(t, 20*time.Second, "the new entry is served", func() error {
		if got := held(t, agent); !slices.Contains(got, "/after") {
			return fmt.Errorf("the agent serves %v", got)
		}
		return nil
	})
	server.Stop(t)
	server.Start(t) // the store passes its check
}

// fill writes until nothing more fits.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 1<<20); len(block) > 0; {
		if n, err := f.Write(block); err != nil {
			block = block[:(len(block)-n)/2]
		}
	}
}

// TestIssuingCertificateRenewsItself: SVIDs go over to the new issuing certificate, all verify with the one root until they end,
// and nobody has to fetch another bundle.
func TestIssuingCertificateRenewsItself(t *testing.T) {
	t.Parallel()
	host := testdomain.Hosts(t, 1)[0]
	server := startServer(t, host, testdomain.Settings{"ca": "{ttl: 1m}", "svid": "{x509_ttl: 20s}"})
	server.Apply(t, entries(entry{"web", `["join_token:name:web-1"]`}))
	agent := testdomain.NewAgent(t, server.Binary, host, nil)
	agent.Join(t, server.Token(t, "--node", "web-1"))
	agent.Start(t)
	wants(t, agent, "/web")
	w := &rotations{t: t, issuers: map[string]int{}}
	ctx, cancel := context.WithTimeout(t.Context(), 80*time.Second)
	defer cancel()
	w.done = cancel
	if err := workloadapi.WatchX509Context(ctx, w, workloadapi.WithAddr(agent.Socket())); err == nil {
		t.Fatal("the watch ended")
	}
	if len(w.issuers) < 2 || len(w.svids) < 3 {
		t.Errorf("%d issuing certificates signed %d SVIDs", len(w.issuers), len(w.svids))
	}
	if len(w.bundles) != 1 {
		t.Errorf("%d bundles were sent, want one", len(w.bundles))
	}
	if n, err := strconv.Atoi(metric(t, &agent.Daemon, `writ_agent_proofs_total{outcome="done"}`)); err != nil || n > 8 {
		t.Errorf("the node proved itself %d times (%v)", n, err)
	}
	server.UntilHealthy(t)
	agent.UntilHealthy(t)
}

// rotations checks every SVID that has not ended whenever there is news.
type rotations struct {
	t       *testing.T
	done    func()
	issuers map[string]int
	svids   []*x509svid.SVID
	bundles []*x509bundle.Bundle
}

func (r *rotations) OnX509ContextUpdate(c *workloadapi.X509Context) {
	s := c.DefaultSVID()
	bundle, err := c.Bundles.GetX509BundleForTrustDomain(s.ID.TrustDomain())
	if err != nil {
		r.t.Error(err)
		return
	}
	r.svids = append(r.svids, s)
	if n := len(r.bundles); n == 0 || !r.bundles[n-1].Equal(bundle) {
		r.bundles = append(r.bundles, bundle)
	}
	r.issuers[s.Certificates[1].SerialNumber.Text(16)]++
	for _, old := range r.svids {
		if _, _, err := x509svid.Verify(old.Certificates, bundle); err != nil && time.Now().Before(old.Certificates[0].NotAfter) {
			r.t.Errorf("the SVID of serial %x does not verify: %v", old.Certificates[0].SerialNumber, err)
		}
		if issuer := old.Certificates[1]; old.Certificates[0].NotAfter.After(issuer.NotAfter) {
			r.t.Errorf("a leaf outlives its issuer: %s after %s", old.Certificates[0].NotAfter, issuer.NotAfter)
		}
	}
	if left := time.Until(s.Certificates[0].NotAfter); left < 5*time.Second {
		r.t.Errorf("an SVID with %s left came", left)
	}
	if len(r.issuers) == 2 && r.issuers[s.Certificates[1].SerialNumber.Text(16)] == 2 {
		r.done()
	}
}

func (r *rotations) OnX509ContextWatchError(err error) {
	if !errors.Is(err, context.Canceled) && !strings.Contains(err.Error(), "context canceled") {
		r.t.Errorf("watch: %v", err)
	}
}

// TestDevKeepsItsContract: the ready file is there exactly while every address in it answers.
func TestDevKeepsItsContract(t *testing.T) {
	t.Parallel()
	b := testdomain.Built(t)
	base := testdomain.ShortFolder(t)
	file := filepath.Join(base, "ready.json")
	write(t, file, `{"stale": true}`)
	cmd := exec.Command(string(b), "dev", "--data-dir", filepath.Join(base, "d"), "--ready-file", file)
	dev := testdomain.Start(t, "dev", cmd)
	var ready testdomain.Ready
	testdomain.Until(t, 20*time.Second, "the ready file is there", func() error {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if bytes.Contains(data, []byte("stale")) {
			return errors.New("the stale one is there")
		}
		return json.Unmarshal(data, &ready) // it is written in one step
	})
	if ready.PID != cmd.Process.Pid || ready.TrustDomain != "dev.writ" {
		t.Errorf("ready file: %+v", ready)
	}
	for _, address := range append([]string{ready.WorkloadAPI, ready.Admin, ready.Server}, ready.ExtAuthz...) {
		network, path := "tcp", address
		if p, ok := strings.CutPrefix(address, "unix://"); ok {
			network, path = "unix", p
		}
		conn, err := net.DialTimeout(network, path, time.Second)
		if err != nil {
			t.Errorf("%s does not answer: %v", address, err)
			continue
		}
		conn.Close()
	}
	for _, url := range []string{ready.Metrics, ready.Health, strings.TrimSuffix(ready.Health, "healthz") + "readyz"} {
		answer, err := http.Get(url)
		if err != nil || answer.StatusCode != http.StatusOK {
			t.Errorf("%s: %v %v", url, answer, err)
			continue
		}
		answer.Body.Close()
	}
	if out, _ := b.Run(t, 0, []string{"SPIFFE_ENDPOINT_SOCKET=" + ready.WorkloadAPI}, "", "svid", "get"); !strings.Contains(out, "spiffe://dev.writ/you") {
		t.Errorf("svid get: %s", out)
	}
	wantModes(t, filepath.Join(base, "d"), map[string]fs.FileMode{".": 0o711, "run": 0o755, "run/agent.sock": 0o777, "run/authz.sock": 0o777,
		"run/admin.sock": 0o600, "server": 0o700, "agent": 0o700, "decisions.jsonl": 0o600, ".gitignore": 0o600})

	// A workload that holds a stream must not hold up the end.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(ready.WorkloadAPI)))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	began := time.Now()
	if code := dev.Stop(t); code != 0 {
		t.Errorf("SIGTERM ended it with %d", code)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s to end", took)
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the ready file after the end: %v", err)
	}
}

// wantModes compares the modes of files below a folder.
func wantModes(t *testing.T, folder string, want map[string]fs.FileMode) {
	t.Helper()
	got := map[string]fs.FileMode{}
	for name := range want {
		info, err := os.Stat(filepath.Join(folder, name))
		if err != nil {
			t.Error(err)
			continue
		}
		got[name] = info.Mode().Perm()
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("modes (-want +got):\n%s", diff)
	}
}

// TestDevFollowsItsEntries: the file is applied at each change and prunes what it had applied itself, nothing else; a file that is
// refused changes nothing, and nothing after an empty document is lost.
func TestDevFollowsItsEntries(t *testing.T) {
	t.Parallel()
	file := filepath.Join(testdomain.ShortFolder(t), "entries.yaml")
	write(t, file, "---\n# nothing in this one\n---\n"+anyEntry("one")+"---\n\n---\n# nor here\n---\n"+anyEntry("two")+"---\n")
	d := testdomain.New(t, testdomain.Built(t), "--entries", file)
	names := func() []string {
		out, _ := d.Writ(t, 0, "", "entry", "get", "-o", "name")
		return strings.Fields(out)
	}
	follows := func(want ...string) {
		t.Helper()
		testdomain.Until(t, 10*time.Second, "the entries are "+strings.Join(want, " "), func() error {
			if got := names(); !slices.Equal(got, want) {
				return fmt.Errorf("they are %v", got)
			}
			return nil
		})
	}
	follows("one", "two")
	d.Apply(t, anyEntry("mine"))
	write(t, file, anyEntry("two")+"---\n"+anyEntry("three"))
	follows("mine", "three", "two")

	write(t, file, "name: broken\npath: /broken\nwhere: []\nmatch: [\"unix:uid:0\"]\n")
	testdomain.Until(t, 10*time.Second, "the refusal is said", func() error {
		if !strings.Contains(d.Tail(), "entries refused") {
			return errors.New("not yet")
		}
		return nil
	})
	follows("mine", "three", "two")
	if n := strings.Count(d.Tail(), "entries refused"); n != 1 {
		t.Errorf("it was said %d times", n)
	}

	d.Stop(t)
	write(t, file, anyEntry("four"))
	d.Restart(t)
	follows("four", "mine")
	write(t, file, "# none\n")
	follows("mine")
}

func anyEntry(name string) string {
	return fmt.Sprintf("name: %s\npath: /%[1]s\nany: true\nmatch: [\"unix:uid:0\"]\n", name)
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func chmod(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := os.Mkdir(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy: %v\n%s", err, out)
	}
}
