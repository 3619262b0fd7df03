package testdomain

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"text/template"
	"time"
)

// Node says where a proxy finds its agent: the trust domain, and the sockets of Workload API and ext_authz on one host.
type Node struct{ TrustDomain, Agent, Authz string }

// Node is the one that writ dev runs on.
func (d *Domain) Node() Node {
	return Node{d.TrustDomain, strings.TrimPrefix(d.WorkloadAPI, "unix://"), strings.TrimPrefix(d.ExtAuthz[0], "unix://")}
}

// Side is a plain HTTP service and the real Envoy beside it, configured by examples/envoy/proxy.yaml. The fields fill that file.
type Side struct {
	*Process // of the Envoy; nil before Start

	Name, ID, PeerID                 string
	Inbound, Outbound, Service, Peer int // ports on loopback
	AgentSocket, AuthzSocket         string

	Fresh, Admin int    // further ports: outbound with a handshake for each request, and Envoy's own
	Path         string // of its Envoy, a name of its own: what an entry can match

	// Delta lets the Envoy follow its secrets by the incremental protocol.
	Delta bool
	// MaxConnection bounds how long connections to the peer live, as max_connection_duration does; empty: as the example has it.
	MaxConnection string
	// VirtualHosts of the inbound listener, as YAML in flow style; empty: as the example has them.
	VirtualHosts string
	// FailOpen lets pass what the agent does not answer, or answers with what the Envoy cannot read: failure_mode_allow.
	FailOpen bool
	// Collector is the port of an OpenTelemetry collector on loopback, to which the Envoy sends spans of what comes in; 0: no traces.
	Collector int

	asked  atomic.Int64
	client http.Client
}

// Sides makes web and api, each the other's peer, and starts their services. Their Envoys are started by Start.
func Sides(t testing.TB, n Node) (web, api *Side) {
	t.Helper()
	envoy := envoyPath(t)
	side := func(name string) *Side {
		s := &Side{Name: name, ID: "spiffe://" + n.TrustDomain + "/" + name, AgentSocket: n.Agent, AuthzSocket: n.Authz,
			Inbound: Port(t), Outbound: Port(t), Fresh: Port(t), Admin: Port(t), Path: filepath.Join(t.TempDir(), name+"-envoy")}
		s.client = http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{}}
		t.Cleanup(s.client.CloseIdleConnections)
		if err := os.Link(envoy, s.Path); err != nil {
			copyFile(t, envoy, s.Path)
		}
		s.serve(t)
		return s
	}
	web, api = side("web"), side("api")
	web.Peer, web.PeerID = api.Inbound, api.ID
	api.Peer, api.PeerID = web.Inbound, web.ID
	return web, api
}

// envoyPath is the Envoy that tools/envoy/get finds. There is no test without one.
func envoyPath(t testing.TB) string {
	t.Helper()
	out, err := exec.Command(filepath.Join(Root(t), "tools", "envoy", "get")).Output()
	if err != nil {
		t.Fatalf("no Envoy: %v; `make needs` gets it", err)
	}
	return strings.TrimSpace(string(out))
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o755); err != nil {
		t.Fatal(err)
	}
}

// Port finds a loopback port that nobody uses, below those that the kernel gives to outgoing connections.
func Port(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := 10000 + rand.IntN(22000)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// Got is what a service was asked, which it says in its answer.
type Got struct {
	Path   string
	Header http.Header
}

// serve starts the service: it answers with what it got.
func (s *Side) serve(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Service = l.Addr().(*net.TCPAddr).Port
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		w.Header().Set("X-Service", s.Name)
		json.NewEncoder(w).Encode(Got{r.URL.RequestURI(), r.Header})
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
}

// Asked counts the requests that reached the service.
func (s *Side) Asked() int64 { return s.asked.Load() }

// Start starts the Envoy.
func (s *Side) Start(t testing.TB) {
	t.Helper()
	root := Root(t)
	proxy := s.fill(t, filepath.Join(root, "examples", "envoy", "proxy.yaml"))
	// The machine may be busy, and how soon a decision falls is not what these tests are about.
	replaceOnce(t, &proxy, "timeout: 0.25s", "timeout: 10s")
	if s.MaxConnection != "" {
		replaceOnce(t, &proxy, "max_connection_duration: 600s", "max_connection_duration: "+s.MaxConnection)
	}
	if s.FailOpen {
		replaceOnce(t, &proxy, "failure_mode_allow: false", "failure_mode_allow: true")
	}
	if s.VirtualHosts != "" {
		replaceOnce(t, &proxy, `[{name: service, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: service}}]}]`, s.VirtualHosts)
	}
	if s.Collector != 0 {
		replaceOnce(t, &proxy, "stat_prefix: inbound\n", "stat_prefix: inbound\n          "+tracing(s.Name))
	}
	more := s.fill(t, filepath.Join(root, "internal", "testdomain", "testdata", "envoy.yaml"))
	if s.Delta {
		replaceOnce(t, &proxy, "api_type: GRPC", "api_type: DELTA_GRPC")
		replaceOnce(t, &more, "api_type: GRPC", "api_type: DELTA_GRPC")
	}
	config := filepath.Join(t.TempDir(), "proxy.yaml")
	if err := os.WriteFile(config, []byte(proxy), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Process = Start(t, s.Name+"-envoy", exec.Command(s.Path, "--config-path", config, "--config-yaml", more,
		"--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"))
}

// tracing is what a connection manager needs to trace; the cluster is in testdata/envoy.yaml.
func tracing(service string) string {
	return `tracing: {provider: {name: envoy.tracers.opentelemetry, typed_config: {"@type": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig,` +
		` service_name: ` + service + `, grpc_service: {envoy_grpc: {cluster_name: collector}, timeout: 1s}}}}` + "\n"
}

func (s *Side) fill(t testing.TB, file string) string {
	t.Helper()
	page, err := template.ParseFiles(file)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := page.Execute(&out, s); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func replaceOnce(t testing.TB, text *string, from, to string) {
	t.Helper()
	if n := strings.Count(*text, from); n != 1 {
		t.Fatalf("the example has %q %d times, not once", from, n)
	}
	*text = strings.Replace(*text, from, to, 1)
}

// Answer is what came back for a call.
type Answer struct {
	Code   int
	Header http.Header
	Body   string
	Got    *Got // nil where the call did not reach the service
}

// Call is what the service does when it wants something of its peer: it asks its own Envoy, on connections that stay open.
// The target is sent as it is.
func (s *Side) Call(method, target string, header http.Header) (Answer, error) {
	return s.call(s.Outbound, "", method, target, header)
}

// CallHost is Call with a Host of the caller's choice; empty: the address.
func (s *Side) CallHost(host, method, target string, header http.Header) (Answer, error) {
	return s.call(s.Outbound, host, method, target, header)
}

// CallFresh is Call with a TLS handshake of its own.
func (s *Side) CallFresh(method, target string, header http.Header) (Answer, error) {
	return s.call(s.Fresh, "", method, target, header)
}

func (s *Side) call(port int, host, method, target string, header http.Header) (Answer, error) {
	address := fmt.Sprintf("127.0.0.1:%d", port)
	request := &http.Request{Method: method, Host: host, URL: &url.URL{Scheme: "http", Host: address, Opaque: target}, Header: header.Clone()}
	response, err := s.client.Do(request)
	if err != nil {
		return Answer{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return Answer{}, err
	}
	a := Answer{Code: response.StatusCode, Header: response.Header, Body: string(body)}
	if response.Header.Get("X-Service") == "" {
		return a, nil
	}
	a.Got = &Got{}
	return a, json.Unmarshal(body, a.Got)
}

// Reaches waits until the peer answers calls with this code.
func (s *Side) Reaches(t testing.TB, within time.Duration, code int, method, target string) Answer {
	t.Helper()
	var a Answer
	Until(t, within, fmt.Sprintf("%s %s answers %d", method, target, code), func() (err error) {
		if a, err = s.Call(method, target, nil); err == nil && a.Code != code {
			err = fmt.Errorf("it answers %d %s", a.Code, a.Body)
		}
		return err
	})
	return a
}

// AskAdmin asks Envoy's own interface.
func (s *Side) AskAdmin(path string) (string, error) {
	response, err := s.client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", s.Admin, path))
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

// Waits says whether this Envoy knows the roots, so that its agent has answered, and still waits for its own certificate.
func (s *Side) Waits() error {
	text, err := s.AskAdmin("/config_dump")
	if err != nil {
		return err
	}
	type secret struct{ Name string }
	var dump struct {
		Configs []struct {
			Active  []secret `json:"dynamic_active_secrets"`
			Warming []secret `json:"dynamic_warming_secrets"`
		}
	}
	if err := json.Unmarshal([]byte(text), &dump); err != nil {
		return fmt.Errorf("/config_dump: %w: %s", err, text)
	}
	for _, c := range dump.Configs {
		if slices.Contains(c.Active, secret{"ROOTCA"}) && slices.Contains(c.Warming, secret{s.ID}) {
			return nil
		}
	}
	return fmt.Errorf("%s does not have the roots and wait for its certificate: %+v", s.Name, dump)
}

// Certificate is what Envoy says of one that it uses.
type Certificate struct {
	Serial   string    `json:"serial_number"`
	NotAfter time.Time `json:"expiration_time"`
	Names    []struct {
		URI string `json:"uri"`
	} `json:"subject_alt_names"`
}

// Certificate is the one that this side shows now.
func (s *Side) Certificate() (Certificate, error) {
	text, err := s.AskAdmin("/certs")
	if err != nil {
		return Certificate{}, err
	}
	var all struct {
		Certificates []struct {
			Chain []Certificate `json:"cert_chain"`
		} `json:"certificates"`
	}
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return Certificate{}, fmt.Errorf("/certs: %w: %s", err, text)
	}
	for _, c := range all.Certificates {
		for _, link := range c.Chain {
			if len(link.Names) == 1 && link.Names[0].URI == s.ID {
				return link, nil
			}
		}
	}
	return Certificate{}, fmt.Errorf("%s has no certificate of %s", s.Name, s.ID)
}

// Decision is the part of a decision record that tests look at.
type Decision struct {
	ID       string `json:"decision_id"`
	Revision string `json:"revision"`
	Source   string `json:"source"`
	Method   string `json:"method"`
	Path     string `json:"path"`
	Allow    bool   `json:"allow"`
	Reason   string `json:"reason"`
	Rule     string `json:"rule"`
	TraceID  string `json:"trace_id"`
}

// FindDecision waits for the record of a decision, which is readable within a second or so.
func FindDecision(t testing.TB, file, id string) Decision {
	t.Helper()
	var found Decision
	Until(t, 5*time.Second, "decision "+id+" is recorded", func() error {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(data)) {
			if !strings.Contains(line, id) {
				continue
			}
			if err := json.Unmarshal([]byte(line), &found); err != nil {
				return err
			}
			if found.ID == id && id != "" {
				return nil
			}
		}
		return fmt.Errorf("no line of %s has it", file)
	})
	return found
}
