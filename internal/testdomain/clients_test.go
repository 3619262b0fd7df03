package testdomain_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/internal/testdomain"
)

// TestOtherPeoplesClients: go-spiffe and py-spiffe hold an identity over rotation, a restart of the agent and a change of their
// entry, and speak mutual TLS with each other at any moment.
func TestOtherPeoplesClients(t *testing.T) {
	t.Parallel()
	host := testdomain.Hosts(t, 1)[0]
	server := startServer(t, host, nil)
	interpreter, program := pythonPath(t), programPath(t)
	document := func(name, path, more string) string {
		return fmt.Sprintf("name: %s\npath: /%[1]s\nwhere: [\"join_token:name:web-1\"]\nmatch: [\"unix:uid:%d\", \"unix:path:%s\"]\nttl: 12s\n%s",
			name, os.Getuid(), path, more)
	}
	server.Apply(t, document("go", program, "")+"---\n"+document("py", interpreter, ""))
	agent := testdomain.NewAgent(t, server.Binary, host, nil)
	agent.Join(t, server.Token(t, "--node", "web-1"))
	agent.Start(t)

	source := newSource(t, agent)
	py := python(t, agent)
	goID, pyID := "spiffe://"+testdomain.TrustDomain+"/go", "spiffe://"+testdomain.TrustDomain+"/py"
	first, firstPy := source.svid(t), py.svid(t, func(event) bool { return true })
	if first.ID.String() != goID || firstPy.ID != pyID || firstPy.Roots != 1 {
		t.Fatalf("go has %s, python %+v", first.ID, firstPy)
	}
	talk(t, source.X509Source, py, goID, pyID)

	second := source.after(t, first, "a rotation", func(*x509svid.SVID) bool { return true })
	secondPy := py.svid(t, func(e event) bool { return e.Serial != firstPy.Serial })
	talk(t, source.X509Source, py, goID, pyID)

	if code := agent.Stop(t); code != 0 {
		t.Errorf("the agent ended with %d", code)
	}
	if got := source.svid(t); got.Certificates[0].NotAfter.Before(time.Now()) {
		t.Error("the source lost its SVID with the agent")
	}
	agent.Start(t)
	third := source.after(t, second, "the restart", func(*x509svid.SVID) bool { return true })
	thirdPy := py.svid(t, func(e event) bool { return e.Serial != secondPy.Serial })
	talk(t, source.X509Source, py, goID, pyID)

	server.Apply(t, document("go", program, "dns: [go.internal]\n")+"---\n"+document("py", interpreter, "dns: [py.internal]\n"))
	source.after(t, third, "the change of its entry", func(s *x509svid.SVID) bool {
		return slices.Equal(s.Certificates[0].DNSNames, []string{"go.internal"})
	})
	py.svid(t, func(e event) bool { return e.Serial != thirdPy.Serial && slices.Equal(e.DNS, []string{"py.internal"}) })
	talk(t, source.X509Source, py, goID, pyID)
	if refused := dialPython(t, source.X509Source, py, "spiffe://"+testdomain.TrustDomain+"/other", pyID); refused.Event != "refused" {
		t.Errorf("python let in whom it does not know: %+v", refused)
	}
}

// TestWorkloadWaitsForItsEntry: it is denied until the entry comes, then served, and denied again once the entry is gone.
func TestWorkloadWaitsForItsEntry(t *testing.T) {
	t.Parallel()
	d := testdomain.New(t, testdomain.Built(t), "--entries", os.DevNull)
	if _, text := d.Writ(t, 3, "", "svid", "get"); !strings.Contains(text, "no identity issued") {
		t.Errorf("without an entry: %s", text)
	}
	got := make(chan *workloadapi.X509Source, 1)
	go func() {
		source, err := workloadapi.NewX509Source(t.Context(), workloadapi.WithClientOptions(workloadapi.WithAddr(d.WorkloadAPI)))
		if err != nil {
			t.Errorf("wait for the entry: %v", err)
		}
		got <- source
	}()
	stream := watch(t, d.WorkloadAPI)
	if err := stream.next(t); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a stream before the entry: %v", err)
	}
	d.Apply(t, "name: late\npath: /late\nany: true\nmatch: [\"unix:uid:0\"]\n")
	source := <-got
	if source == nil {
		return
	}
	defer source.Close()
	if s, err := source.GetX509SVID(); err != nil || s.ID.Path() != "/late" {
		t.Errorf("the workload that waited has %v, %v", s, err)
	}
	for err := stream.next(t); err != nil; err = stream.next(t) {
		if status.Code(err) != codes.PermissionDenied { // of tries before the entry
			t.Errorf("the stream after the entry: %v", err)
		}
	}
	d.Writ(t, 0, "", "entry", "delete", "late")
	if err := stream.next(t); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "no identity issued") {
		t.Errorf("the stream after the entry went: %v", err)
	}
	d.Writ(t, 3, "", "svid", "get")
}

// TestEachUserGetsItsOwn: ten users at once, several times each, never see an identity of another.
func TestEachUserGetsItsOwn(t *testing.T) {
	t.Parallel()
	d := testdomain.New(t, testdomain.Built(t), "--entries", os.DevNull)
	const users, first = 10, 30_001
	var docs []string
	for uid := first; uid < first+users; uid++ {
		docs = append(docs, fmt.Sprintf("name: u%d\npath: /u%[1]d\nany: true\nmatch: [\"unix:uid:%[1]d\"]\n", uid))
	}
	d.Apply(t, strings.Join(docs, "---\n"))
	d.Writ(t, 0, "", "entry", "wait")
	as := func(uid int) (string, error) {
		cmd := exec.Command(string(d.Binary), "svid", "get", "-o", "json")
		cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET="+d.WorkloadAPI)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
		out, err := cmd.Output()
		return string(out), err
	}
	var g sync.WaitGroup
	for uid := first; uid < first+users; uid++ {
		g.Go(func() {
			for range 4 {
				out, err := as(uid)
				if err != nil || strings.Count(out, `"spiffe_id"`) != 1 || !strings.Contains(out, fmt.Sprintf(`"spiffe://dev.writ/u%d"`, uid)) {
					t.Errorf("uid %d got %s (%v)", uid, out, err)
				}
			}
		})
	}
	g.Wait()
	var exit *exec.ExitError
	if out, err := as(first + users); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("a user without an entry got %s (%v)", out, err)
	}
}

// source is go-spiffe's X509Source in this process.
type source struct{ *workloadapi.X509Source }

func newSource(t *testing.T, a *testdomain.Agent) source {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	s, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(a.Socket())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return source{s}
}

// svid is the present SVID, verified against the source's own bundle.
func (s source) svid(t *testing.T) *x509svid.SVID {
	t.Helper()
	got, err := s.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := x509svid.Verify(got.Certificates, s); err != nil {
		t.Fatalf("the SVID of serial %x: %v", got.Certificates[0].SerialNumber, err)
	}
	return got
}

// after waits for an SVID other than old that is right.
func (s source) after(t *testing.T, old *x509svid.SVID, what string, right func(*x509svid.SVID) bool) *x509svid.SVID {
	t.Helper()
	var got *x509svid.SVID
	testdomain.Until(t, 45*time.Second, "go-spiffe has a new SVID after "+what, func() error {
		if got = s.svid(t); got.Certificates[0].SerialNumber.Cmp(old.Certificates[0].SerialNumber) == 0 || !right(got) {
			return fmt.Errorf("it has serial %x", got.Certificates[0].SerialNumber)
		}
		return nil
	})
	return got
}

// talk has each side call the other.
func talk(t *testing.T, s *workloadapi.X509Source, py *program, goID, pyID string) {
	t.Helper()
	l, err := spiffetls.ListenWithMode(t.Context(), "tcp", "127.0.0.1:0",
		spiffetls.MTLSServerWithSource(tlsconfig.AuthorizeID(spiffeid.RequireFromString(pyID)), s))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	py.start(t, "dial "+l.Addr().String()+" "+goID)
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	answer(t, conn)
	if e := py.next(t, "peer"); e.Said != "go heard hello from python" {
		t.Errorf("python heard %q", e.Said)
	}
	if e := dialPython(t, s, py, goID, pyID); e.Event != "peer" || e.Said != "hello from go" {
		t.Errorf("python, called by go: %+v", e)
	}
}

// answer says what it heard.
func answer(t *testing.T, conn net.Conn) {
	t.Helper()
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	buffer := make([]byte, 100)
	n, err := conn.Read(buffer)
	if err == nil {
		_, err = fmt.Fprintf(conn, "go heard %s", buffer[:n])
	}
	if err != nil {
		t.Errorf("answer python: %v", err)
	}
}

// dialPython calls a Python listener that lets in expected only, and gives how that ended there.
func dialPython(t *testing.T, s *workloadapi.X509Source, py *program, expected, pyID string) event {
	t.Helper()
	port := py.do(t, "serve "+expected, "listening").Port
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := spiffetls.DialWithMode(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port),
		spiffetls.MTLSClientWithSource(tlsconfig.AuthorizeID(spiffeid.RequireFromString(pyID)), s))
	if err == nil {
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(conn, "hello from go") // what came of it, python tells
	}
	return py.next(t, "peer", "refused")
}

// stream is go-spiffe's watcher, which tells each update and each error in turn.
type stream struct{ news chan error }

func watch(t *testing.T, address string) *stream {
	t.Helper()
	s := &stream{news: make(chan error, 100)}
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(done)
		workloadapi.WatchX509Context(ctx, s, workloadapi.WithAddr(address))
	}()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

func (s *stream) OnX509ContextUpdate(*workloadapi.X509Context) { s.news <- nil }
func (s *stream) OnX509ContextWatchError(err error)            { s.news <- err }

// next is the next update (nil) or error.
func (s *stream) next(t *testing.T) error {
	t.Helper()
	select {
	case err := <-s.news:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("no news from the Workload API")
		return nil
	}
}
