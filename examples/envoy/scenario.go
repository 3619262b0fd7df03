package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"text/template"
	"time"
)

// scenario is everything that the demo starts, and ends again.
type scenario struct {
	writ, envoy, files string
	once               bool

	folder   string // temporary; all that is written lies in it
	ready    readyFile
	services []*http.Server
	children []*child
	ended    chan error // a child that ended by itself
	web, api proxy
}

// readyFile is the part of writ dev's ready file that the demo needs.
type readyFile struct {
	TrustDomain string   `json:"trust_domain"`
	WorkloadAPI string   `json:"workload_api"`
	ExtAuthz    []string `json:"ext_authz"`
	Admin       string   `json:"admin"`
	Decisions   string   `json:"decisions"`
}

// proxy is one Envoy and the service behind it; the fields fill proxy.yaml.
type proxy struct {
	Name, ID, PeerID                 string
	Inbound, Outbound, Service, Peer int
	AgentSocket, AuthzSocket         string
}

// child is a process that the demo started; done is closed when it ended and was waited for.
type child struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// prepare makes the folder and gives each proxy a binary of its own name: that is how writ tells them apart.
func (s *scenario) prepare() error {
	s.ended = make(chan error, 3)
	folder, err := os.MkdirTemp("", "writ-demo-")
	if err != nil {
		return err
	}
	s.folder = folder
	envoy, err := exec.LookPath(s.envoy)
	if err != nil {
		return err
	}
	for _, name := range []string{"api-envoy", "web-envoy"} {
		if err := linkOrCopy(envoy, filepath.Join(folder, name)); err != nil {
			return err
		}
	}
	return s.fill("entries.yaml", map[string]any{"UID": os.Getuid(), "Folder": folder}, "entries.yaml")
}

// fill writes a template of the example, filled, into the demo's folder.
func (s *scenario) fill(from string, with any, to string) error {
	t, err := template.ParseFiles(filepath.Join(s.files, from))
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := t.Execute(&out, with); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.folder, to), out.Bytes(), 0o600)
}

// startWrit starts `writ dev` with the example's entries and policy and reads its ready file.
func (s *scenario) startWrit(ctx context.Context) error {
	file := filepath.Join(s.folder, "ready.json")
	if err := s.start("writ", s.writ, "dev", "--data-dir", filepath.Join(s.folder, "writ"), "--ready-file", file,
		"--entries", filepath.Join(s.folder, "entries.yaml"), "--policy", filepath.Join(s.files, "policy")); err != nil {
		return err
	}
	return s.until(ctx, "writ dev is ready", func() error {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		return json.Unmarshal(data, &s.ready)
	})
}

// startServices starts web and api, which speak plain HTTP on loopback and know nothing of writ.
func (s *scenario) startServices() error {
	ports, err := freePorts(6)
	if err != nil {
		return err
	}
	id := func(name string) string { return "spiffe://" + s.ready.TrustDomain + "/" + name }
	sockets := func(p proxy) proxy {
		p.AgentSocket, p.AuthzSocket = socket(s.ready.WorkloadAPI), socket(s.ready.ExtAuthz[0])
		return p
	}
	s.api = sockets(proxy{Name: "api", ID: id("api"), PeerID: id("web"), Inbound: ports[0], Outbound: ports[1], Service: ports[2], Peer: ports[3]})
	s.web = sockets(proxy{Name: "web", ID: id("web"), PeerID: id("api"), Inbound: ports[3], Outbound: ports[4], Service: ports[5], Peer: ports[0]})
	for _, p := range []proxy{s.api, s.web} {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p.Service))
		if err != nil {
			return err
		}
		server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s answers %s %s\n", p.Name, r.Method, r.URL.Path)
		})}
		s.services = append(s.services, server)
		go server.Serve(l)
	}
	return nil
}

// startProxies starts both Envoys and waits until web's reaches api through them.
func (s *scenario) startProxies(ctx context.Context) error {
	for _, p := range []proxy{s.api, s.web} {
		config := p.Name + "-envoy.yaml"
		if err := s.fill("proxy.yaml", p, config); err != nil {
			return err
		}
		if err := s.start(p.Name+"-envoy", filepath.Join(s.folder, p.Name+"-envoy"), "--config-path", filepath.Join(s.folder, config),
			"--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"); err != nil {
			return err
		}
	}
	return s.until(ctx, "the proxies have their certificates", func() error {
		code, _, err := s.call(ctx, "GET", "/orders")
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("status %d", code)
		}
		return err
	})
}

// start runs a child whose output goes to a file in the demo's folder.
func (s *scenario) start(name, path string, args ...string) error {
	log, err := os.Create(filepath.Join(s.folder, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	c := &child{cmd: exec.Command(path, args...), log: log.Name(), done: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = log, log
	c.cmd.SysProcAttr = endWithParent()
	if err := c.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	s.children = append(s.children, c)
	go func() {
		err := c.cmd.Wait()
		close(c.done)
		s.ended <- fmt.Errorf("%s ended: %v", name, err)
	}()
	return nil
}

// until tries again every 20 ms until there is no error, a child ends, or the context does.
func (s *scenario) until(ctx context.Context, what string, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case ended := <-s.ended:
			return fmt.Errorf("waiting until %s: %w\n%s", what, ended, s.logs())
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w: %w\n%s", what, ctx.Err(), err, s.logs())
		}
	}
}

// logs gives the end of each child's output.
func (s *scenario) logs() string {
	var out bytes.Buffer
	for _, c := range s.children {
		data, _ := os.ReadFile(c.log)
		fmt.Fprintf(&out, "--- %s\n%s\n", filepath.Base(c.log), data[max(0, len(data)-3000):])
	}
	return out.String()
}

// call is what the web service does: it asks its own proxy for something of api.
func (s *scenario) call(ctx context.Context, method, path string) (code int, decision string, err error) {
	request, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("http://127.0.0.1:%d%s", s.web.Outbound, path), nil)
	if err != nil {
		return 0, "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, response.Header.Get("x-writ-decision-id"), err
}

// makeCalls makes the allowed and the denied call, and says what was decided and why.
func (s *scenario) makeCalls(ctx context.Context) error {
	for _, c := range []struct {
		method, path string
		want         int
	}{{"GET", "/orders/7", http.StatusOK}, {"DELETE", "/orders/7", http.StatusForbidden}} {
		code, id, err := s.call(ctx, c.method, c.path)
		if err != nil {
			return err
		}
		var r record
		if err := s.until(ctx, "the decision is recorded", func() (err error) {
			r, err = findRecord(s.ready.Decisions, id, c.method, c.path)
			return err
		}); err != nil {
			return err
		}
		fmt.Printf("\nweb -> api  %s %s\n  status    %d %s\n  decision  %s\n  source    %s\n  why       %s\n",
			c.method, c.path, code, http.StatusText(code), r.DecisionID, r.Source, r.why())
		if code != c.want {
			return fmt.Errorf("%s %s answered %d, not %d", c.method, c.path, code, c.want)
		}
	}
	fmt.Printf("\nMore calls, as the web service makes them:\n  curl -i http://127.0.0.1:%d/orders\n  curl -i -X POST http://127.0.0.1:%[1]d/orders\n"+
		"Decisions, as they are recorded:\n  tail -f %s\nThe registry:\n  %s entry get --admin %s\n",
		s.web.Outbound, s.ready.Decisions, s.writ, socket(s.ready.Admin))
	return nil
}

// record is the part of a decision record that the demo shows.
type record struct {
	DecisionID string `json:"decision_id"`
	Source     string `json:"source"`
	Method     string `json:"method"`
	Path       string `json:"path"`
	Allow      bool   `json:"allow"`
	Reason     string `json:"reason"`
	Rule       string `json:"rule"`
}

func (r record) why() string {
	if r.Allow {
		return "allowed by " + r.Rule
	}
	return r.Reason
}

// findRecord finds a decision by its id, or the newest of a call that was allowed, whose id went to the upstream only.
func findRecord(file, id, method, path string) (record, error) {
	f, err := os.Open(file)
	if err != nil {
		return record{}, err
	}
	defer f.Close()
	var found record
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r record
		if json.Unmarshal(lines.Bytes(), &r) == nil && (r.DecisionID == id || id == "" && r.Method == method && r.Path == path) {
			found = r
		}
	}
	if found.DecisionID == "" {
		return record{}, errors.New("no record yet")
	}
	return found, nil
}

// cleanUp ends every child, the newest first, waits for each, and removes the folder.
func (s *scenario) cleanUp() {
	for i := len(s.children) - 1; i >= 0; i-- {
		c := s.children[i]
		c.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-c.done:
		case <-time.After(3 * time.Second):
			c.cmd.Process.Kill()
			<-c.done
		}
	}
	for _, server := range s.services {
		server.Close()
	}
	os.RemoveAll(s.folder)
}
