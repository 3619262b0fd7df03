package testdomain

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TrustDomain is that of every Server.
const TrustDomain = "example.org"

// Settings are keys of a daemon's file with their values as YAML writes them. Each daemon has its own; these add and overwrite.
type Settings map[string]string

// Daemon is `writ server run` or `writ agent run` on a host, with its file, data directory and sockets in one short folder.
type Daemon struct {
	Binary
	*Process
	Host     Host
	Folder   string
	Settings Settings
	kind     string // server or agent
	metrics  string
}

// DataDir is its data directory.
func (d *Daemon) DataDir() string { return filepath.Join(d.Folder, "data") }

// File is its configuration file.
func (d *Daemon) File() string { return filepath.Join(d.Folder, d.kind+".yaml") }

// Write writes the configuration file.
func (d *Daemon) Write(t testing.TB) {
	t.Helper()
	var lines []string
	for key, value := range d.Settings {
		lines = append(lines, key+": "+value+"\n")
	}
	slices.Sort(lines)
	if err := os.WriteFile(d.File(), []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Launch writes the file and starts the daemon, and does not wait for anything.
func (d *Daemon) Launch(t testing.TB) {
	t.Helper()
	d.Write(t)
	d.Process = Start(t, d.kind, d.Host.Command(string(d.Binary), d.kind, "run", "--config", d.File()))
}

// Start launches the daemon and waits until it says that it can do its job.
func (d *Daemon) Start(t testing.TB) {
	t.Helper()
	d.Launch(t)
	d.UntilHealthy(t)
}

// UntilHealthy waits until the daemon says that it can do its job.
func (d *Daemon) UntilHealthy(t testing.TB) {
	t.Helper()
	Until(t, 30*time.Second, d.kind+" is healthy", func() error {
		h, err := d.Health(t)
		if err == nil && h.Status != "ok" {
			err = fmt.Errorf("it is %v", h)
		}
		return err
	})
}

// Health is what /healthz shows.
type Health struct {
	Status string            `json:"status"`
	Parts  map[string]string `json:"parts"`
}

// Health asks the daemon on its own host.
func (d *Daemon) Health(t testing.TB) (h Health, err error) {
	select {
	case <-d.Done:
		t.Fatalf("%s ended:\n%s", d.kind, d.Tail())
	default:
	}
	body, err := d.Get("/healthz")
	if err != nil {
		return h, err
	}
	return h, json.Unmarshal(body, &h)
}

// Get asks the daemon's HTTP address from its own host.
func (d *Daemon) Get(path string) ([]byte, error) {
	metrics := d.metrics
	if set := d.Settings["metrics"]; set != "" {
		metrics = set
	}
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: d.Host.Dial, DisableKeepAlives: true}}
	answer, err := client.Get("http://" + metrics + path)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	return io.ReadAll(answer.Body)
}

// Server is `writ server run`.
type Server struct{ Daemon }

// NewServer gives a server for a host that is not started yet.
func NewServer(t testing.TB, b Binary, host Host, more Settings) *Server {
	t.Helper()
	s := &Server{Daemon{Binary: b, Host: host, Folder: ShortFolder(t), kind: "server", metrics: "127.0.0.1:8088"}}
	s.Settings = Settings{"trust_domain": TrustDomain, "data_dir": s.DataDir(), "name": "a", "listen": host.Address + ":8443",
		"admin_socket": s.Admin(), "log": "{format: text}"}
	for key, value := range more {
		s.Settings[key] = value
	}
	return s
}

// Admin is the path of the admin socket.
func (s *Server) Admin() string { return filepath.Join(s.Folder, "admin.sock") }

// Writ runs an operator's command against this server.
func (s *Server) Writ(t testing.TB, want int, input string, args ...string) (stdout, stderr string) {
	t.Helper()
	return s.Run(t, want, []string{"WRIT_ADMIN=" + s.Admin()}, input, args...)
}

// Apply applies entries as an operator does.
func (s *Server) Apply(t testing.TB, entries string) {
	t.Helper()
	s.Writ(t, 0, entries, "entry", "apply", "-f", "-")
}

// Token makes a join token.
func (s *Server) Token(t testing.TB, args ...string) string {
	t.Helper()
	out, _ := s.Writ(t, 0, "", append([]string{"token", "create"}, args...)...)
	token, _, _ := strings.Cut(strings.TrimPrefix(out, "token: "), "\n")
	return token
}

// Bundle writes the server's roots into a file.
func (s *Server) Bundle(t testing.TB) string {
	t.Helper()
	out, _ := s.Writ(t, 0, "", "bundle", "show", "-o", "pem")
	file := filepath.Join(s.Folder, "bundle.pem")
	if err := os.WriteFile(file, []byte(out), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// Listed is one line of `writ node list`.
type Listed struct {
	AgentID    string   `json:"agent_id"`
	State      string   `json:"state"`
	Method     string   `json:"method"`
	Selectors  []string `json:"selectors"`
	Generation int      `json:"generation"`
	Serial     string   `json:"serial"`
	Connected  bool     `json:"connected"`
}

// Nodes is `writ node list`.
func (s *Server) Nodes(t testing.TB) []Listed {
	t.Helper()
	out, _ := s.Writ(t, 0, "", "node", "list", "-o", "json")
	var list struct{ Items []Listed }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return list.Items
}

// Agent is `writ agent run`.
type Agent struct{ Daemon }

// NewAgent gives an agent for a host that has neither joined nor started.
func NewAgent(t testing.TB, b Binary, host Host, more Settings) *Agent {
	t.Helper()
	a := &Agent{Daemon{Binary: b, Host: host, Folder: ShortFolder(t), kind: "agent", metrics: "127.0.0.1:8089"}}
	a.Settings = Settings{"trust_domain": TrustDomain, "data_dir": a.DataDir(), "socket": filepath.Join(a.Folder, "agent.sock"),
		"admin_socket": filepath.Join(a.Folder, "agent-admin.sock"), "log": "{format: text}"}
	for key, value := range more {
		a.Settings[key] = value
	}
	return a
}

// Socket is the address of the Workload API.
func (a *Agent) Socket() string { return "unix://" + a.Settings["socket"] }

// Join joins with a token on standard input.
func (a *Agent) Join(t testing.TB, token string) {
	t.Helper()
	a.Write(t)
	cmd := a.Host.Command(string(a.Binary), "agent", "join", "--config", a.File(), "-")
	cmd.Stdin = strings.NewReader(token)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("join: %v\n%s", err, out)
	}
}

// Writ runs a workload's command on this node.
func (a *Agent) Writ(t testing.TB, want int, args ...string) (stdout, stderr string) {
	t.Helper()
	return a.Run(t, want, []string{"SPIFFE_ENDPOINT_SOCKET=" + a.Socket()}, "", args...)
}
