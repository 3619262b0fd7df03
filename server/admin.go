package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/writ-dev/writ/agent/peer"
	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/api/registrationv1"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
	"github.com/writ-dev/writ/svid"
)

// adminAPI is the Server as an operator sees it. Who may connect is the socket's mode; who did is in every record.
type adminAPI struct {
	adminv1.UnimplementedAdminServer
	*Server
}

// AdminAPI is a gRPC server that speaks the admin API over a Unix socket. The caller serves and stops it, and says with the
// socket's mode who may connect.
func (s *Server) AdminAPI() *grpc.Server {
	g := grpc.NewServer(append(s.interceptors(),
		grpc.Creds(peer.Credentials(peer.Config{Log: s.config.Log})),
		grpc.MaxRecvMsgSize(64<<20),
		grpc.MaxSendMsgSize(64<<20),
		grpc.MaxHeaderListSize(16<<10),
		grpc.ConnectionTimeout(10*time.Second))...)
	adminv1.RegisterAdminServer(g, &adminAPI{Server: s})
	return g
}

// act is the record of what the caller does.
func (s *adminAPI) act(ctx context.Context, act, subject, reason string) (audit.Admin, error) {
	caller, err := peer.From(ctx)
	if err != nil {
		return audit.Admin{}, fault.New(fault.Unauthenticated, err, "the caller is not known")
	}
	return audit.Admin{Time: s.config.Now(), Server: s.config.Name, Principal: fmt.Sprintf("uid:%d", caller.Process().UID), Act: act,
		Subject: subject, Reason: reason, RequestID: requestID(ctx)}, nil
}

// ApplyEntries implements adminv1.AdminServer.
func (s *adminAPI) ApplyEntries(ctx context.Context, r *adminv1.ApplyEntriesRequest) (*adminv1.ApplyEntriesResponse, error) {
	batch := registration.Batch{Owner: r.Owner, Prune: r.Prune, DryRun: r.DryRun}
	response := &adminv1.ApplyEntriesResponse{}
	var refused []string
	for i, wire := range r.Entries {
		e, err := registration.FromWire(wire)
		if err == nil {
			err = e.Check(registration.Limits{TrustDomain: s.config.TrustDomain, MaxTTL: s.config.MaxTTL,
				MaxJWTTTL: s.config.MaxJWTTTL})
		}
		if err != nil {
			refused = append(refused, fmt.Sprintf("entry %d (%s): %s", i+1, wire.GetName(), reason(err)))
			continue
		}
		response.Warnings = append(response.Warnings, e.Warnings(s.config.Now())...)
		batch.Entries = append(batch.Entries, e)
	}
	if len(refused) > 0 {
		return nil, fault.New(fault.Invalid, nil, "entries are refused, nothing was changed").Because(refused...).
			With(fault.BadEntry, "mend them and apply again")
	}
	by, err := s.act(ctx, audit.ActApply, r.Owner, "")
	if err != nil {
		return nil, err
	}
	applied, err := s.config.Store.Entries.Apply(ctx, batch, by)
	if err != nil {
		return nil, err
	}
	response.Changes, response.Revision = wireChanges(applied.Changes), applied.Revision.Number
	return response, nil
}

// reason is an error's text without what only a log should hold.
func reason(err error) string {
	var f *fault.Error
	if errors.As(err, &f) {
		return f.Error()
	}
	return err.Error()
}

var wireActs = map[registration.Act]adminv1.EntryChange_Act{
	registration.Unchanged: adminv1.EntryChange_UNCHANGED,
	registration.Created:   adminv1.EntryChange_CREATED,
	registration.Updated:   adminv1.EntryChange_UPDATED,
	registration.Deleted:   adminv1.EntryChange_DELETED,
}

func wireChanges(changes []registration.EntryChange) []*adminv1.EntryChange {
	var out []*adminv1.EntryChange
	for _, c := range changes {
		w := &adminv1.EntryChange{Act: wireActs[c.Act], Entry: registration.ToWire(c.Entry)}
		if c.Act == registration.Updated {
			w.Before = registration.ToWire(c.Before)
		}
		out = append(out, w)
	}
	return out
}

// ListEntries implements adminv1.AdminServer. It reads the store, so that it shows what was applied a moment ago.
func (s *adminAPI) ListEntries(ctx context.Context, r *adminv1.ListEntriesRequest) (*adminv1.ListEntriesResponse, error) {
	entries, revision, err := s.config.Store.Entries.Entries(ctx)
	if err != nil {
		return nil, err
	}
	response := &adminv1.ListEntriesResponse{Revision: revision.Number}
	found := map[string]bool{}
	for _, e := range entries {
		id := e.ID.String()
		if len(r.Names) == 0 || slices.Contains(r.Names, e.Name) || slices.Contains(r.Names, id) {
			found[e.Name], found[id] = true, true
			response.Entries = append(response.Entries, registration.ToWire(e))
		}
	}
	for _, name := range r.Names {
		if !found[name] {
			return nil, fault.New(fault.NotFound, nil, "no entry has the name or SPIFFE ID "+name).With(fault.EntryUnknown, "writ entry get")
		}
	}
	slices.SortFunc(response.Entries, func(a, b *registrationv1.Entry) int { return strings.Compare(a.Name, b.Name) })
	return response, nil
}

// DeleteEntries implements adminv1.AdminServer.
func (s *adminAPI) DeleteEntries(ctx context.Context, r *adminv1.DeleteEntriesRequest) (*adminv1.DeleteEntriesResponse, error) {
	if len(r.Names) == 0 {
		return nil, fault.New(fault.Invalid, nil, "no entry is named")
	}
	by, err := s.act(ctx, audit.ActApply, "", "")
	if err != nil {
		return nil, err
	}
	applied, err := s.config.Store.Entries.Apply(ctx, registration.Batch{Delete: r.Names, DryRun: r.DryRun}, by)
	if err != nil {
		return nil, err
	}
	return &adminv1.DeleteEntriesResponse{Changes: wireChanges(applied.Changes), Revision: applied.Revision.Number}, nil
}

// WaitRevision implements adminv1.AdminServer: it answers when every agent with an open stream holds that revision.
func (s *adminAPI) WaitRevision(ctx context.Context, r *adminv1.WaitRevisionRequest) (*adminv1.WaitRevisionResponse, error) {
	newest, err := s.config.Store.Feed.Newest(ctx)
	if err != nil {
		return nil, err
	}
	revision := r.Revision
	switch {
	case revision == 0:
		revision = newest.Number
	case revision > newest.Number:
		return nil, fault.New(fault.Invalid, nil, fmt.Sprintf("there is no revision %d yet; the newest is %d", revision, newest.Number))
	}
	for {
		agents, all, moved := s.registry.caughtUp(revision)
		if all {
			return &adminv1.WaitRevisionResponse{Revision: revision, Agents: uint32(agents)}, nil
		}
		select {
		case <-moved:
		case <-s.stopped:
			return nil, errStopping()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// caughtUp says how many agents are connected, whether all of them hold a revision, and what to wait for if not.
func (r *registry) caughtUp(revision uint64) (agents int, all bool, moved <-chan struct{}) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	all = r.revision.Number >= revision
	for f := range r.followers {
		agents++
		all = all && f.has(revision)
	}
	return agents, all, r.moved
}

// GetBundle implements adminv1.AdminServer.
func (s *adminAPI) GetBundle(context.Context, *adminv1.GetBundleRequest) (*adminv1.GetBundleResponse, error) {
	s.registry.mu.RLock()
	defer s.registry.mu.RUnlock()
	b := s.registry.bundle
	return &adminv1.GetBundleResponse{TrustDomain: b.TrustDomain, X509Authorities: b.X509Authorities, Sequence: b.Sequence,
		JwtAuthorities: b.JwtAuthorities, RefreshHintSeconds: b.RefreshHintSeconds}, nil
}

// agentOf reads an agent ID that an operator typed.
func (s *adminAPI) agentOf(text string) (spiffeid.ID, error) {
	id, err := svid.ParseID(text)
	if err != nil || !agentID(id) || !id.MemberOf(s.config.TrustDomain) {
		return id, fault.New(fault.NotFound, err, "no node has the agent ID "+text).With(fault.NodeUnknown, "writ node list")
	}
	return id, nil
}
