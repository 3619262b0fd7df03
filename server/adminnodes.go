package server

import (
	"context"
	"crypto/sha256"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/internal/fault"
)

const (
	tokenTTL     = 10 * time.Minute
	longestToken = 30 * 24 * time.Hour
)

// CreateToken implements adminv1.AdminServer. The seed is in the answer and nowhere else.
func (s *adminAPI) CreateToken(ctx context.Context, r *adminv1.CreateTokenRequest) (*adminv1.CreateTokenResponse, error) {
	if s.config.Tokens == nil || s.config.Verifiers["join_token"] == nil {
		return nil, fault.New(fault.Invalid, nil, "this server does not take join tokens").
			With(fault.MethodOff, "add join_token: {} to `attest` in server.yaml")
	}
	ttl := tokenTTL
	if r.Ttl != nil {
		ttl = r.Ttl.AsDuration()
	}
	if ttl < time.Second || ttl > longestToken {
		return nil, fault.New(fault.Invalid, nil, "a join token lives between a second and 30 days")
	}
	var cidr netip.Prefix
	if r.Cidr != "" {
		var err error
		if cidr, err = netip.ParsePrefix(r.Cidr); err != nil {
			return nil, fault.New(fault.Invalid, nil, "the CIDR "+r.Cidr+" is not ADDRESS/BITS")
		}
	}
	var pins [][32]byte
	for _, root := range s.config.Authority.Bundle().Roots {
		pins = append(pins, sha256.Sum256(root.RawSubjectPublicKeyInfo))
	}
	wanted := attest.Token{Expires: s.config.Now().Add(ttl), Name: r.Node, CIDR: cidr, Server: s.config.Name}
	kept, text, err := s.config.Tokens(s.config.Addresses, pins, wanted)
	if err != nil {
		return nil, fault.New(fault.Invalid, err, "no such join token can be made")
	}
	by, err := s.act(ctx, audit.ActToken, kept.ID, "")
	if err != nil {
		return nil, err
	}
	if err := s.config.Store.Operator.CreateToken(ctx, kept, by); err != nil {
		return nil, err
	}
	return &adminv1.CreateTokenResponse{Token: text, Id: kept.ID, Expires: timestamppb.New(kept.Expires)}, nil
}

// ListNodes implements adminv1.AdminServer.
func (s *adminAPI) ListNodes(ctx context.Context, _ *adminv1.ListNodesRequest) (*adminv1.ListNodesResponse, error) {
	nodes, err := s.config.Store.Nodes.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	connected := s.registry.connected()
	response := &adminv1.ListNodesResponse{}
	for _, n := range nodes {
		id := n.ID.String()
		w := &adminv1.Node{AgentId: id, Method: n.Method, State: string(n.State), Assurance: uint32(n.Assurance), Generation: n.Generation,
			AttestedAt: timestamppb.New(n.AttestedAt), AttestedUntil: timestamppb.New(n.AttestedUntil), Serial: n.Serial}
		w.Revision, w.Connected = connected[id]
		for _, selector := range n.Selectors {
			w.Selectors = append(w.Selectors, selector.String())
		}
		response.Nodes = append(response.Nodes, w)
	}
	slices.SortFunc(response.Nodes, func(a, b *adminv1.Node) int { return strings.Compare(a.AgentId, b.AgentId) })
	return response, nil
}

// connected gives the revision that each connected agent holds; one that holds all that concerns it holds the newest.
func (r *registry) connected() map[string]uint64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := map[string]uint64{}
	for f := range r.followers {
		revision := r.revision.Number
		if !f.has(revision) {
			f.mu.Lock()
			revision = f.acked
			f.mu.Unlock()
		}
		out[f.agent.String()] = revision
	}
	return out
}

// BanNode implements adminv1.AdminServer.
func (s *adminAPI) BanNode(ctx context.Context, r *adminv1.BanNodeRequest) (*adminv1.BanNodeResponse, error) {
	if strings.HasPrefix(r.Subject, "spiffe:") {
		if _, err := s.agentOf(r.Subject); err != nil {
			return nil, err
		}
	} else if _, err := attest.ParseSelector(r.Subject); err != nil {
		return nil, fault.New(fault.Invalid, err, "what to ban is neither an agent ID nor a selector")
	}
	by, err := s.act(ctx, audit.ActBan, r.Subject, r.Reason)
	if err != nil {
		return nil, err
	}
	ids, err := s.config.Store.Operator.Ban(ctx, attest.Ban{Subject: r.Subject, Reason: r.Reason, DryRun: r.DryRun}, by)
	if err != nil {
		return nil, err
	}
	return &adminv1.BanNodeResponse{AgentIds: ids}, nil
}

// EvictNode implements adminv1.AdminServer.
func (s *adminAPI) EvictNode(ctx context.Context, r *adminv1.EvictNodeRequest) (*adminv1.EvictNodeResponse, error) {
	id, err := s.agentOf(r.AgentId)
	if err != nil {
		return nil, err
	}
	if _, err := s.config.Store.Nodes.Node(ctx, id.String()); err != nil || r.DryRun {
		return &adminv1.EvictNodeResponse{}, err
	}
	by, err := s.act(ctx, audit.ActEvict, r.AgentId, "")
	if err != nil {
		return nil, err
	}
	return &adminv1.EvictNodeResponse{}, s.config.Store.Operator.Evict(ctx, id.String(), by)
}
