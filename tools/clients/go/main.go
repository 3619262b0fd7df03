// Workload is a workload in Go on go-spiffe. It holds an X509Source, a JWTSource and a BundleSource, prints each update as a line of
// JSON once it has checked it, and does what lines on standard input say (see ../README.md).
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// patience is how long a call or a peer may take.
const patience = 20 * time.Second

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) (err error) {
	w := &workload{}
	if w.x509, err = workloadapi.NewX509Source(ctx); err != nil {
		return err
	}
	defer w.x509.Close()
	if w.jwt, err = workloadapi.NewJWTSource(ctx); err != nil {
		return err
	}
	defer w.jwt.Close()
	if w.bundles, err = workloadapi.NewBundleSource(ctx); err != nil {
		return err
	}
	defer w.bundles.Close()
	if w.client, err = workloadapi.New(ctx); err != nil {
		return err
	}
	defer w.client.Close()
	w.update()
	go func() {
		for range w.x509.Updated() {
			w.update()
		}
	}()
	commands := map[string]func(context.Context, []string) error{
		"dial": w.dial, "serve": w.serve, "token": w.token, "tokens": w.tokens, "check": w.check, "held": w.held,
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if err := commands[words[0]](ctx, words[1:]); err != nil {
			w.say(event{Event: "refused", Error: err.Error()})
		}
	}
	return nil
}

type workload struct {
	x509    *workloadapi.X509Source
	jwt     *workloadapi.JWTSource
	bundles *workloadapi.BundleSource
	client  *workloadapi.Client

	mu sync.Mutex // one line at a time
}

type event struct {
	Event  string   `json:"event"`
	ID     string   `json:"id,omitempty"`
	Serial string   `json:"serial,omitempty"`
	IDs    []string `json:"ids,omitempty"`
	DNS    []string `json:"dns"`
	Roots  int      `json:"roots,omitempty"`
	Port   int      `json:"port,omitempty"`
	Said   string   `json:"said,omitempty"`
	Token  string   `json:"token,omitempty"`
	Error  string   `json:"error,omitempty"`
}

func (w *workload) say(e event) {
	line, err := json.Marshal(e)
	if err != nil {
		log.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Println(string(line))
}

// checked verifies what the X509Source holds against the BundleSource, which learns its bundles by another stream.
func (w *workload) checked(kind string) event {
	svid, err := w.x509.GetX509SVID()
	if err != nil {
		return event{Event: "nothing", Error: err.Error()}
	}
	_, _, verified := x509svid.Verify(svid.Certificates, w.bundles)
	bundle, err := w.bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	if err := errors.Join(err, verified); err != nil {
		return event{Event: "error", Error: err.Error()}
	}
	leaf := svid.Certificates[0]
	return event{Event: kind, ID: svid.ID.String(), Serial: fmt.Sprintf("%x", leaf.SerialNumber), DNS: leaf.DNSNames,
		Roots: len(bundle.X509Authorities())}
}

func (w *workload) update() { w.say(w.checked("svid")) }

func (w *workload) held(context.Context, []string) error {
	w.say(w.checked("held"))
	return nil
}

func (w *workload) token(ctx context.Context, words []string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	svid, err := w.jwt.FetchJWTSVID(ctx, jwtsvid.Params{Audience: words[0], ExtraAudiences: words[1:]})
	if err == nil {
		w.say(event{Event: "token", ID: svid.ID.String(), Token: svid.Marshal()})
	}
	return err
}

func (w *workload) tokens(ctx context.Context, words []string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	svids, err := w.jwt.FetchJWTSVIDs(ctx, jwtsvid.Params{Audience: words[0]})
	if err != nil {
		return err
	}
	e := event{Event: "tokens"}
	for _, s := range svids {
		e.IDs = append(e.IDs, s.ID.String())
	}
	w.say(e)
	return nil
}

// check asks the library, with the keys of either source, and the agent.
func (w *workload) check(ctx context.Context, words []string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	audience, token := words[0], words[1]
	here, mine := jwtsvid.ParseAndValidate(token, w.jwt, []string{audience})
	same, twice := jwtsvid.ParseAndValidate(token, w.bundles, []string{audience})
	there, agents := w.client.ValidateJWTSVID(ctx, token, audience)
	switch {
	case mine != nil && twice != nil && agents != nil:
		return errors.Join(mine, agents)
	case mine != nil || twice != nil || agents != nil || here.ID != same.ID || here.ID != there.ID:
		w.say(event{Event: "error", Error: fmt.Sprintf("they disagree: %v, %v, %v", mine, twice, agents)})
	default:
		w.say(event{Event: "checked", ID: here.ID.String()})
	}
	return nil
}

func (w *workload) serve(ctx context.Context, words []string) error {
	peer, err := spiffeid.FromString(words[0])
	if err != nil {
		return err
	}
	l, err := spiffetls.ListenWithMode(ctx, "tcp", "127.0.0.1:0", spiffetls.MTLSServerWithSource(tlsconfig.AuthorizeID(peer), w.x509))
	if err != nil {
		return err
	}
	defer l.Close()
	w.say(event{Event: "listening", Port: l.Addr().(*net.TCPAddr).Port})
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	said, err := heard(conn)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "go heard "+said); err != nil {
		return err
	}
	w.say(event{Event: "peer", Said: said})
	return nil
}

func (w *workload) dial(ctx context.Context, words []string) error {
	peer, err := spiffeid.FromString(words[1])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := spiffetls.DialWithMode(ctx, "tcp", words[0], spiffetls.MTLSClientWithSource(tlsconfig.AuthorizeID(peer), w.x509))
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "hello from go"); err != nil {
		return err
	}
	said, err := heard(conn)
	if err == nil {
		w.say(event{Event: "peer", Said: said})
	}
	return err
}

// heard is what the peer says first.
func heard(conn net.Conn) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	buffer := make([]byte, 100)
	n, err := conn.Read(buffer)
	return string(buffer[:n]), err
}
