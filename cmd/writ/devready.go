package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/internal/durable"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
)

// readyFile is what --ready-file holds once every address in it answers.
type readyFile struct {
	TrustDomain string   `json:"trust_domain"`
	PID         int      `json:"pid"`
	WorkloadAPI string   `json:"workload_api"`
	ExtAuthz    []string `json:"ext_authz"`
	Admin       string   `json:"admin"`
	AgentAdmin  string   `json:"agent_admin"`
	Server      string   `json:"server"`
	Metrics     string   `json:"metrics"`
	Health      string   `json:"health"`
	Decisions   string   `json:"decisions,omitempty"`
}

// announce waits until all serves, writes the ready file, and prints what to type next. The file goes when ctx ends.
func (d *devDomain) announce(ctx context.Context, out, talk io.Writer) error {
	select {
	case <-d.agent.agent.Synced():
	case <-ctx.Done():
		return nil
	}
	ready := d.ready()
	if err := ready.answers(ctx); err != nil {
		return stopped(ctx, err)
	}
	if d.flags.readyFile != "" {
		data, err := json.MarshalIndent(ready, "", "  ")
		if err != nil {
			return err
		}
		if err := durable.WriteFile(d.flags.readyFile, append(data, '\n'), 0o644); err != nil {
			return err
		}
	}
	d.banner(ready, out, talk)
	<-ctx.Done()
	if d.flags.readyFile == "" {
		return nil
	}
	if err := os.Remove(d.flags.readyFile); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (d *devDomain) ready() readyFile {
	http := "http://" + d.http.Addr().String()
	r := readyFile{
		TrustDomain: d.config.Server.TrustDomain,
		PID:         os.Getpid(),
		WorkloadAPI: uri(d.config.Agent.Socket),
		Admin:       uri(d.config.Server.AdminSocket),
		AgentAdmin:  uri(d.config.Agent.AdminSocket),
		Server:      d.server.nodeAddress(),
		Metrics:     http + "/metrics",
		Health:      http + "/healthz",
		Decisions:   d.agent.records.path(),
	}
	for _, door := range d.agent.doors {
		if door.Addr().Network() == "unix" {
			r.ExtAuthz = append(r.ExtAuthz, uri(door.Addr().String()))
		} else {
			r.ExtAuthz = append(r.ExtAuthz, door.Addr().String())
		}
	}
	return r
}

// answers dials every address once.
func (r readyFile) answers(ctx context.Context) error {
	addresses := append([]string{r.WorkloadAPI, r.Admin, r.AgentAdmin, r.Server, strings.TrimSuffix(strings.TrimPrefix(r.Metrics, "http://"), "/metrics")}, r.ExtAuthz...)
	for _, address := range addresses {
		network := "tcp"
		if strings.HasPrefix(address, "unix:") {
			network, address = "unix", socketPath(address)
		}
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, address)
		if err != nil {
			return fmt.Errorf("%s does not answer: %w", address, err)
		}
		conn.Close()
	}
	return nil
}

// banner says, loudly, what this is for, and gives lines to copy.
func (d *devDomain) banner(r readyFile, out, talk io.Writer) {
	warning := "writ dev is for development: one process, open sockets, keys in " + d.folder
	if f, ok := talk.(*os.File); ok && os.Getenv("NO_COLOR") == "" && isTerminal(f) {
		warning = "\x1b[1;37;41m " + warning + " \x1b[0m"
	}
	fmt.Fprintf(talk, "%s\n", warning)
	fmt.Fprintf(out, "trust domain %s is ready; next, in another terminal:\n\n", r.TrustDomain)
	fmt.Fprintf(out, "  export %s=%s\n  export %s=%s\n  export %s=%s\n", workloadVariable, r.WorkloadAPI, adminVariable, r.Admin,
		agentAdminVariable, r.AgentAdmin)
	if program := filepath.Dir(os.Args[0]); program != "." && !slices.Contains(filepath.SplitList(os.Getenv("PATH")), program) {
		if program, err := filepath.Abs(program); err == nil {
			fmt.Fprintf(out, "  export PATH=%s:$PATH\n", program)
		}
	}
	fmt.Fprintf(out, "  writ svid get          # this user's identity\n  writ entry get         # who may hold what\n")
	if r.Decisions != "" {
		fmt.Fprintf(out, "  writ tail decisions -f # decisions as they fall\n")
	}
	fmt.Fprintf(out, "\next_authz for Envoy: %s\n", strings.Join(r.ExtAuthz, "  "))
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// entryFile follows --entries: it is applied at start and whenever it changes.
type entryFile struct {
	domain *devDomain
	path   string // empty: nothing to follow
	seen   string // fingerprint of what was applied last
	moving string // fingerprint of a change that was seen once
}

// applyEntries applies --entries, or the examples to a data directory that is new, and gives what is to be followed.
func (d *devDomain) applyEntries(ctx context.Context, talk io.Writer) (*entryFile, error) {
	f := &entryFile{domain: d, path: d.flags.entries}
	if f.path == "" {
		if !d.fresh {
			return f, nil
		}
		return f, f.applyExamples(ctx, talk, os.Getuid())
	}
	f.seen = fingerprint(f.path)
	return f, f.apply(ctx, talk)
}

// exampleEntries lets whoever runs `writ dev` hold an identity.
func exampleEntries(uid int) string {
	return fmt.Sprintf("name: you\npath: /you\nwhere: [\"join_token:name:%s\"]\nmatch: [\"unix:uid:%d\"]\n", devNode, uid)
}

// applyExamples leaves them out, and says so, where the user is one that can hold no identity.
func (f *entryFile) applyExamples(ctx context.Context, talk io.Writer, uid int) error {
	err := f.applyText(ctx, []byte(exampleEntries(uid)), devExamples)
	if fault.Is(err, fault.Invalid) {
		fmt.Fprintf(talk, "note: there is no example entry for uid %d: %v\n", uid, err)
		return nil
	}
	return err
}

// due says whether what a look found is to be applied: a change that stood still since the look before. A file that is written in place
// is empty for a moment, and an empty one would prune everything.
func (f *entryFile) due(now string) bool {
	still := now == f.moving
	f.moving = now
	if now == f.seen || !still {
		return false
	}
	f.seen = now
	return true
}

// watch applies the file again when it changed, looking every 50 ms. A file that is refused changes nothing and is said once.
func (f *entryFile) watch(ctx context.Context) error {
	if f.path == "" {
		return nil
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !f.due(fingerprint(f.path)) {
			continue
		}
		if err := f.apply(ctx, io.Discard); err != nil && ctx.Err() == nil {
			f.domain.log.ErrorContext(ctx, "entries refused, the old ones stay", "err", err)
		}
	}
}

// apply is `writ entry apply -f --prune` under dev's own name.
func (f *entryFile) apply(ctx context.Context, talk io.Writer) error {
	domain, err := f.domain.config.Server.domain()
	if err != nil {
		return err
	}
	entries, err := registration.ReadPath(f.path, domain) // an empty file means none
	if err != nil {
		return err
	}
	err = callAdmin(ctx, f.domain.config.Server.AdminSocket, func(ctx context.Context, admin adminv1.AdminClient) error {
		answer, err := sendEntries(ctx, admin, entries, devOwner, true, false)
		for _, warning := range answer.GetWarnings() {
			fmt.Fprintf(talk, "warning: %s\n", clean(warning))
		}
		return err
	})
	return fault.FromStatus(err)
}

func (f *entryFile) applyText(ctx context.Context, text []byte, owner string) error {
	domain, err := f.domain.config.Server.domain()
	if err != nil {
		return err
	}
	entries, err := registration.Parse("the examples", text, domain)
	if err != nil {
		return err
	}
	return fault.FromStatus(callAdmin(ctx, f.domain.config.Server.AdminSocket, func(ctx context.Context, admin adminv1.AdminClient) error {
		_, err := sendEntries(ctx, admin, entries, owner, false, false)
		return err
	}))
}

// fingerprint changes when a file, or a file of a folder, does.
func fingerprint(path string) string {
	var out strings.Builder
	filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			fmt.Fprintln(&out, p, err)
			return nil
		}
		if info, err := os.Stat(p); err == nil {
			fmt.Fprintln(&out, p, info.Size(), info.ModTime().UnixNano(), info.Mode())
		}
		return nil
	})
	return out.String()
}
