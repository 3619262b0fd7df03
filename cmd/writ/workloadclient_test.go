package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// A step is what the Workload API does on one call of FetchX509SVID: it sends messages, then ends with a code, or stays where there is none,
// and sends more as they come.
type step struct {
	messages []*workload.X509SVIDResponse
	code     codes.Code
	more     chan *workload.X509SVIDResponse
}

// fakeAPI is a Workload API that goes by steps; the last one holds for good.
type fakeAPI struct {
	workload.UnimplementedSpiffeWorkloadAPIServer

	mu      sync.Mutex
	steps   []step
	calls   int
	headers []string
}

func (f *fakeAPI) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	f.mu.Lock()
	now := f.steps[min(f.calls, len(f.steps)-1)]
	f.calls++
	md, _ := metadata.FromIncomingContext(stream.Context())
	f.headers = append(f.headers, strings.Join(md.Get("workload.spiffe.io"), "+"))
	f.mu.Unlock()
	for _, m := range now.messages {
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	if now.code != codes.OK {
		return status.Error(now.code, "the fake says so")
	}
	for {
		select {
		case <-stream.Context().Done():
			return nil
		case m := <-now.more:
			if err := stream.Send(m); err != nil {
				return err
			}
		}
	}
}

func (f *fakeAPI) called() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// serveFake makes it this process's Workload API.
func serveFake(t *testing.T, steps ...step) *fakeAPI {
	t.Helper()
	folder, err := os.MkdirTemp("", "writ") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	l, err := net.Listen("unix", filepath.Join(folder, "s"))
	if err != nil {
		t.Fatal(err)
	}
	f, g := &fakeAPI{steps: steps}, grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(g, f)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	t.Setenv(workloadVariable, "unix://"+l.Addr().String())
	return f
}

// issued is an SVID with its key and its root.
func issued(t *testing.T, path string) *workload.X509SVID {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: rand.Text()}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		URIs: []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: path}}, NotBefore: root.NotBefore, NotAfter: root.NotAfter}
	rootDER, rootErr := x509.CreateCertificate(rand.Reader, root, root, &key.PublicKey, key)
	leafDER, leafErr := x509.CreateCertificate(rand.Reader, leaf, root, &key.PublicKey, key)
	keyDER, keyErr := x509.MarshalPKCS8PrivateKey(key)
	if err := errors.Join(err, rootErr, leafErr, keyErr); err != nil {
		t.Fatal(err)
	}
	return &workload.X509SVID{SpiffeId: leaf.URIs[0].String(), X509Svid: leafDER, X509SvidKey: keyDER, Bundle: rootDER}
}

func message(svids ...*workload.X509SVID) *workload.X509SVIDResponse {
	return &workload.X509SVIDResponse{Svids: svids}
}

// writ runs a command and gives its exit code and what it printed.
func writ(t *testing.T, args ...string) (code int, out, talk string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var o, e bytes.Buffer
	code = run(ctx, args, strings.NewReader(""), &o, &e)
	return code, o.String(), e.String()
}

func TestEndpointAddresses(t *testing.T) {
	for address, valid := range map[string]bool{
		"WEP-11 unix:///tmp/a.sock": true, "WEP-11 tcp://127.0.0.1:8081": true, "WEP-11 tcp://[::1]:8081": true, "WEP-11 unix:/tmp/a.sock": true,
		"WEP-11 /tmp/a.sock": false, "WEP-11 http://127.0.0.1:80": false, "WEP-11 npipe:spire": false, "WEP-11 unix": false, "WEP-11 %zz": false,
		"WEP-12 unix://tmp/a.sock": false, "WEP-12 unix:a.sock": false, "WEP-12 unix:": false, "WEP-12 unix://": false, "WEP-12 unix:///": false,
		"WEP-12 unix:///a?b": false, "WEP-12 unix:///a#b": false, "WEP-12 unix:///a#": false, "WEP-12 unix:///a?": false, "WEP-12 unix://u@/a": false, "WEP-12 unix://host/a": false,
		"WEP-13 tcp://localhost:80": false, "WEP-13 tcp://127.0.0.1": false, "WEP-13 tcp://1.2.3.4:80/": false, "WEP-13 tcp://1.2.3.4:80/a": false,
		"WEP-13 tcp://u@1.2.3.4:80": false, "WEP-13 tcp://1.2.3.4:": false, "WEP-13 tcp://1.2.3.4:0": false, "WEP-13 tcp://1.2.3.4:80?": false, "WEP-13 tcp:1.2.3.4:80": false, "WEP-13 tcp://:80": false,
	} {
		t.Run(address, func(t *testing.T) {
			_, address, _ := strings.Cut(address, " ")
			err := checkEndpoint(address)
			if (err == nil) != valid {
				t.Errorf("checkEndpoint(%q) = %v, want valid %v", address, err, valid)
			}
			if theirs := workloadapi.ValidateAddress(address); err == nil && theirs != nil {
				t.Errorf("go-spiffe will not dial %q: %v", address, theirs)
			}
			if valid {
				return
			}
			t.Setenv(workloadVariable, address)
			for _, command := range []string{"get", "watch"} {
				if code, _, talk := writ(t, "svid", command); code != exitUsage || !strings.Contains(talk, workloadVariable) {
					t.Errorf("svid %s ends with %d: %s", command, code, talk)
				}
			}
		})
	}
}

func TestWEP_10_VariableNamesTheEndpoint(t *testing.T) {
	f := serveFake(t, step{messages: []*workload.X509SVIDResponse{message(issued(t, "/web"))}})
	if code, out, talk := writ(t, "svid", "get"); code != exitOK || !strings.Contains(out, "spiffe://example.org/web") || f.called() != 1 {
		t.Errorf("it ends with %d after %d calls: %s%s", code, f.called(), out, talk)
	}
	t.Setenv(workloadVariable, "unix:///nowhere/a.sock")
	if code, _, talk := writ(t, "svid", "get", "--timeout", "50ms"); code != exitUnreachable || !strings.Contains(talk, "/nowhere/a.sock") {
		t.Errorf("where nobody is it ends with %d: %s", code, talk)
	}
}

// watch runs `svid watch --write` until the test ends it, and gives what a file holds.
func watch(t *testing.T) (read func(name string) string, end func() (code int)) {
	t.Helper()
	folder := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"svid", "watch", "--write", folder}, strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{})
	}()
	end = sync.OnceValue(func() int { cancel(); return <-ended })
	t.Cleanup(func() { end() })
	return func(name string) string {
		text, _ := os.ReadFile(filepath.Join(folder, name))
		return string(text)
	}, end
}

func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func pemOf(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestWEP_05_WEP_17_InvalidArgumentIsFinal(t *testing.T) {
	f := serveFake(t, step{code: codes.InvalidArgument})
	if code, _, _ := writ(t, "svid", "get"); code != exitFailed || f.called() != 1 {
		t.Errorf("svid get ends with %d after %d calls", code, f.called())
	}
	if code, _, _ := writ(t, "svid", "watch"); code != exitFailed || f.called() != 2 {
		t.Errorf("svid watch ends with %d after %d calls", code, f.called()-1)
	}
	if !slices.Equal(f.headers, []string{"true", "true"}) {
		t.Errorf("the security headers are %q", f.headers)
	}
}

func TestWEP_19_UnavailableIsTriedAgain(t *testing.T) {
	passing := []step{{code: codes.Unavailable}, {code: codes.Unavailable}, {code: codes.Unavailable}, {messages: []*workload.X509SVIDResponse{message(issued(t, "/web"))}}}
	f := serveFake(t, passing...)
	if code, out, talk := writ(t, "svid", "get"); code != exitOK || f.called() != 4 {
		t.Errorf("svid get ends with %d after %d calls: %s%s", code, f.called(), out, talk)
	}
	f = serveFake(t, passing...)
	read, _ := watch(t)
	await(t, "the SVID after three failures", func() bool { return read("svid.pem") != "" && f.called() == 4 })
}

func TestWEP_21_DenialIsTriedAgainWhereOneWatches(t *testing.T) {
	f := serveFake(t, step{code: codes.PermissionDenied}, step{messages: []*workload.X509SVIDResponse{message(issued(t, "/web"))}})
	read, _ := watch(t)
	await(t, "the SVID after a denial", func() bool { return read("svid.pem") != "" && f.called() == 2 })
}

// What a message does not have is not kept from the one before it.
func TestWAPI_11_WAPI_12_WAPI_43_EachMessageIsTheWholeState(t *testing.T) {
	first, second := issued(t, "/web"), issued(t, "/web")
	both := issued(t, "/web")
	both.Bundle = slices.Concat(both.Bundle, first.Bundle)
	serveFake(t, step{messages: []*workload.X509SVIDResponse{message(both)}, code: codes.Unavailable}, step{messages: []*workload.X509SVIDResponse{message(second)}})
	read, _ := watch(t)
	await(t, "the second message's root alone", func() bool {
		return read("bundle.pem") == pemOf(second.Bundle) && read("svid.pem") == pemOf(second.X509Svid)
	})
}

// A message that lacks what it must have changes nothing, and is said.
func TestWAPI_14_MessageWithoutAMandatoryField(t *testing.T) {
	good := issued(t, "/web")
	for name, spoil := range map[string]func(s *workload.X509SVID){
		"no ID":     func(s *workload.X509SVID) { s.SpiffeId = "" },
		"no SVID":   func(s *workload.X509SVID) { s.X509Svid = nil },
		"no key":    func(s *workload.X509SVID) { s.X509SvidKey = nil },
		"no bundle": func(s *workload.X509SVID) { s.Bundle = nil },
		"nothing":   nil,
	} {
		t.Run(name, func(t *testing.T) {
			bad := message()
			if spoil != nil {
				other := issued(t, "/web")
				spoil(other)
				bad = message(other)
			}
			f := serveFake(t, step{messages: []*workload.X509SVIDResponse{message(good)}, code: codes.Unavailable},
				step{messages: []*workload.X509SVIDResponse{bad}, code: codes.Unavailable})
			read, end := watch(t)
			await(t, "the bad message, twice", func() bool { return f.called() >= 4 })
			if read("svid.pem") != pemOf(good.X509Svid) || read("bundle.pem") != pemOf(good.Bundle) || end() != exitOK {
				t.Error("the files are no longer those of the good message")
			}
		})
	}
}

func TestWAPI_29_OfTwoWithOneHintTheFirst(t *testing.T) {
	first, second := issued(t, "/first"), issued(t, "/second")
	first.Hint, second.Hint = "same", "same"
	serveFake(t, step{messages: []*workload.X509SVIDResponse{message(first, second)}})
	if code, out, _ := writ(t, "svid", "get"); code != exitOK || !strings.Contains(out, "/first") || strings.Contains(out, "/second") {
		t.Errorf("it ends with %d: %s", code, out)
	}
}

// A list is a list, in JSON too, where it is empty.
func TestSVIDWithoutNamesHasAnEmptyList(t *testing.T) {
	serveFake(t, step{messages: []*workload.X509SVIDResponse{message(issued(t, "/web"))}})
	for form, want := range map[string]string{"json": `"dns":[]`, "yaml": "dns: []"} {
		if code, out, _ := writ(t, "svid", "get", "-o", form); code != exitOK || !strings.Contains(out, want) {
			t.Errorf("%s: it ends with %d: %s", form, code, out)
		}
	}
}

func TestWAPI_27_RevocationListsAreIgnored(t *testing.T) {
	m := message(issued(t, "/web"))
	m.Crl = [][]byte{[]byte("no list")}
	serveFake(t, step{messages: []*workload.X509SVIDResponse{m}})
	if code, out, talk := writ(t, "svid", "get"); code != exitOK {
		t.Errorf("it ends with %d: %s%s", code, out, talk)
	}
}

func TestAgentServesOnAUnixSocketOnly(t *testing.T) {
	t.Run("WEP-01: by default", func(t *testing.T) {
		if c := (agentConfig{}).withDefaults(); c.Socket != "/run/writ/agent.sock" || c.socketMode != 0o777 {
			t.Errorf("it serves on %s, mode %o", c.Socket, c.socketMode)
		}
	})
	for _, address := range []string{"tcp://0.0.0.0:8081", "tcp://127.0.0.1:8081", "http://x"} {
		t.Run("WEP-04: "+address, func(t *testing.T) {
			c := agentConfig{TrustDomain: "example.org", Socket: address}.withDefaults()
			if p := c.problems(); len(p) != 1 || !strings.Contains(p[0], "socket") {
				t.Errorf("its problems are %q", p)
			}
		})
	}
	t.Run("WAPI-06: streams stay, idle or old", func(t *testing.T) {
		if k := surfaceKeepalive(); k.MaxConnectionIdle != 0 || k.MaxConnectionAge != 0 {
			t.Errorf("they end after %s idle and %s in all", k.MaxConnectionIdle, k.MaxConnectionAge)
		}
	})
}

// Keys lie in the folder: one that is made is its owner's alone, one that others may write is refused.
func TestWatchMakesItsFolderPrivate(t *testing.T) {
	serveFake(t, step{code: codes.InvalidArgument}) // which ends the watch
	folder := filepath.Join(t.TempDir(), "new")
	mode := func() os.FileMode {
		info, err := os.Stat(folder)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().Perm()
	}
	watch := func() string {
		_, _, talk := writ(t, "svid", "watch", "--write", folder)
		return talk
	}
	if watch(); mode() != 0o700 {
		t.Errorf("the folder is made with mode %o", mode())
	}
	for given, refused := range map[os.FileMode]bool{0o755: false, 0o775: true} {
		if err := os.Chmod(folder, given); err != nil {
			t.Fatal(err)
		}
		if talk := watch(); strings.Contains(talk, folder) != refused || mode() != given {
			t.Errorf("a folder of mode %o has %o afterwards; it is said: %s", given, mode(), talk)
		}
	}
}
