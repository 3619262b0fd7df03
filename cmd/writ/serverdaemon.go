package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/writ-dev/writ/agent/peer"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/attest/jointoken"
	"github.com/writ-dev/writ/attest/x509pop"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/ca"
	"github.com/writ-dev/writ/ca/keystore"
	"github.com/writ-dev/writ/internal/durable"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/server"
	"github.com/writ-dev/writ/store"
)

// serverDaemon is `writ server run`: store, authority and their two gRPC surfaces.
type serverDaemon struct {
	config    serverConfig
	log       *slog.Logger
	store     *store.DB
	authority *ca.Authority
	jwt       *ca.JWTAuthority
	server    *server.Server
	lines     *audit.Lines // nil without audit.file
	feeding   *trouble     // of lines

	node, admin       net.Listener
	oidcAt            net.Listener      // nil without oidc
	oidcFiles         *certificateFiles // nil where the listener shows the server's own SVID
	nodeAPI, adminAPI *grpc.Server
}

// verifiers is the whole list of node attestation methods: one line for each.
var verifiers = map[string]func(verifierConfig, *store.DB) (attest.Verifier, error){
	jointoken.Method: func(c verifierConfig, db *store.DB) (attest.Verifier, error) {
		if c.JoinToken == nil {
			return nil, nil
		}
		return jointoken.NewVerifier(db), nil
	},
	x509pop.Method: func(c verifierConfig, _ *store.DB) (attest.Verifier, error) {
		if c.X509pop == nil {
			return nil, nil
		}
		roots, err := os.ReadFile(c.X509pop.Roots)
		if err != nil {
			return nil, fmt.Errorf("read attest.x509pop.roots: %w", err)
		}
		return x509pop.NewVerifier(x509pop.VerifierConfig{Roots: roots})
	},
}

// newServerDaemon opens everything that the configuration names; whatever fails closes what was open.
func newServerDaemon(ctx context.Context, c serverConfig, log *slog.Logger, metrics prometheus.Registerer) (d *serverDaemon, err error) {
	d = &serverDaemon{config: c, log: log}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	domain, err := c.domain()
	if err != nil {
		return d, err
	}
	if err := durable.MakeFolder(c.DataDir, 0o700); err != nil {
		return d, err
	}
	if d.store, err = store.Open(ctx, store.Config{URL: c.Store, DataDir: c.DataDir, Server: c.Name, Log: log}); err != nil {
		return d, err
	}
	if err := d.openAuthorities(ctx, domain); err != nil {
		return d, err
	}
	if c.Audit.File != "" {
		if d.lines, err = audit.OpenLines(c.Audit.File); err != nil {
			return d, err
		}
		d.feeding = fileTrouble(log, c.Audit.File, "the audit file cannot be written", "the audit file is written again")
		if err := metrics.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "writ_server_audit_failing",
			Help: "1 while the audit file cannot be written."}, d.feeding.failing)); err != nil {
			return d, err
		}
	}
	if err := d.listen(); err != nil {
		return d, err
	}
	config := server.Config{TrustDomain: domain, Name: c.Name, Authority: d.authority, JWT: d.jwt, Tokens: makeToken, Addresses: d.addresses(),
		Store: server.Store{Feed: d.store, Entries: d.store, Nodes: d.store, Admissions: d.store, Operator: d.store, Issuances: d.store,
			Ledger: d.store},
		SVIDTTL: c.SVID.X509TTL, MaxTTL: c.CA.TTL / 2, JWTTTL: c.SVID.JWTTTL, MaxJWTTTL: c.CA.JWTKeyTTL / 2, Log: log, Registerer: metrics}
	if config.Verifiers, err = d.verifiers(); err != nil {
		return d, err
	}
	if config.OIDC, err = d.oidc(); err != nil {
		return d, err
	}
	if d.server, err = server.New(ctx, config); err != nil {
		return d, err
	}
	d.nodeAPI, d.adminAPI = d.server.NodeAPI(), d.server.AdminAPI()
	return d, nil
}

// openAuthorities opens what signs certificates and what signs tokens; their keys lie in one place, and they share none.
func (d *serverDaemon) openAuthorities(ctx context.Context, domain spiffeid.TrustDomain) error {
	c := d.config
	keys, err := keystore.Open(c.CA.Keys, c.DataDir)
	if err != nil {
		return err
	}
	if d.authority, err = ca.New(ctx, ca.Config{TrustDomain: domain, Server: c.Name, Keys: keys, Ledger: d.store, Log: d.log,
		TTL: c.CA.TTL, RootTTL: c.CA.RootTTL}); err != nil {
		return err
	}
	jwtKeys, err := keystore.OpenFor(jwtKinds[c.CA.JWTAlg], c.CA.Keys, c.DataDir)
	if err != nil {
		return err
	}
	settle := time.Duration(0)
	if c.OIDC.Issuer != "" {
		settle = server.RefreshHint // as long as OIDC clients may hold the keys that they read
	}
	d.jwt, err = ca.NewJWT(ctx, ca.JWTConfig{TrustDomain: domain, Server: c.Name, Keys: jwtKeys, Ledger: d.store, Log: d.log,
		Issuer: c.OIDC.Issuer, KeyTTL: c.CA.JWTKeyTTL, Hint: server.RefreshHint, Settle: settle})
	return err
}

func (d *serverDaemon) verifiers() (map[string]attest.Verifier, error) {
	on := map[string]attest.Verifier{}
	for method, make := range verifiers {
		v, err := make(d.config.Attest, d.store)
		if err != nil {
			return nil, err
		}
		if v != nil {
			on[method] = v
		}
	}
	return on, nil
}

// makeToken writes join tokens for the server.
func makeToken(addresses []string, pins [][32]byte, wanted attest.Token) (attest.Token, string, error) {
	now := time.Now()
	return jointoken.New(jointoken.Request{Addresses: addresses, Pins: pins, TTL: wanted.Expires.Sub(now), Name: wanted.Name, CIDR: wanted.CIDR,
		Server: wanted.Server, Now: now})
}

// listen opens the node API's address and the admin socket, which belongs to the group writ where there is one.
func (d *serverDaemon) listen() (err error) {
	if d.node, err = net.Listen("tcp", d.config.Listen); err != nil {
		return fault.New(fault.Invalid, err, "listen for agents").With(fault.SocketInUse, "name another address as `listen`")
	}
	if d.config.OIDC.Issuer != "" {
		if d.oidcAt, err = net.Listen("tcp", d.config.OIDC.Listen); err != nil {
			return fault.New(fault.Invalid, err, "listen for OIDC clients").With(fault.SocketInUse, "name another address as `oidc.listen`")
		}
	}
	if d.admin, err = peer.Listen(d.config.AdminSocket, fs.FileMode(d.config.adminMode)); err != nil {
		return err
	}
	return toOperators(d.config.AdminSocket, d.config.adminMode)
}

// toOperators gives a socket that its group may use to the group writ, where there is one.
func toOperators(socket string, mode uint32) error {
	if group, err := user.LookupGroup("writ"); err == nil && mode&0o060 != 0 {
		if gid, err := strconv.Atoi(group.Gid); err == nil {
			return os.Chown(socket, -1, gid)
		}
	}
	return nil
}

// nodeAddress is where the node API listens.
func (d *serverDaemon) nodeAddress() string { return d.node.Addr().String() }

// addresses is what join tokens carry: the configured ones, else where we listen, else every address of this host.
func (d *serverDaemon) addresses() []string {
	if len(d.config.Addresses) > 0 {
		return d.config.Addresses
	}
	at, ok := d.node.Addr().(*net.TCPAddr)
	if !ok || !at.IP.IsUnspecified() {
		return []string{d.nodeAddress()}
	}
	port := strconv.Itoa(at.Port)
	var out []string
	if name, err := os.Hostname(); err == nil {
		out = append(out, net.JoinHostPort(name, port))
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return out
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			out = append(out, net.JoinHostPort(n.IP.String(), port))
		}
	}
	return out
}

// run serves until ctx ends.
func (d *serverDaemon) run(ctx context.Context) error {
	defer d.close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.authority.Run(ctx) })
	g.Go(func() error { return d.jwt.Run(ctx) })
	g.Go(func() error { return d.server.Run(ctx) })
	g.Go(func() error { return ignoreStopped(d.nodeAPI.Serve(d.node)) })
	g.Go(func() error { return ignoreStopped(d.adminAPI.Serve(peer.Paced(d.admin))) })
	if s := d.server.OIDCServer(); s != nil {
		g.Go(func() error { return d.serveOIDC(ctx, s) })
	}
	if d.lines != nil {
		g.Go(func() error { return d.store.Follow(ctx, notedSink{d.lines, d.feeding}) })
	}
	g.Go(func() error {
		<-ctx.Done()
		var both sync.WaitGroup
		both.Go(func() { stopWithin(d.nodeAPI, time.Second) })
		both.Go(func() { stopWithin(d.adminAPI, time.Second) })
		both.Wait()
		return nil
	})
	all, err := waitWithin(ctx, g, serverStops)
	if !all {
		d.log.Error("stopped without waiting for what does not end")
	}
	if !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// health says whether this server can do its job now.
func (d *serverDaemon) health() health {
	h := health{Status: "ok", Parts: map[string]string{"server": "ok"}}
	if err := d.server.Ready(); err != nil {
		h.Status, h.Parts["server"] = "degraded", err.Error()
	}
	h.Parts["store"] = "ok"
	if err := d.store.Writable(); err != nil { // nothing can be issued
		h.Status, h.Parts["store"] = "degraded", oneLine(err)
	}
	if d.oidcFiles != nil { // no reason to be degraded: nodes and workloads do without
		h.Parts["oidc"] = d.oidcFiles.health()
	}
	if d.feeding != nil { // no reason to be degraded: the rows are in the store and wait there
		h.Parts["audit"] = "ok"
		if wrong := d.feeding.now(); wrong != "" {
			h.Parts["audit"] = "the file cannot be written, and rows wait in the store (P5005), " + wrong
		}
	}
	return h
}

// close lets go of what is open; it may be called for a daemon that came only half into being.
func (d *serverDaemon) close() {
	for _, l := range []net.Listener{d.node, d.admin, d.oidcAt} {
		if l != nil {
			l.Close()
		}
	}
	if d.lines != nil {
		d.lines.Close()
	}
	if d.store != nil {
		if err := d.store.Close(); err != nil {
			d.log.Error("close store", "err", err)
		}
	}
}
