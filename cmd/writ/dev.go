package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/attest/jointoken"
	"github.com/writ-dev/writ/internal/durable"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/policies"
)

const (
	defaultDevDomain = "dev.writ"
	defaultDevFolder = ".writ"
	devOwner         = "dev"         // what --entries applied, and may prune
	devExamples      = "dev-example" // what a new data directory starts with
	devNode          = "dev"         // the node's name in its join token
)

// devFlags is the command line of `writ dev`.
type devFlags struct {
	dataDir, domain, entries, policy, readyFile, authzListen, config string
}

func newDevCommand() *cobra.Command {
	var f devFlags
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Everything in one process, for development",
		Long: `Runs server, agent and decisions in one process, on loopback and Unix sockets, with nothing to configure. The agent joins
the server with a join token over TLS, as on any other host. Entries and the policy set are loaded again when their files change.`,
		Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.domain == "" && cmd.Flags().Changed("trust-domain") {
				return usageError{cmd, errors.New("--trust-domain is empty")}
			}
			return runDev(cmd.Context(), f, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVar(&f.dataDir, "data-dir", defaultDevFolder, "where keys and state go; a second start goes on from there")
	cmd.Flags().StringVar(&f.domain, "trust-domain", "", "the trust domain (default "+defaultDevDomain+")")
	cmd.Flags().StringVar(&f.entries, "entries", "", "file or folder of entries, applied at start and at each change")
	cmd.Flags().StringVar(&f.policy, "policy", "", "folder of the policy set (default: the example set)")
	cmd.Flags().StringVar(&f.readyFile, "ready-file", "", "write this file once everything serves")
	cmd.Flags().StringVar(&f.authzListen, "authz-listen", "", "loopback address of ext_authz beside its Unix socket (default: a free port)")
	cmd.Flags().StringVar(&f.config, "config", "", "file with the sections server: and agent:, keys as the daemons have them")
	return cmd
}

// devDomain is the trust domain in one process: what the daemons are when both run here.
type devDomain struct {
	flags    devFlags
	folder   string // the data directory, absolute
	fresh    bool   // it was made by this start
	config   devConfig
	log      *slog.Logger // the server's
	agentLog *slog.Logger
	metrics  *prometheus.Registry
	server   *serverDaemon
	agent    *agentDaemon
	http     net.Listener
}

// runDev brings the domain up in the order that separate daemons would come up in, says so, and runs it until ctx ends.
func runDev(ctx context.Context, f devFlags, out, talk io.Writer) (err error) {
	defer roomForGarbage()()
	d := &devDomain{flags: f, metrics: newMetrics()}
	if err := d.configure(); err != nil {
		return err
	}
	d.log, d.agentLog = d.config.Server.Log.logger(talk), d.config.Agent.Log.logger(talk)
	if err := d.prepareFolder(talk); err != nil {
		return err
	}
	if d.http, err = net.Listen("tcp", d.config.Server.Metrics); err != nil {
		return fault.New(fault.Invalid, err, "listen for metrics").With(fault.SocketInUse, "leave server.metrics out of the file")
	}
	if d.server, err = newServerDaemon(ctx, d.config.Server, d.log, d.metrics); err != nil {
		d.http.Close()
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	agentEnded := make(chan struct{})
	g.Go(func() error {
		// The server outlives the agent, which says goodbye to its workloads first.
		serving, stop := context.WithCancel(context.WithoutCancel(ctx))
		go func() { <-ctx.Done(); <-agentEnded; stop() }()
		return d.server.run(serving)
	})
	g.Go(func() error {
		defer close(agentEnded)
		return d.runAgent(ctx, out, talk)
	})
	return g.Wait()
}

// configure joins flags, file and the defaults of development into one configuration and checks it.
func (d *devDomain) configure() (err error) {
	f := d.flags
	if err := readConfig(f.config, &d.config); err != nil {
		return err
	}
	if f.dataDir == "" {
		return fault.New(fault.Invalid, nil, "--data-dir is empty").With(fault.BadConfig, "writ dev --data-dir "+defaultDevFolder)
	}
	if d.folder, err = filepath.Abs(f.dataDir); err != nil {
		return err
	}
	s, a := &d.config.Server, &d.config.Agent
	domain := f.domain
	if domain == "" {
		domain = firstOf(s.TrustDomain, a.TrustDomain, defaultDevDomain)
	}
	s.TrustDomain, a.TrustDomain = domain, domain
	at := func(parts ...string) string { return filepath.Join(append([]string{d.folder}, parts...)...) }
	orDefault(&s.DataDir, at("server"))
	orDefault(&s.AdminSocket, at("run", "admin.sock"))
	orDefault(&s.Listen, "127.0.0.1:0")
	s.Metrics = firstOf(s.Metrics, a.Metrics, "127.0.0.1:0")
	orDefault(&s.Log.Format, "text")
	orDefault(&s.Log.Level, "warn")
	orDefault(&a.Log.Format, "text")
	orDefault(&a.Log.Level, "warn")
	s.adminMode = 0o600
	orDefault(&a.DataDir, at("agent"))
	orDefault(&a.Socket, at("run", "agent.sock"))
	orDefault(&a.AdminSocket, at("run", "agent-admin.sock"))
	orDefault(&a.Authz.Records.File, at("decisions.jsonl"))
	if len(a.Authz.Listen) == 0 {
		a.Authz.Listen = []string{"unix://" + at("run", "authz.sock"), firstOf(f.authzListen, "127.0.0.1:0")}
	} else if f.authzListen != "" {
		a.Authz.Listen = []string{a.Authz.Listen[0], f.authzListen}
	}
	if f.policy != "" {
		a.Authz.Policy, a.Authz.Sets = f.policy, nil
	}
	a.socketMode, a.authzMode, a.adminMode, a.example = 0o777, 0o777, 0o600, true
	*s, *a = s.withDefaults(), a.withDefaults()
	all := devProblems(d.config, true)
	if f.domain != "" || domain != defaultDevDomain {
		all.trustDomain(domain)
	}
	return all.err(f.config)
}

// firstOf gives the first string that is not empty.
func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// prepareFolder makes the data directory: other users may reach the sockets in run/, and nothing else.
func (d *devDomain) prepareFolder(talk io.Writer) error {
	if _, err := os.Stat(filepath.Join(d.folder, "server")); errors.Is(err, fs.ErrNotExist) {
		d.fresh = true
	}
	if err := durable.MakeFolder(d.folder, 0o711); err != nil {
		return err
	}
	if err := durable.MakeFolder(filepath.Join(d.folder, "run"), 0o755); err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(d.folder, ".gitignore"), []byte("*\n"), 0o600); err != nil {
		return err
	}
	for parent := filepath.Dir(d.folder); parent != "/"; parent = filepath.Dir(parent) {
		if info, err := os.Stat(parent); err == nil && info.Mode().Perm()&0o001 == 0 {
			fmt.Fprintf(talk, "note: %s keeps other users out, so only you reach the sockets in %s/run\n", parent, d.folder)
			break
		}
	}
	if d.flags.readyFile == "" {
		return nil
	}
	if err := os.Remove(d.flags.readyFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale ready file: %w", err)
	}
	return nil
}

// runAgent joins where that is still to do, applies entries, says that all serves, and runs the agent until ctx ends.
func (d *devDomain) runAgent(ctx context.Context, out, talk io.Writer) (err error) {
	defer d.http.Close()
	c := &d.config.Agent
	c.Server = d.server.nodeAddress()
	if err := d.join(ctx); err != nil {
		return stopped(ctx, err)
	}
	if d.agent, err = newAgentDaemon(ctx, *c, agentParts{policy: policies.Example()}, d.agentLog, d.metrics); err != nil {
		return err
	}
	entries, err := d.applyEntries(ctx, talk)
	if err != nil {
		d.agent.close()
		return stopped(ctx, err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.agent.run(ctx) })
	g.Go(func() error { return serveHTTP(ctx, d.http, d.metrics, d.health) })
	g.Go(func() error { return entries.watch(ctx) })
	g.Go(func() error { return d.announce(ctx, out, talk) })
	return g.Wait()
}

// stopped turns whatever a cancelled start ended with into no error: it was asked to stop.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// join lets this node join its own server as any node does: an operator's token, a TLS connection, an attestation. Keys in memory
// end with their server, and with them the membership of a node.
func (d *devDomain) join(ctx context.Context) error {
	c := d.config.Agent
	if d.config.Server.CA.Keys == "memory" {
		if err := os.RemoveAll(c.DataDir); err != nil {
			return err
		}
	}
	if a, err := newAgent(c, agentParts{}, d.agentLog, newMetrics()); err == nil && a.Status().AgentID != "" {
		return nil
	}
	var text string
	err := callAdmin(ctx, d.server.config.AdminSocket, func(ctx context.Context, admin adminv1.AdminClient) error {
		token, err := admin.CreateToken(ctx, &adminv1.CreateTokenRequest{Ttl: durationpb.New(time.Minute), Node: devNode})
		text = token.GetToken()
		return err
	})
	if err != nil {
		return fault.FromStatus(err)
	}
	token, err := jointoken.Decode(text)
	if err != nil {
		return err
	}
	a, err := newAgent(c, agentParts{token: &token}, d.agentLog, newMetrics())
	if err != nil {
		return err
	}
	return a.Join(ctx)
}

// health is the server's and the agent's together.
func (d *devDomain) health() health {
	h := d.agent.health()
	server := d.server.health()
	for part, state := range server.Parts {
		h.Parts[part] = state
	}
	if server.Status != "ok" {
		h.Status = server.Status
	}
	return h
}

// uri is a Unix socket's, as SPIFFE_ENDPOINT_SOCKET takes it.
func uri(path string) string {
	if strings.HasPrefix(path, "unix:") {
		return path
	}
	return "unix://" + path
}
