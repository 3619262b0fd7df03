package testdomain_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/attest/jointoken"
	"github.com/writ-dev/writ/internal/testdomain"
)

// door is one socket of writ, with a way in for strangers and a call that an honest user makes meanwhile.
type door struct {
	name   string
	dial   func() (net.Conn, error)
	client func() (*grpc.ClientConn, error) // nil: it speaks HTTP/1.1
	method string                           // one that reads a message
	half   string                           // the beginning of what it wants to hear first
	honest func(ctx context.Context) error
}

// TestStrangersOnEverySocket: whatever bytes come, the process lives, grows by a bounded amount, and answers honest callers
// meanwhile.
func TestStrangersOnEverySocket(t *testing.T) {
	t.Parallel()
	for i, name := range []string{"agent.sock", "authz.sock", "ext_authz over TCP", "admin.sock", "server over TLS", "server without TLS", "metrics"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := testdomain.New(t, testdomain.Built(t))
			besiege(t, d, doors(d)[i])
			for _, word := range []string{"panic", "fatal error", "goroutine "} {
				if strings.Contains(d.Tail(), word) {
					t.Errorf("the log has %q", word)
				}
			}
		})
	}
}

// besiege runs the attacks on a door one after the other, with half a request held open and one honest caller beside them.
func besiege(t *testing.T, d *testdomain.Domain, door door) {
	for range 50 { // warm
		if err := honestly(t.Context(), door); err != nil {
			t.Fatalf("before any attack: %v", err)
		}
	}
	before := rss(t, d.PID)
	ctx, stop := context.WithCancel(t.Context())
	var caller, attacks sync.WaitGroup
	var calls int
	var most int64
	caller.Go(func() {
		for tick := time.NewTicker(10 * time.Millisecond); ctx.Err() == nil; calls++ {
			if err := honestly(context.WithoutCancel(ctx), door); err != nil {
				t.Errorf("an honest call during the attack: %v", err)
				return
			}
			most = max(most, rss(t, d.PID))
			<-tick.C
		}
	})
	attacks.Go(func() {
		if err := halfRequests(door); err != nil {
			t.Errorf("half a request: %v", err)
		}
	})
	for _, attack := range attacksOn(door) {
		began := time.Now()
		if err := attack.run(door); err != nil {
			t.Errorf("%s: %v", attack.name, err)
		}
		t.Logf("%s took %s", attack.name, time.Since(began).Round(time.Millisecond))
	}
	attacks.Wait()
	stop()
	caller.Wait()
	select {
	case <-d.Done:
		t.Fatal("the process ended")
	default:
	}
	if grown := most - before; grown > 64<<20 {
		t.Errorf("it grew by %d MiB, from %d", grown>>20, before>>20)
	}
	if calls < 5 {
		t.Errorf("only %d honest calls were answered", calls)
	}
	t.Logf("%d honest calls, grew by %d KiB", calls, (most-before)>>10)
}

func honestly(ctx context.Context, d door) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return d.honest(ctx)
}

// doors are those of one `writ dev`, in the order of the test.
func doors(d *testdomain.Domain) []door {
	plain := insecure.NewCredentials()
	overTLS := credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	clients := func(target string, creds credentials.TransportCredentials) func() (*grpc.ClientConn, error) {
		return func() (*grpc.ClientConn, error) { return grpc.NewClient(target, grpc.WithTransportCredentials(creds)) }
	}
	raw := func(network, address string) func() (net.Conn, error) {
		return func() (net.Conn, error) {
			return net.DialTimeout(network, strings.TrimPrefix(address, "unix://"), 5*time.Second)
		}
	}
	healthy := func(open func() (*grpc.ClientConn, error)) func(context.Context) error {
		return func(ctx context.Context) error {
			return with(open, func(c *grpc.ClientConn) error {
				_, err := grpc_health_v1.NewHealthClient(c).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
				return err
			})
		}
	}
	decides := func(open func() (*grpc.ClientConn, error)) func(context.Context) error {
		return func(ctx context.Context) error {
			return with(open, func(c *grpc.ClientConn) error {
				answer, err := authv3.NewAuthorizationClient(c).Check(ctx, &authv3.CheckRequest{})
				if err == nil && answer.GetStatus().GetCode() == int32(codes.OK) {
					err = errors.New("an empty request was allowed")
				}
				return err
			})
		}
	}
	check := authv3.Authorization_Check_FullMethodName
	authzUnix, authzTCP, admin, server := clients(d.ExtAuthz[0], plain), clients(d.ExtAuthz[1], plain), clients(d.Admin, plain), clients(d.Server, overTLS)
	return []door{
		{"agent.sock", raw("unix", d.WorkloadAPI), clients(d.WorkloadAPI, plain), workload.SpiffeWorkloadAPI_FetchX509SVID_FullMethodName, preface[:10],
			func(ctx context.Context) error {
				_, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr(d.WorkloadAPI))
				return err
			}},
		{"authz.sock", raw("unix", d.ExtAuthz[0]), authzUnix, check, preface[:10], decides(authzUnix)},
		{"ext_authz over TCP", raw("tcp", d.ExtAuthz[1]), authzTCP, check, preface[:10], decides(authzTCP)},
		{"admin.sock", raw("unix", d.Admin), admin, adminv1.Admin_ListNodes_FullMethodName, preface[:10], func(ctx context.Context) error {
			return with(admin, func(c *grpc.ClientConn) error {
				_, err := adminv1.NewAdminClient(c).ListNodes(ctx, &adminv1.ListNodesRequest{})
				return err
			})
		}},
		{"server over TLS", func() (net.Conn, error) {
			return tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", d.Server, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		}, server, "/writ.node.v1.Node/Sign", preface[:10], healthy(server)},
		{"server without TLS", raw("tcp", d.Server), nil, "", "\x16\x03\x01\x02\x00\x01\x00", healthy(server)},
		{"metrics", raw("tcp", strings.TrimSuffix(strings.TrimPrefix(d.Metrics, "http://"), "/metrics")), nil, "", "GET /metrics HTTP/1.1\r\nHost: ", func(ctx context.Context) error {
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, d.Health, nil)
			if err != nil {
				return err
			}
			request.Close = true
			answer, err := http.DefaultClient.Do(request)
			if err != nil {
				return err
			}
			defer answer.Body.Close()
			if answer.StatusCode != http.StatusOK {
				return errors.New(answer.Status)
			}
			return nil
		}},
	}
}

// with makes a connection for one call, as strangers' floods concern the next caller most.
func with(open func() (*grpc.ClientConn, error), call func(*grpc.ClientConn) error) error {
	c, err := open()
	if err != nil {
		return err
	}
	defer c.Close()
	return call(c)
}

// attack is one thing that a stranger does; its error is that writ let it go too far.
type attack struct {
	name string
	run  func(door) error
}

func attacksOn(d door) []attack {
	if d.client == nil {
		return []attack{{"random bytes", randomBytes}, {"100,000 HTTP headers", manyLines}, {"64 MiB of body", bigBody}}
	}
	return []attack{{"random bytes", randomBytes}, {"random frames", randomFrames}, {"100,000 headers", manyHeaders},
		{"a 64 MiB message", bigMessage}, {"rapid resets", rapidResets}, {"slow streams", slowStreams}}
}

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// HTTP/2 frames (RFC 9113 section 6), written by hand as no library lets one write them wrong.
const (
	data, headers, resetStream, settings, continuation = 0, 1, 3, 4, 9
	endStream, endHeaders                              = 1, 4
)

func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	out := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}
	return append(binary.BigEndian.AppendUint32(out, stream), payload...)
}

// field is a header without indexing (RFC 7541 section 6.2.2); name and value are short.
func field(name, value string) []byte {
	return append(append(append([]byte{0, byte(len(name))}, name...), byte(len(value))), value...)
}

// call is the header block of a gRPC call.
func call(method string) []byte {
	var block []byte
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", method}, {":authority", "localhost"},
		{"content-type", "application/grpc"}, {"te", "trailers"}, {"workload.spiffe.io", "true"}} {
		block = append(block, field(f[0], f[1])...)
	}
	return block
}

// spoken opens a connection, says it, and waits until the other end has hung up or is quiet for a moment.
func spoken(d door, say func(w *bufio.Writer)) error {
	conn, err := d.dial()
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	defer conn.Close()
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		io.Copy(io.Discard, conn) // read all along, or writing would block
	}()
	conn.SetDeadline(time.Now().Add(15 * time.Second))
	w := bufio.NewWriterSize(conn, 64<<10)
	say(w)
	w.Flush()
	conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	<-heard
	return nil
}

func randomBytes(d door) error {
	for range 30 {
		if err := spoken(d, func(w *bufio.Writer) { io.CopyN(w, rand.Reader, 64<<10) }); err != nil {
			return err
		}
	}
	return nil
}

// randomFrames are well formed on the outside.
func randomFrames(d door) error {
	for range 20 {
		if err := spoken(d, func(w *bufio.Writer) {
			w.WriteString(preface)
			w.Write(frame(settings, 0, 0, nil))
			for range 200 {
				payload := make([]byte, 64)
				rand.Read(payload)
				w.Write(frame(payload[0]%10, payload[1], uint32(payload[2]), payload[3:]))
			}
		}); err != nil {
			return err
		}
	}
	return nil
}

func manyHeaders(d door) error {
	err := with(d.client, func(c *grpc.ClientConn) error { // a client that asks first how much is taken
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		ctx = metadata.AppendToOutgoingContext(ctx, "x-long", strings.Repeat("x", 20<<10))
		if err := c.Invoke(ctx, d.method, &[]byte{}, &[]byte{}, grpc.ForceCodec(raw{})); err == nil || !strings.Contains(err.Error(), "header list size") {
			return fmt.Errorf("20 KiB of headers ended with %v", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return spoken(d, func(w *bufio.Writer) {
		w.WriteString(preface)
		w.Write(frame(settings, 0, 0, nil))
		w.Write(frame(headers, endStream, 1, call(d.method)))
		var block []byte
		for i := range 100_000 {
			if block = append(block, field(fmt.Sprintf("x-%d", i), "canary")...); len(block) > 15<<10 {
				w.Write(frame(continuation, 0, 1, block))
				block = nil
			}
		}
		w.Write(frame(continuation, endHeaders, 1, block))
	})
}

// raw hands grpc-go bytes as they are.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal([]byte, any) error   { return nil }
func (raw) Name() string                  { return "proto" }

func bigMessage(d door) error {
	return with(d.client, func(c *grpc.ClientConn) error {
		message := make([]byte, 64<<20+1)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
		err := c.Invoke(ctx, d.method, &message, &message, grpc.ForceCodec(raw{}), grpc.MaxCallSendMsgSize(len(message)))
		if code := status.Code(err); code != codes.ResourceExhausted {
			return fmt.Errorf("64 MiB ended with %v", err)
		}
		return nil
	})
}

func rapidResets(d door) error {
	return spoken(d, func(w *bufio.Writer) {
		w.WriteString(preface)
		w.Write(frame(settings, 0, 0, nil))
		block := call(d.method)
		for stream := uint32(1); stream < 40_000; stream += 2 {
			w.Write(frame(headers, endHeaders, stream, block))
			w.Write(frame(resetStream, 0, stream, []byte{0, 0, 0, 8}))
		}
	})
}

// slowStreams begin calls on many connections and never end them, while honest ones go on.
func slowStreams(d door) error {
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for range 20 {
		conn, err := d.dial()
		if err != nil {
			return fmt.Errorf("dial: %w", err)
		}
		open = append(open, conn)
		go io.Copy(io.Discard, conn)
		conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
		w := bufio.NewWriter(conn)
		w.WriteString(preface)
		w.Write(frame(settings, 0, 0, nil))
		for stream := uint32(1); stream < 200; stream += 2 {
			w.Write(frame(headers, endHeaders, stream, call(d.method)))
			w.Write(frame(data, 0, stream, []byte{0, 0, 0}))
		}
		w.Flush() // an error is that it was cut, which is right
	}
	for i := range 20 {
		for _, conn := range open {
			conn.Write(frame(data, 0, uint32(2*i+1), []byte{0}))
		}
	}
	return d.honest(context.Background())
}

// halfRequests say the beginning of what that door speaks, and then nothing: they must be cut.
func halfRequests(d door) error {
	var g sync.WaitGroup
	errs := make(chan error, 40)
	for range cap(errs) {
		conn, err := d.dial()
		if err != nil {
			return fmt.Errorf("dial: %w", err)
		}
		g.Go(func() {
			defer conn.Close()
			io.WriteString(conn, d.half)
			conn.SetReadDeadline(time.Now().Add(25 * time.Second))
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				errs <- errors.New("it was not cut within 25 s")
			}
		})
	}
	g.Wait()
	close(errs)
	return <-errs
}

func manyLines(d door) error {
	return spoken(d, func(w *bufio.Writer) {
		w.WriteString("GET /metrics HTTP/1.1\r\nHost: localhost\r\n")
		for i := range 100_000 {
			fmt.Fprintf(w, "X-%d: canary\r\n", i)
		}
		w.WriteString("\r\n")
	})
}

func bigBody(d door) error {
	return spoken(d, func(w *bufio.Writer) {
		fmt.Fprintf(w, "POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n", 64<<20)
		for block, left := make([]byte, 1<<20), 64; left > 0; left-- {
			if _, err := w.Write(block); err != nil {
				return // cut, as it should be
			}
		}
	})
}

// rss is a process's resident memory.
func rss(t *testing.T, pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Errorf("the process is gone: %v", err)
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kib << 10
		}
	}
	t.Error("no VmRSS")
	return 0
}

// TestSecretsStayOutOfSight: at level debug, over joining, refusals, a restart and a ban, neither a token nor a key is in anything
// that the daemons write for people.
func TestSecretsStayOutOfSight(t *testing.T) {
	t.Parallel()
	hosts := testdomain.Hosts(t, 2)
	ca := newNodeCA(t)
	records := filepath.Join(testdomain.ShortFolder(t), "audit.jsonl")
	server := startServer(t, hosts[0], testdomain.Settings{"log": "{level: debug, format: json}", "audit": "{file: " + records + "}", "attest": ca.verifier()})
	server.Apply(t, entries(entry{"web", `["join_token:name:web-1"]`}))
	var seen bytes.Buffer
	token := server.Token(t, "--node", "web-1")
	agent := ca.agent(t, server, hosts[1], "web-1", time.Hour)
	agent.Settings["log"] = "{level: debug, format: json}"
	agent.Write(t)
	seen.WriteString(joined(t, agent, token))
	agent.Start(t)
	workloadKey, _ := agent.Writ(t, 0, "svid", "get", "-o", "pem")
	wants(t, agent, "/web")
	thief := testdomain.NewAgent(t, server.Binary, hosts[1], testdomain.Settings{"log": "{level: debug}"})
	seen.WriteString(refusedJoin(t, thief, token))
	seen.WriteString(refusedJoin(t, thief, token[:len(token)-5]))
	seen.WriteString(refusedJoin(t, thief, token+"x"))

	canaries := secretsOf(t, token, []string{workloadKey}, server.DataDir(), agent.DataDir(), agent.Folder, thief.DataDir())
	collect := func(d *testdomain.Daemon) {
		text, err := os.ReadFile(d.Log)
		if err != nil {
			t.Fatal(err)
		}
		seen.Write(text)
		for _, path := range []string{"/metrics", "/healthz", "/readyz"} {
			body, err := d.Get(path)
			if err != nil {
				t.Fatal(err)
			}
			seen.Write(body)
		}
	}
	collect(&agent.Daemon)
	agent.Stop(t)
	agent.Start(t)
	server.Writ(t, 0, "", "node", "ban", "join_token:name:web-1", "--reason", "test")
	untilTurnedAway(t, agent, "banned")
	collect(&agent.Daemon)
	collect(&server.Daemon)
	text, err := os.ReadFile(records)
	if err != nil || len(text) == 0 {
		t.Fatalf("audit records: %v", err)
	}
	seen.Write(text)
	list, _ := server.Writ(t, 0, "", "node", "list", "-o", "json")
	seen.WriteString(list)
	for what, canary := range canaries {
		if len(canary) < 16 {
			t.Fatalf("%s is too short to look for", what)
		}
		if bytes.Contains(seen.Bytes(), []byte(canary)) {
			t.Errorf("%s is in what the daemons wrote", what)
		}
	}
	if len(canaries) < 20 || !bytes.Contains(seen.Bytes(), []byte("node attested")) || !bytes.Contains(seen.Bytes(), []byte("P3002")) {
		t.Errorf("%d canaries over %d bytes prove little", len(canaries), seen.Len())
	}
}

// joined is what `writ agent join` printed.
func joined(t *testing.T, a *testdomain.Agent, token string) string {
	t.Helper()
	cmd := a.Host.Command(string(a.Binary), "agent", "join", "--config", a.File(), "-")
	cmd.Stdin = strings.NewReader(token)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("join: %v\n%s", err, out)
	}
	return string(out)
}

// secretsOf gives the texts under which a token and every key of the folders could be written.
func secretsOf(t *testing.T, token string, pems []string, folders ...string) map[string]string {
	t.Helper()
	secrets := map[string]string{"the token": token, "the token's end": token[len(token)-40:]}
	text, err := jointoken.Decode(token)
	if err != nil {
		t.Fatal(err)
	}
	spell(secrets, "the seed", text.Seed[:])
	keys := 0
	add := func(what string, der []byte) {
		key, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		scalar, err := key.(*ecdsa.PrivateKey).Bytes()
		if err != nil {
			t.Fatal(err)
		}
		keys++
		spell(secrets, what, scalar)
		secrets[what+" as PEM"] = base64.StdEncoding.EncodeToString(der)[40:64] // past what all keys have in common
	}
	addPEM := func(what string, data []byte) {
		for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
			if block.Type == "PRIVATE KEY" {
				add(what, block.Bytes)
			}
		}
	}
	for i, text := range pems {
		addPEM(fmt.Sprintf("workload key %d", i), []byte(text))
	}
	for _, folder := range folders {
		filepath.WalkDir(folder, func(path string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() || !e.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(path)
			addPEM(path, data)
			var held struct{ Key []byte }
			if json.Unmarshal(data, &held) == nil && len(held.Key) > 0 {
				add(path, held.Key)
			}
			return err
		})
	}
	if keys < 6 {
		t.Fatalf("only %d keys were found", keys)
	}
	return secrets
}

// spell adds bytes in the ways that programs print them.
func spell(into map[string]string, what string, secret []byte) {
	into[what+" as bytes"] = string(secret)
	into[what+" in hex"] = hex.EncodeToString(secret)
	into[what+" in HEX"] = strings.ToUpper(hex.EncodeToString(secret))
	into[what+" in base64"] = base64.RawStdEncoding.EncodeToString(secret)
	into[what+" in base64url"] = base64.RawURLEncoding.EncodeToString(secret)
	into[what+" as a Go slice"] = strings.Trim(fmt.Sprint(secret), "[]")
}

// TestConfigurationLosesNothing: a document that is empty or holds a comment only does not hide what comes after it.
func TestConfigurationLosesNothing(t *testing.T) {
	t.Parallel()
	b := testdomain.Built(t)
	folder := testdomain.ShortFolder(t)
	for _, row := range []struct{ name, text, says string }{
		{"an unknown key after an empty document", "---\n---\nzeal: 1\n", "zeal"},
		{"an unknown key after a comment", "# all defaults\n---\n# and more\n---\nzeal: 1\n", "zeal"},
		{"an unknown key in a section", "trust_domain: a.b\nca: {tll: 1h}\n", "tll"},
		{"a key twice", "trust_domain: a.b\ntrust_domain: c.d\n", "trust_domain"},
		{"two documents with keys", "trust_domain: a.b\n---\nname: b\n", "2 documents"},
	} {
		t.Run(row.name, func(t *testing.T) {
			file := filepath.Join(folder, "server.yaml")
			write(t, file, row.text)
			if _, text := b.Run(t, 1, nil, "", "server", "run", "--config", file); !strings.Contains(text, row.says) || !strings.Contains(text, "P1001") {
				t.Errorf("it says %s", text)
			}
		})
	}
}
