package server

import (
	"context"
	"time"

	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/ca"
	"github.com/writ-dev/writ/internal/fault"
)

// signingJWT is the way to a token.
type signingJWT struct {
	signing
	draft *ca.JWTDraft
	token string
}

// SignJWT implements nodev1.NodeServer. Each request is judged alone; the records of all share one transaction's sync.
func (s *nodeAPI) SignJWT(ctx context.Context, r *nodev1.SignJWTRequest) (*nodev1.SignJWTResponse, error) {
	if s.config.JWT == nil {
		return s.UnimplementedNodeServer.SignJWT(ctx, r)
	}
	node, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	if len(r.Requests) > mostRequests {
		return nil, fault.New(fault.Invalid, nil, "more than 256 signing requests in one call")
	}
	all, records := make([]*signingJWT, len(r.Requests)), make([]*signing, len(r.Requests))
	each(all, func(i int) {
		all[i] = s.draftJWT(ctx, node, r.Requests[i])
		records[i] = &all[i].signing
	})
	s.record(ctx, records)
	each(all, func(i int) {
		if all[i].err == nil {
			all[i].token, all[i].err = s.config.JWT.Issue(all[i].draft)
		}
	})
	response := &nodev1.SignJWTResponse{}
	for i, one := range all {
		response.Results = append(response.Results, s.resultJWT(ctx, node, r.Requests[i], one))
	}
	return response, nil
}

// draftJWT checks one request and prepares its token. Only the audience is the caller's.
func (s *nodeAPI) draftJWT(ctx context.Context, n attest.Node, r *nodev1.JWTSigningRequest) *signingJWT {
	one := &signingJWT{}
	id, e, err := s.wanted(n, r.GetEntry(), r.GetSpiffeId())
	if err != nil {
		one.err = err
		return one
	}
	ttl := e.JWTTTL
	if ttl == 0 {
		ttl = s.config.JWTTTL
	}
	d, err := s.config.JWT.Draft(ca.JWTRequest{ID: id, Audience: r.GetAudience(), TTL: ttl, NotAfter: e.Expires})
	if err != nil {
		one.err = err
		return one
	}
	one.draft = d
	one.intent = audit.Issuance{Time: s.config.Now(), Server: s.config.Name, Serial: d.Serial(), SPIFFEID: d.ID().String(), AuthorityID: d.AuthorityID(),
		Entry: e.Name, EntryRevision: e.Revision, Node: n.ID.String(), // whichever generation, as in draft
		Profile: ca.ProfileJWT, Audience: d.Audience(), NotBefore: d.IssuedAt(), NotAfter: d.Expires(), Draft: d.Digest(), RequestID: requestID(ctx)}
	return one
}

func (s *nodeAPI) resultJWT(ctx context.Context, n attest.Node, r *nodev1.JWTSigningRequest, one *signingJWT) *nodev1.JWTSigningResult {
	if one.err == nil {
		s.tally.issued(ca.ProfileJWT)
		return &nodev1.JWTSigningResult{Token: one.token, IssuedUnix: one.draft.IssuedAt().Unix(), ExpiresUnix: one.draft.Expires().Unix()}
	}
	s.tally.notIssued(ca.ProfileJWT, fault.KindOf(one.err))
	s.config.Log.WarnContext(ctx, "JWT-SVID refused", "agent_id", n.ID.String(), "entry", r.GetEntry(), "spiffe_id", r.GetSpiffeId(), "err", one.err)
	answer := wireStatus(one.err)
	return &nodev1.JWTSigningResult{Status: uint32(answer.Code()), Code: codeOf(one.err), Message: answer.Message()}
}

// watchKeys tells the JWT authority when every connected agent holds the key that waits for that. It looks whenever agents say what
// they hold, and once a second, since a key may begin to wait after they did.
func (s *Server) watchKeys(ctx context.Context) error {
	if s.config.JWT == nil {
		return nil
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		s.registry.mu.RLock()
		moved := s.registry.moved
		s.registry.mu.RUnlock()
		if id := s.config.JWT.Waiting(); id != "" && s.registry.allHold(id) {
			s.config.JWT.Acknowledge(id)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-moved:
		case <-tick.C:
		}
	}
}

// allHold says whether every connected agent holds a JWT key. Without one there is nobody who could say so.
func (r *registry) allHold(id string) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	since, there := r.jwtKeys[id]
	for f := range r.followers {
		if !there || !f.has(since) {
			return false
		}
	}
	return len(r.followers) > 0
}
