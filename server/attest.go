package server

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/ca"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/svid"
)

const (
	attestWithin  = 10 * time.Second // a stranger has this long from first to last message
	agentTTL      = time.Hour        // of agent SVIDs
	mostMethods   = 4
	mostKeyLength = 1 << 10 // bytes of a PKIX key
)

// Attest implements nodev1.NodeServer, design.md flow A: hello, nonce, proof, admission.
func (s *nodeAPI) Attest(stream nodev1.Node_AttestServer) error {
	ctx, cancel := context.WithTimeout(stream.Context(), attestWithin)
	defer cancel()
	from, exporter, err := connection(ctx)
	if err != nil {
		return err
	}
	if !s.limits.allow(from) {
		err := fault.New(fault.Throttled, nil, "too many attestations; try again in a second")
		s.tally.refused(ctx, s.config.Log, from, err)
		return err
	}
	proved, err := s.hear(ctx, stream, from, exporter)
	if err != nil {
		s.tally.refused(ctx, s.config.Log, from, err)
		return err
	}
	admission, err := s.admit(ctx, proved)
	if err != nil {
		s.tally.refused(ctx, s.config.Log, from, err)
		return err
	}
	return stream.Send(&nodev1.AttestResponse{Step: &nodev1.AttestResponse_Admission{Admission: admission}})
}

// connection gives the other end's address and the exporter of its TLS connection (RFC 8446 section 7.5).
func connection(ctx context.Context) (netip.Addr, []byte, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return netip.Addr{}, nil, fault.New(fault.Unauthenticated, nil, "attestation needs a TLS connection")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return netip.Addr{}, nil, fault.New(fault.Unauthenticated, nil, "attestation needs a TLS connection")
	}
	exporter, err := info.State.ExportKeyingMaterial(attest.ExporterLabel, nil, attest.NonceSize)
	if err != nil {
		return netip.Addr{}, nil, fault.New(fault.Unauthenticated, err, "the connection cannot be bound to")
	}
	from, _ := netip.ParseAddrPort(p.Addr.String())
	return from.Addr().Unmap(), exporter, nil
}

// proved is what an attestation comes to before anything is committed.
type proved struct {
	hello    *nodev1.Hello
	binding  attest.Binding
	svidKey  crypto.PublicKey
	results  []attest.Result // none for a renewal
	evidence [32]byte
	from     netip.Addr
}

// hear takes hello and proof, and checks every signature; it changes nothing.
func (s *nodeAPI) hear(ctx context.Context, stream nodev1.Node_AttestServer, from netip.Addr, exporter []byte) (*proved, error) {
	first, err := receive(ctx, stream)
	if err != nil {
		return nil, err
	}
	p := &proved{hello: first.GetHello(), from: from}
	if err := s.checkHello(p.hello); err != nil {
		return nil, err
	}
	nonce := make([]byte, attest.NonceSize)
	rand.Read(nonce)
	if err := stream.Send(&nodev1.AttestResponse{Step: &nodev1.AttestResponse_Challenge{Challenge: &nodev1.Challenge{Nonce: nonce}}}); err != nil {
		return nil, err
	}
	second, err := receive(ctx, stream)
	if err != nil {
		return nil, err
	}
	proof := second.GetProof()
	p.binding = attest.Binding{Methods: p.hello.Methods, TrustDomain: s.config.TrustDomain.Name(), Exporter: exporter, Nonce: nonce,
		NodeKey: p.hello.NodeKey, SVIDKey: p.hello.SvidKey}
	if len(p.hello.Methods) == 0 {
		p.binding.Methods = []string{attest.Renewal}
	}
	if _, err := checkSignature(p.hello.NodeKey, p.binding, proof.GetNodeKeySignature(), "node key"); err != nil {
		return nil, err
	}
	if p.svidKey, err = checkSignature(p.hello.SvidKey, p.binding, proof.GetSvidKeySignature(), "SVID key"); err != nil {
		return nil, err
	}
	if len(proof.GetEvidence()) != len(p.hello.Methods) {
		return nil, unproved(nil, "the evidence is not for the methods that were named")
	}
	return p, s.verify(ctx, p, proof.GetEvidence())
}

// receive is Recv with the stream's deadline: a stranger who says nothing does not hold a handler.
func receive(ctx context.Context, stream nodev1.Node_AttestServer) (*nodev1.AttestRequest, error) {
	type message struct {
		request *nodev1.AttestRequest
		err     error
	}
	got := make(chan message, 1)
	go func() { // ends with the stream at the latest
		r, err := stream.Recv()
		got <- message{r, err}
	}()
	select {
	case m := <-got:
		if m.err == io.EOF {
			return nil, fault.New(fault.Invalid, nil, "the stream ends before the attestation does")
		}
		return m.request, m.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *nodeAPI) checkHello(h *nodev1.Hello) error {
	switch {
	case h == nil || h.Version != 1:
		return fault.New(fault.Invalid, nil, "the stream does not begin with a hello of version 1")
	case len(h.NodeKey) > mostKeyLength || len(h.SvidKey) > mostKeyLength || len(h.Methods) > mostMethods:
		return fault.New(fault.Invalid, nil, "the hello is too long")
	case slices.Equal(h.NodeKey, h.SvidKey):
		return fault.New(fault.Invalid, nil, "node key and SVID key are the same")
	case len(h.Methods) == 0 && h.AgentId == "":
		return fault.New(fault.Invalid, nil, "the hello names neither a method nor an agent ID to renew")
	case len(slices.Compact(slices.Sorted(slices.Values(h.Methods)))) != len(h.Methods):
		return fault.New(fault.Invalid, nil, "the hello names a method twice")
	}
	for _, method := range h.Methods {
		if s.config.Verifiers[method] == nil {
			return fault.New(fault.Denied, nil, "this server does not take that method of attestation").
				With(fault.MethodOff, "add it to `attest` in server.yaml, or join by a method that is there")
		}
	}
	return nil
}

// checkSignature wants a P-256 or P-384 key and its signature over the binding's digest.
func checkSignature(der []byte, b attest.Binding, signature []byte, whose string) (crypto.PublicKey, error) {
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fault.New(fault.Invalid, err, "the "+whose+" cannot be read")
	}
	public, ok := key.(*ecdsa.PublicKey)
	if !ok || public.Curve.Params().BitSize < 256 {
		return nil, fault.New(fault.Invalid, nil, "the "+whose+" is not a P-256 or P-384 key")
	}
	digest := b.Digest()
	if !ecdsa.VerifyASN1(public, digest[:], signature) {
		return nil, unproved(nil, "the "+whose+"'s signature does not fit this connection")
	}
	return public, nil
}

func unproved(cause error, what string) error {
	return fault.New(fault.Unauthenticated, cause, what).With(fault.BadEvidence, "")
}

// verify has each method's verifier judge its evidence.
func (s *nodeAPI) verify(ctx context.Context, p *proved, evidence []*nodev1.Evidence) error {
	digest := sha256.New()
	for i, e := range evidence {
		method := p.hello.Methods[i]
		if e.Method != method {
			return unproved(nil, "the evidence is not for the methods that were named")
		}
		result, err := s.config.Verifiers[method].Verify(ctx, attest.Claim{Binding: p.binding, Payload: e.Payload, From: p.from, Now: s.config.Now()})
		if err != nil {
			return err
		}
		p.results = append(p.results, result)
		digest.Write(result.Digest[:])
	}
	digest.Sum(p.evidence[:0])
	return nil
}

// node is the row that a proof comes to. The server, not the verifier, puts the method's name before each selector.
func (s *nodeAPI) node(p *proved) (attest.Node, []attest.Use, error) {
	n := attest.Node{Key: p.hello.NodeKey, SVIDKey: p.hello.SvidKey, Method: strings.Join(p.hello.Methods, "+"), State: attest.Attested,
		Reattestable: true, AttestedAt: s.config.Now(), EvidenceKey: p.results[0].EvidenceKey, Server: s.config.Name}
	var uses []attest.Use
	for i, r := range p.results {
		n.Selectors = append(n.Selectors, attest.Of(p.hello.Methods[i], r.Selectors)...)
		n.Assurance = max(n.Assurance, r.Assurance)
		n.Reattestable = n.Reattestable && r.Reattestable
		uses = append(uses, r.Consumed...)
	}
	slices.SortFunc(n.Selectors, attest.Selector.Compare)
	id, err := spiffeid.FromSegments(s.config.TrustDomain, "writ", "agent", p.hello.Methods[0], p.results[0].Key)
	if err != nil {
		return n, nil, unproved(err, "the evidence yields no agent ID")
	}
	n.ID = id
	return n, uses, nil
}

// admit commits what was proved and gives the agent its SVID: one transaction for evidence, node and record, then the issuance.
func (s *nodeAPI) admit(ctx context.Context, p *proved) (*nodev1.Admission, error) {
	renewal := len(p.results) == 0
	var n attest.Node
	var uses []attest.Use
	var err error
	if renewal {
		n, err = s.renewing(ctx, p)
	} else {
		n, uses, err = s.node(p)
	}
	if err != nil {
		return nil, err
	}
	draft, err := s.config.Authority.Draft(ca.AgentSVID(), ca.Request{ID: n.ID, Key: p.svidKey, TTL: s.agentTTL(p)})
	if err != nil {
		return nil, err
	}
	n.Serial, n.AttestedUntil = draft.Serial(), draft.NotAfter()
	record := s.attestation(ctx, p, n)
	if renewal {
		n, err = s.config.Store.Admissions.Renew(ctx, n, record)
	} else {
		n, err = s.config.Store.Admissions.Admit(ctx, attest.Admission{Node: n, Uses: uses}, record)
	}
	if err != nil {
		return nil, err
	}
	intent := s.intent(ctx, draft)
	intent.Node, intent.NodeGeneration = n.ID.String(), n.Generation
	chain, err := s.issue(ctx, draft, intent)
	if err != nil {
		return nil, err
	}
	s.tally.attested(record.Method)
	s.config.Log.InfoContext(ctx, "node attested", "agent_id", n.ID.String(), "method", record.Method, "serial", n.Serial)
	return s.admission(ctx, n, chain, renewal)
}

// agentTTL ends no later than the evidence does.
func (s *nodeAPI) agentTTL(p *proved) time.Duration {
	ttl := agentTTL
	for _, r := range p.results {
		if !r.Until.IsZero() {
			ttl = min(ttl, r.Until.Sub(s.config.Now()))
		}
	}
	return ttl
}

// renewing is the node that a renewal is for: known, neither banned nor locked, and with the node key that signed.
func (s *nodeAPI) renewing(ctx context.Context, p *proved) (attest.Node, error) {
	id, err := svid.ParseID(p.hello.AgentId)
	if err != nil {
		return attest.Node{}, fault.New(fault.Invalid, err, "the agent ID to renew")
	}
	n, err := s.config.Store.Nodes.Node(ctx, id.String())
	switch {
	case fault.Is(err, fault.NotFound) || err == nil && !slices.Equal(n.Key, p.hello.NodeKey): // one answer: no stranger learns which nodes there are
		return n, fault.New(fault.NotFound, nil, "this server does not know the node").With(fault.NodeUnknown, "let the node attest anew")
	case err != nil:
		return n, err
	}
	n.Generation, n.SVIDKey, n.AttestedAt = p.hello.Generation, p.hello.SvidKey, s.config.Now()
	return n, stateError(n)
}

func (s *nodeAPI) attestation(ctx context.Context, p *proved, n attest.Node) audit.Attestation {
	record := audit.Attestation{Time: s.config.Now(), Server: s.config.Name, AgentID: n.ID.String(), Method: strings.Join(p.binding.Methods, "+"),
		Assurance: uint8(n.Assurance), Evidence: p.evidence, NodeKey: p.binding.Holder(), Generation: n.Generation,
		From: p.from.String(), Outcome: audit.Admitted, RequestID: requestID(ctx)}
	for _, selector := range n.Selectors {
		record.Selectors = append(record.Selectors, selector.String())
	}
	if len(p.results) == 0 {
		record.Outcome = audit.Renewed
	}
	return record
}

// admission tells the agent who it is, and its first entries with it.
func (s *nodeAPI) admission(ctx context.Context, n attest.Node, chain [][]byte, renewal bool) (*nodev1.Admission, error) {
	a := &nodev1.Admission{AgentId: n.ID.String(), Certificates: chain, Generation: n.Generation, Assurance: uint32(n.Assurance), Reattestable: n.Reattestable}
	for _, selector := range n.Selectors {
		a.Selectors = append(a.Selectors, selector.String())
	}
	if renewal {
		return a, nil
	}
	newest, err := s.config.Store.Feed.Newest(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.registry.await(ctx, newest.Number, catchUpPatience); err != nil {
		return nil, err
	}
	a.Sync = s.registry.firstSync(n)
	return a, nil
}

// firstSync is what the node's Sync stream would begin with, as far as one answer has room: the rest comes on the stream.
func (r *registry) firstSync(n attest.Node) []*nodev1.SyncResponse {
	r.mu.RLock()
	defer r.mu.RUnlock()
	messages := r.snapshot(newFollower(n))
	if len(messages) > 1 { // the bundle alone
		return []*nodev1.SyncResponse{{Version: 1, Changes: []*nodev1.Change{{Kind: &nodev1.Change_Bundle{Bundle: r.bundle}}}, More: true}}
	}
	return messages
}
