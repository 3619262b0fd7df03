package server

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/ca"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
	"github.com/writ-dev/writ/svid"
)

// mostRequests bounds one call of Sign.
const mostRequests = 256

// signing is one request on its way: each step is taken only while there is no error.
type signing struct {
	intent audit.Issuance
	err    error
}

// signingX509 is the way to a certificate.
type signingX509 struct {
	signing
	draft *ca.Draft
	chain [][]byte
}

// Sign implements nodev1.NodeServer. Each request is judged alone; the records of all share one transaction's sync.
func (s *nodeAPI) Sign(ctx context.Context, r *nodev1.SignRequest) (*nodev1.SignResponse, error) {
	node, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	if len(r.Requests) > mostRequests {
		return nil, fault.New(fault.Invalid, nil, "more than 256 signing requests in one call")
	}
	all, records := make([]*signingX509, len(r.Requests)), make([]*signing, len(r.Requests))
	each(all, func(i int) {
		all[i] = s.draft(ctx, node, r.Requests[i])
		records[i] = &all[i].signing
	})
	s.record(ctx, records)
	each(all, func(i int) {
		if all[i].err == nil {
			all[i].chain, all[i].err = s.config.Authority.Issue(all[i].draft)
		}
	})
	response := &nodev1.SignResponse{}
	for i, one := range all {
		response.Results = append(response.Results, s.result(ctx, node, r.Requests[i], one))
	}
	return response, nil
}

// each runs do for every index, over all cores. One goroutine a core takes index after index: one for each index would grow a new
// stack for each. A panic reaches the caller, who answers this call with an internal error and serves on.
func each[T any](list []T, do func(i int)) {
	var next atomic.Int64
	cores := min(runtime.GOMAXPROCS(0), len(list))
	ended := make(chan error, cores)
	work := func() {
		defer func() {
			if p := recover(); p != nil {
				ended <- fmt.Errorf("%v\n%s", p, debug.Stack())
				return
			}
			ended <- nil
		}()
		for i := int(next.Add(1)) - 1; i < len(list); i = int(next.Add(1)) - 1 {
			do(i)
		}
	}
	for range cores {
		go work()
	}
	var panicked error
	for range cores {
		if err := <-ended; err != nil {
			panicked = err
		}
	}
	if panicked != nil {
		panic(panicked)
	}
}

// draft checks one request and prepares its certificate. Of the CSR only the public key is taken.
func (s *nodeAPI) draft(ctx context.Context, n attest.Node, r *nodev1.SigningRequest) *signingX509 {
	one := &signingX509{}
	id, e, err := s.wanted(n, r.GetEntry(), r.GetSpiffeId())
	if err != nil {
		one.err = err
		return one
	}
	key, err := ca.CheckCSR(r.GetCsr(), id)
	if err != nil {
		one.err = err
		return one
	}
	ttl := e.TTL
	if ttl == 0 {
		ttl = s.config.SVIDTTL
	}
	one.draft, one.err = s.config.Authority.Draft(ca.WorkloadSVID(), ca.Request{ID: id, Key: key, DNS: e.DNS, TTL: ttl, NotAfter: e.Expires})
	if one.err == nil {
		one.intent = s.intent(ctx, one.draft)
		one.intent.Entry, one.intent.EntryRevision = e.Name, e.Revision
		one.intent.Node = n.ID.String() // whichever generation: a renewal makes no revision, so the registry may know an older one
	}
	return one
}

// wanted finds what a request asks for: the SPIFFE ID of an entry that this node may serve.
func (s *nodeAPI) wanted(n attest.Node, entry, spiffeID string) (spiffeid.ID, registration.Entry, error) {
	id, err := svid.ParseID(spiffeID)
	if err != nil {
		return spiffeid.ID{}, registration.Entry{}, fault.New(fault.Invalid, err, "the SPIFFE ID to sign for").With(fault.BadRequestForSVID, "")
	}
	e, err := s.registry.entry(entry, id, n)
	return id, e, err
}

// intent is the record of a draft.
func (s *Server) intent(ctx context.Context, d *ca.Draft) audit.Issuance {
	return audit.Issuance{Time: s.config.Now(), Server: s.config.Name, Serial: d.Serial(), SPIFFEID: d.ID().String(), AuthorityID: d.AuthorityID(),
		Profile: d.Profile().Name(), NotBefore: d.NotBefore(), NotAfter: d.NotAfter(), Draft: d.Digest(), RequestID: requestID(ctx)}
}

// record writes the intents of all drafts. What is not recorded is not signed.
func (s *nodeAPI) record(ctx context.Context, all []*signing) {
	var drafted []*signing
	var intents []audit.Issuance
	for _, one := range all {
		if one.err == nil {
			drafted, intents = append(drafted, one), append(intents, one.intent)
		}
	}
	if len(intents) == 0 {
		return
	}
	for i, err := range s.config.Store.Issuances.RecordIssuances(ctx, intents) {
		drafted[i].err = err
	}
}

// issue records one draft and signs it.
func (s *Server) issue(ctx context.Context, d *ca.Draft, intent audit.Issuance) ([][]byte, error) {
	if err := s.config.Store.Issuances.RecordIssuances(ctx, []audit.Issuance{intent})[0]; err != nil {
		return nil, err
	}
	return s.config.Authority.Issue(d)
}

func (s *nodeAPI) result(ctx context.Context, n attest.Node, r *nodev1.SigningRequest, one *signingX509) *nodev1.SigningResult {
	if one.err == nil {
		s.tally.issued(one.intent.Profile)
		return &nodev1.SigningResult{Certificates: one.chain}
	}
	s.tally.notIssued(ca.WorkloadSVID().Name(), fault.KindOf(one.err))
	s.config.Log.WarnContext(ctx, "SVID refused", "agent_id", n.ID.String(), "entry", r.GetEntry(), "spiffe_id", r.GetSpiffeId(), "err", one.err)
	answer := wireStatus(one.err)
	return &nodev1.SigningResult{Status: uint32(answer.Code()), Code: codeOf(one.err), Message: answer.Message()}
}

// agentID reads the agent ID of a verified client certificate; others never get so far.
func agentID(id spiffeid.ID) bool {
	path := svid.Segments(id)
	return len(path) == 4 && path[0] == "writ" && path[1] == "agent"
}
