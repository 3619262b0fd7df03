package testdomain_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/writ-dev/writ/internal/testdomain"
)

// reader is a server that reads its certificate from files, and how it is told to read them again.
type reader struct {
	name   string
	config string                                // a template
	start  func(config string) *exec.Cmd         // stays in the foreground
	reload func(r running) (shellCommand string) // what --exec runs
}

// running fills the templates of a reader.
type running struct {
	Folder  string // svid.pem, key.pem, bundle.pem
	Scratch string
	Config  string
	Port    int
}

func readers() []reader {
	return []reader{
		{name: "nginx", config: `daemon off;
pid {{.Scratch}}/nginx.pid;
error_log stderr warn;
events {}
http {
  access_log off;
  client_body_temp_path {{.Scratch}}/a; proxy_temp_path {{.Scratch}}/b; fastcgi_temp_path {{.Scratch}}/c; uwsgi_temp_path {{.Scratch}}/d; scgi_temp_path {{.Scratch}}/e;
  server {
    listen 127.0.0.1:{{.Port}} ssl;
    ssl_certificate {{.Folder}}/svid.pem;
    ssl_certificate_key {{.Folder}}/key.pem;
    ssl_client_certificate {{.Folder}}/bundle.pem;
    ssl_verify_client on;
    ssl_verify_depth 2;
    location / { return 200 "nginx"; }
  }
}
`,
			start: func(config string) *exec.Cmd { return exec.Command("nginx", "-c", config) },
			reload: func(r running) string {
				return "nginx -c " + r.Config + " -s reload"
			}},
		{name: "haproxy", config: `global
  stats socket {{.Scratch}}/admin.sock mode 600 level admin
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend f
  bind 127.0.0.1:{{.Port}} ssl crt {{.Scratch}}/both.pem ca-file {{.Folder}}/bundle.pem verify required
  http-request return status 200 content-type text/plain string haproxy
`,
			start: func(config string) *exec.Cmd { return exec.Command("haproxy", "-db", "-f", config) },
			// The runtime API takes what is read from now on, and no connection notices. The roots are committed only when they are new:
			// this version of HAProxy crashes when it is given the same again.
			reload: func(r running) string {
				return strings.NewReplacer("SCRATCH", r.Scratch, "FOLDER", r.Folder).Replace(`set -e
cat FOLDER/svid.pem FOLDER/key.pem >SCRATCH/both.pem
test -S SCRATCH/admin.sock || exit 0
tell() { printf '%s\n' "$1" | socat -t 5 stdio UNIX-CONNECT:SCRATCH/admin.sock; }
commit() { tell "set ssl $1 $2 <<
$(cat "$2")
"; tell "commit ssl $1 $2" | grep -q Success; }
commit cert SCRATCH/both.pem
case "$WRIT_CHANGED" in *bundle.pem*) commit ca-file FOLDER/bundle.pem;; esac`)
			}},
		{name: "caddy", config: `{
  admin unix//{{.Scratch}}/admin.sock
  auto_https off
  storage file_system {{.Scratch}}/store
}
https://server.internal:{{.Port}} {
  bind 127.0.0.1
  tls {{.Folder}}/svid.pem {{.Folder}}/key.pem {
    client_auth {
      mode require_and_verify
      trusted_ca_cert_file {{.Folder}}/bundle.pem
    }
  }
  respond "caddy"
}
`,
			start: func(config string) *exec.Cmd {
				return exec.Command("caddy", "run", "--adapter", "caddyfile", "--config", config)
			},
			reload: func(r running) string {
				return "test -S " + r.Scratch + "/admin.sock || exit 0; caddy reload --force --adapter caddyfile --address unix//" + r.Scratch +
					"/admin.sock --config " + r.Config
			}},
	}
}

// Servers that read files keep their certificate fresh by `writ svid watch`: over ten rotations no request fails, neither on
// connections that stay open nor with a handshake each.
func TestServersThatReadFiles(t *testing.T) {
	t.Parallel()
	d := testdomain.New(t, testdomain.Built(t), "--entries", os.DevNull)
	entry := func(name, path string) string {
		return fmt.Sprintf("---\nname: %s\npath: /%[1]s\nttl: 6s\ndns: [%[1]s.internal]\nwhere: [%q]\nmatch: [\"unix:uid:%d\", \"unix:path:%s\"]\n", name, onDev, os.Getuid(), path)
	}
	d.Apply(t, entry("client", programPath(t))+entry("server", string(d.Binary)))
	for _, r := range readers() {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			r.keepsFresh(t, d)
		})
	}
}

func (r reader) keepsFresh(t *testing.T, d *testdomain.Domain) {
	on := running{Folder: filepath.Join(t.TempDir(), "svid"), Scratch: testdomain.ShortFolder(t), Port: testdomain.Port(t)}
	on.Config = filepath.Join(on.Scratch, r.name+".conf")
	writeFile(t, on.Config, filled(t, r.config, on))
	count := filepath.Join(on.Scratch, "count")
	cmd := exec.Command(string(d.Binary), "svid", "watch", "--write", on.Folder, "--exec", r.reload(on)+"\necho $WRIT_CHANGED >>"+count)
	cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET="+d.WorkloadAPI)
	if r.name == "nginx" { // it cannot be told to read again before it runs
		cmd.Args[len(cmd.Args)-1] = "test -s " + on.Scratch + "/nginx.pid || exit 0\n" + cmd.Args[len(cmd.Args)-1]
	}
	testdomain.Start(t, "watch", cmd)
	testdomain.Until(t, 20*time.Second, "the files are there", func() error {
		_, err := os.Stat(filepath.Join(on.Folder, ".changed"))
		if err == nil {
			return errors.New("the command has still to run")
		}
		_, err = os.Stat(filepath.Join(on.Folder, "svid.pem"))
		return err
	})
	server := r.start(on.Config)
	server.Env = append(os.Environ(), "HOME="+on.Scratch)
	testdomain.Start(t, r.name, server)

	kept, fresh := caller(t, d, on.Port, true), caller(t, d, on.Port, false)
	testdomain.Until(t, 20*time.Second, r.name+" answers", func() error {
		a, err := kept()
		if err == nil && (a.Code != http.StatusOK || a.Body != r.name) {
			err = fmt.Errorf("%d %s", a.Code, a.Body)
		}
		return err
	})
	before := lines(t, count)
	onKept, onFresh := constantly(t, kept), constantly(t, fresh)
	testdomain.Until(t, 120*time.Second, "ten rotations", func() error {
		if n := lines(t, count) - before; n < 10 {
			return fmt.Errorf("%d rotations", n)
		}
		return nil
	})
	onKept.allAnswered(t, "connections kept")
	if r.name != "caddy" {
		onFresh.allAnswered(t, "a handshake each")
		return
	}
	// Caddy 2.6 resets a connection that comes in the moment of a reload, now and then.
	if onFresh.end(); len(onFresh.failed) > 10 {
		t.Errorf("a handshake each: more than one call a reload failed: %q", onFresh.failed)
	}
}

func filled(t *testing.T, text string, with any) string {
	t.Helper()
	page, err := template.New("").Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := page.Execute(&out, with); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func lines(t *testing.T, file string) int {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Count(string(text), "\n")
}

// caller asks a server as the client's identity by mutual TLS, and takes only the server's.
func caller(t *testing.T, d *testdomain.Domain, port int, keep bool) func() (testdomain.Answer, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(d.WorkloadAPI)))
	if err != nil {
		t.Fatal(err)
	}
	here := fmt.Sprintf("127.0.0.1:%d", port)
	transport := &http.Transport{DisableKeepAlives: !keep,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, here)
		},
		TLSClientConfig: tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(spiffeid.RequireFromString("spiffe://"+d.TrustDomain+"/server")))}
	client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
	t.Cleanup(func() { transport.CloseIdleConnections(); source.Close() })
	return func() (testdomain.Answer, error) {
		response, err := client.Get(fmt.Sprintf("https://server.internal:%d/", port))
		if err != nil {
			return testdomain.Answer{}, err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		return testdomain.Answer{Code: response.StatusCode, Header: response.Header, Body: string(body)}, err
	}
}
