package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"

	"github.com/writ-dev/writ/agent"
	"github.com/writ-dev/writ/agent/peer"
	"github.com/writ-dev/writ/agent/sds"
	"github.com/writ-dev/writ/agent/workloadapi"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/attest/jointoken"
	"github.com/writ-dev/writ/attest/unix"
	"github.com/writ-dev/writ/attest/x509pop"
	"github.com/writ-dev/writ/authz"
	"github.com/writ-dev/writ/authz/policy"
)

// agentDaemon is `writ agent run`: the agent, its surfaces on one Unix socket, and decisions. It listens from the start; until the
// agent knows its entries the surfaces answer Unavailable.
type agentDaemon struct {
	config  agentConfig
	log     *slog.Logger
	metrics prometheus.Registerer
	agent   *agent.Agent

	workloads *workloadapi.Handler
	secrets   *sds.Handler
	surface   *grpc.Server
	socket    net.Listener

	policies *policy.Sets // nil without authz.listen
	decider  *grpc.Server
	doors    []net.Listener // of the decider
	records  *recordKeeper  // nil without authz.listen, or when records are off
	traces   *tracing       // nil without authz.listen, or where no traces are configured

	admin      net.Listener // this node's own admin socket
	adminServe *http.Server
}

// agentParts is what `writ dev` and `writ agent join` give an agent beside its file.
type agentParts struct {
	token  *jointoken.Text // joins with it
	policy fs.FS           // decides where no folder is configured
}

// newAgentDaemon opens everything that the configuration names; whatever fails closes what was open.
func newAgentDaemon(ctx context.Context, c agentConfig, parts agentParts, log *slog.Logger, metrics prometheus.Registerer) (d *agentDaemon, err error) {
	d = &agentDaemon{config: c, log: log, metrics: metrics}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.agent, err = newAgent(c, parts, log, metrics); err != nil {
		return d, err
	}
	if d.socket, err = peer.Listen(c.Socket, fs.FileMode(c.socketMode)); err != nil {
		return d, err
	}
	d.newSurface()
	if len(c.Authz.Listen) > 0 {
		if err = d.newDecider(ctx, parts.policy); err != nil {
			return d, err
		}
	}
	return d, d.listenAdmin()
}

// newAgent gives the agent for a configuration, proving itself by what the configuration and the token name.
func newAgent(c agentConfig, parts agentParts, log *slog.Logger, metrics prometheus.Registerer) (*agent.Agent, error) {
	config := agent.Config{DataDir: c.DataDir, Server: c.Server, Log: log, Registerer: metrics}
	if c.TrustDomain != "" {
		domain, err := c.domain()
		if err != nil {
			return nil, err
		}
		config.TrustDomain = domain
	}
	if c.Bundle != "" {
		roots, err := os.ReadFile(c.Bundle)
		if err != nil {
			return nil, fmt.Errorf("read bundle: %w", err)
		}
		config.Roots = roots
	}
	if t := parts.token; t != nil {
		config.Attestors = append(config.Attestors, jointoken.NewAttestor(*t))
		config.Pins = t.Pins
		if config.Server == "" {
			config.Server = strings.Join(t.Addresses, ",")
		}
	}
	if x := c.Attest.X509pop; x != nil {
		attestor, err := x509pop.NewAttestor(x509pop.AttestorConfig{CertFile: x.Cert, KeyFile: x.Key})
		if err != nil {
			return nil, err
		}
		config.Attestors = append(config.Attestors, attestor)
	}
	var a *agent.Agent
	config.Workload = []attest.WorkloadAttestor{unix.New(unix.Config{Log: log, WantHash: func() bool { return a.Asks(unix.Method, "sha256") }})}
	a, err := agent.New(config)
	return a, err
}

// surfaceKeepalive looks for callers that are gone. No stream is ended for being idle or old: it says something when there is
// something to say (SPIFFE_Workload_API section 4.2).
func surfaceKeepalive() keepalive.ServerParameters {
	return keepalive.ServerParameters{Time: 5 * time.Minute}
}

// newSurface puts Workload API, SDS and reflection on the agent's socket.
func (d *agentDaemon) newSurface() {
	d.workloads = workloadapi.New(workloadapi.Config{Log: d.log, Source: d.agent})
	d.secrets = sds.New(sds.Config{Log: d.log, Source: d.agent})
	d.surface = grpc.NewServer(
		grpc.Creds(peer.Credentials(peer.Config{Log: d.log})),
		grpc.MaxConcurrentStreams(100),
		grpc.MaxRecvMsgSize(1<<20),
		grpc.MaxHeaderListSize(16<<10),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.KeepaliveParams(surfaceKeepalive()),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}))
	d.workloads.Register(d.surface)
	secretv3.RegisterSecretDiscoveryServiceServer(d.surface, d.secrets)
	reflection.Register(d.surface)
}

// newDecider loads the policy sets, opens the decision records and the doors of ext_authz.
func (d *agentDaemon) newDecider(ctx context.Context, shipped fs.FS) (err error) {
	c := d.config.Authz
	if d.policies, err = d.newPolicies(ctx, shipped); err != nil {
		return err
	}
	config := authz.Config{Decider: d.policies, Reflection: c.Reflection, Log: d.log, Registerer: d.metrics}
	if d.records, err = newRecordKeeper(c.Records, d.config.DataDir, d.config.TrustDomain, d.log, d.metrics); err != nil {
		return err
	}
	if d.records != nil {
		config.Records, config.Required = d.records.ring, c.Records.Required
	}
	if d.traces, err = newTracing(c.Traces, d.config.TrustDomain, d.log, d.metrics); err != nil {
		return err
	}
	config.Tracer = d.traces.tracer()
	decisions, err := authz.New(config)
	if err != nil {
		return err
	}
	d.decider = decisions.GRPC()
	for _, address := range c.Listen {
		l, err := listenAuthz(address, fs.FileMode(d.config.authzMode))
		if err != nil {
			return err
		}
		d.doors = append(d.doors, l)
	}
	return nil
}

// defaultSet is the name of the only policy set.
const defaultSet = "default"

// newPolicies loads the policy sets; shipped is for all requests where none is configured.
func (d *agentDaemon) newPolicies(ctx context.Context, shipped fs.FS) (*policy.Sets, error) {
	sets, live := d.config.Authz.Sets, map[string]*policy.Live{}
	if len(sets) == 0 {
		sets = setsConfig{defaultSet: {Policy: d.config.Authz.Policy, Any: true}}
	}
	for name, set := range sets {
		c := policy.LiveConfig{Name: name, Folder: set.Policy, Config: policy.Config{Identities: d.agent, Megabytes: d.config.Authz.PolicySize}, Log: d.log, Registerer: d.metrics}
		if set.Policy == "" {
			c.Files = shipped
		}
		var err error
		if live[name], err = policy.NewLive(ctx, c); err != nil {
			return nil, err
		}
	}
	return policy.NewSets(live, sets.choices())
}

// listenAuthz opens a Unix socket, or a loopback address, which the configuration was checked to be.
func listenAuthz(address string, mode fs.FileMode) (net.Listener, error) {
	if strings.HasPrefix(address, "unix:") {
		return peer.Listen(socketPath(address), mode)
	}
	return net.Listen("tcp", address)
}

// run serves until ctx ends. Streams end Unavailable first, so that every client comes back; then the rest stops.
func (d *agentDaemon) run(ctx context.Context) error {
	defer d.close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.agent.Run(ctx) })
	g.Go(func() error { return ignoreStopped(d.surface.Serve(peer.Paced(d.socket))) })
	g.Go(func() error { return ignoreStopped(d.adminServe.Serve(d.admin)) })
	if d.policies != nil {
		g.Go(func() error { return d.policies.Watch(ctx) })
		for _, door := range d.doors {
			g.Go(func() error { return ignoreStopped(d.decider.Serve(door)) })
		}
	}
	g.Go(func() error {
		<-ctx.Done()
		d.workloads.Stop()
		d.secrets.Stop()
		d.adminServe.Close()
		// Every stream has ended and what waited for the agent ends with it: left are connections that java-spiffe does not close. Until
		// this process has gone and another serves, all workloads of the node try in vain.
		stopWithin(d.surface, 250*time.Millisecond)
		if d.decider != nil {
			stopWithin(d.decider, time.Second)
		}
		return nil
	})
	all, err := waitWithin(ctx, g, agentStops)
	if !all {
		d.log.Error("stopped without waiting for what does not end")
	}
	if !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// health says whether this node can do its job now.
func (d *agentDaemon) health() health {
	h := health{Status: "ok", Parts: map[string]string{"agent": "ok"}}
	if err := d.agent.Ready(); err != nil {
		h.Status, h.Parts["agent"] = "degraded", err.Error()
	}
	h.Parts["authority"] = d.authority()
	if d.policies != nil {
		d.policyHealth(&h)
	}
	if d.records != nil {
		d.records.health(&h)
	}
	if d.traces != nil {
		d.traces.health(&h)
	}
	return h
}

// policyHealth adds the sets: as policy where there is one for all requests, by their names where several are configured.
func (d *agentDaemon) policyHealth(h *health) {
	h.Parts["policy"] = "ok"
	d.policies.Each(func(name string, l *policy.Live) {
		set := policyHealth{Revision: l.Revision()}
		if err := l.LastError(); err != nil {
			set.LastError = err.Error()
		}
		named := len(d.config.Authz.Sets) > 0
		switch {
		case set.Revision == "" && named:
			h.Status, h.Parts["policy"] = "degraded", "set "+name+" is not live; its requests are denied"
		case set.Revision == "":
			h.Status, h.Parts["policy"] = "degraded", "no policy set is live; every request is denied"
		}
		if !named {
			h.Policy = &set
			return
		}
		if h.Policies == nil {
			h.Policies = map[string]policyHealth{}
		}
		h.Policies[name] = set
	})
}

// authority says whether a server is followed. Without one the node goes on with what it holds: that is no reason to be degraded.
func (d *agentDaemon) authority() string {
	s := d.agent.Status()
	switch {
	case s.Connected:
		return "ok"
	case s.SafeUntil.IsZero():
		return "no server is followed"
	}
	return "no server is followed; what workloads hold is valid until " + s.SafeUntil.UTC().Format(time.RFC3339)
}

// close lets go of what is open; it may be called for a daemon that came only half into being.
func (d *agentDaemon) close() {
	for _, s := range []*grpc.Server{d.surface, d.decider} {
		if s != nil {
			stopWithin(s, 0)
		}
	}
	for _, l := range append(d.doors, d.socket, d.admin) {
		if l != nil {
			l.Close()
		}
	}
	// Records and spans may each wait for who takes them, and the daemon has seconds to end.
	var last sync.WaitGroup
	last.Go(d.traces.close)
	if d.records != nil {
		d.records.close()
	}
	last.Wait()
}

func ignoreStopped(err error) error {
	if errors.Is(err, grpc.ErrServerStopped) || errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
