package member

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/svid"
)

// proofTimeout bounds one attestation, evidence and all.
const proofTimeout = 15 * time.Second

// asking is one attestation or renewal before it is sent.
type asking struct {
	attestors []attest.Attestor // none: the node key renews
	held      *SVID             // what is renewed; nil when evidence is given
	nodeKey   *ecdsa.PrivateKey
	svidKey   *ecdsa.PrivateKey
}

// admitted is what came of it.
type admitted struct {
	svid  *SVID
	roots []*x509.Certificate // of our trust domain; none when the server did not say
	sync  []*nodev1.SyncResponse
}

// prove goes through Attest once: Hello, Challenge, Proof, Admission.
func (q asking) prove(ctx context.Context, server *Server, t Trust) (admitted, error) {
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	stream, err := server.Attest(ctx)
	if err != nil {
		return admitted{}, server.Why(err)
	}
	state, err := connection(stream.Context())
	if err != nil {
		return admitted{}, err
	}
	id, err := t.server(state)
	if err != nil {
		return admitted{}, err
	}
	binding, hello, err := q.hello(state, id.TrustDomain())
	if err != nil {
		return admitted{}, err
	}
	if err := stream.Send(&nodev1.AttestRequest{Step: &nodev1.AttestRequest_Hello{Hello: hello}}); err != nil {
		return admitted{}, server.Why(last(stream, err))
	}
	answer, err := stream.Recv()
	if err != nil {
		return admitted{}, server.Why(err)
	}
	binding.Nonce = answer.GetChallenge().GetNonce()
	proof, err := q.proof(ctx, binding)
	if err != nil {
		return admitted{}, err
	}
	if err := stream.Send(&nodev1.AttestRequest{Step: &nodev1.AttestRequest_Proof{Proof: proof}}); err != nil {
		return admitted{}, server.Why(last(stream, err))
	}
	_ = stream.CloseSend() // an error of the stream is Recv's to tell
	if answer, err = stream.Recv(); err != nil {
		return admitted{}, server.Why(err)
	}
	return q.admission(answer.GetAdmission(), state, id.TrustDomain(), t)
}

// last gives the stream's own error: after a broken send, Recv knows why.
func last(stream nodev1.Node_AttestClient, err error) error {
	if _, why := stream.Recv(); why != nil {
		return why
	}
	return err
}

// connection is the TLS connection that a stream runs on.
func connection(ctx context.Context) (tls.ConnectionState, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			return info.State, nil
		}
	}
	return tls.ConnectionState{}, errors.New("the stream has no TLS connection to bind to")
}

func (q asking) hello(state tls.ConnectionState, domain spiffeid.TrustDomain) (attest.Binding, *nodev1.Hello, error) {
	exporter, err := state.ExportKeyingMaterial(attest.ExporterLabel, nil, attest.NonceSize)
	if err != nil {
		return attest.Binding{}, nil, fmt.Errorf("bind to the connection: %w", err)
	}
	nodeKey, err := x509.MarshalPKIXPublicKey(q.nodeKey.Public())
	if err != nil {
		return attest.Binding{}, nil, err
	}
	svidKey, err := x509.MarshalPKIXPublicKey(q.svidKey.Public())
	if err != nil {
		return attest.Binding{}, nil, err
	}
	b := attest.Binding{TrustDomain: domain.Name(), Exporter: exporter, NodeKey: nodeKey, SVIDKey: svidKey}
	hello := &nodev1.Hello{Version: 1, NodeKey: nodeKey, SvidKey: svidKey}
	for _, method := range q.attestors {
		b.Methods = append(b.Methods, method.Method())
	}
	hello.Methods = b.Methods
	if len(q.attestors) == 0 {
		b.Methods = []string{attest.Renewal}
		hello.AgentId, hello.Generation = q.held.ID.String(), q.held.Generation+1
	}
	return b, hello, nil
}

// proof signs the binding with both keys, and lets each attestor prove the same binding.
func (q asking) proof(ctx context.Context, b attest.Binding) (*nodev1.Proof, error) {
	if len(b.Nonce) != attest.NonceSize {
		return nil, fault.New(fault.Unavailable, nil, fmt.Sprintf("the server's nonce has %d bytes, not %d", len(b.Nonce), attest.NonceSize))
	}
	digest := b.Digest()
	var proof nodev1.Proof
	var err error
	if proof.NodeKeySignature, err = ecdsa.SignASN1(rand.Reader, q.nodeKey, digest[:]); err != nil {
		return nil, err
	}
	if proof.SvidKeySignature, err = ecdsa.SignASN1(rand.Reader, q.svidKey, digest[:]); err != nil {
		return nil, err
	}
	for _, method := range q.attestors {
		payload, err := method.Attest(ctx, b)
		if err != nil {
			return nil, fmt.Errorf("make evidence by %s: %w", method.Method(), err)
		}
		proof.Evidence = append(proof.Evidence, &nodev1.Evidence{Method: method.Method(), Payload: payload})
	}
	return &proof, nil
}

// admission takes nothing on faith but what the handshake proved: the SVID must be for our key, an agent's, and under a root.
func (q asking) admission(got *nodev1.Admission, state tls.ConnectionState, domain spiffeid.TrustDomain, t Trust) (admitted, error) {
	id, err := svid.ParseID(got.GetAgentId())
	if err != nil {
		return admitted{}, fmt.Errorf("read the admission: %w", err)
	}
	chain, err := parseChain(got.GetCertificates())
	if err != nil {
		return admitted{}, fmt.Errorf("read the agent SVID: %w", err)
	}
	roots, err := ownRoots(got.GetSync(), domain)
	if err != nil {
		return admitted{}, err
	}
	anchors := t.anchors(state.PeerCertificates[1:], domain)
	anchors.Roots = append(anchors.Roots, roots...)
	verified, err := svid.Verify(chain[0], chain[1:], anchors, t.Now())
	if err != nil {
		return admitted{}, fmt.Errorf("check the agent SVID: %w", skewed(err, chain[0], t.Now()))
	}
	path := svid.Segments(id)
	switch {
	case verified != id:
		return admitted{}, fmt.Errorf("the agent SVID is for %s, the admission for %s", verified, id)
	case len(path) != 4 || path[0] != "writ" || path[1] != "agent":
		return admitted{}, fmt.Errorf("%s is not an agent's ID", id)
	case !q.svidKey.PublicKey.Equal(chain[0].PublicKey):
		return admitted{}, errors.New("the agent SVID is for another key")
	case len(q.attestors) == 0 && (id != q.held.ID || got.GetGeneration() != q.held.Generation+1):
		return admitted{}, fmt.Errorf("renewal answered for %s, generation %d", id, got.GetGeneration())
	}
	if len(roots) == 0 {
		roots = anchors.Roots
	}
	m := &SVID{ID: id, Generation: got.GetGeneration(), Reattestable: got.GetReattestable(), NotAfter: chain[0].NotAfter, key: q.svidKey,
		chain: got.GetCertificates(), leaf: chain[0], Selectors: readSelectors(got.GetSelectors())}
	return admitted{svid: m, roots: roots, sync: got.GetSync()}, nil
}

// ownRoots finds our own bundle in the first sync.
func ownRoots(messages []*nodev1.SyncResponse, domain spiffeid.TrustDomain) ([]*x509.Certificate, error) {
	var roots []*x509.Certificate
	for _, message := range messages {
		for _, change := range message.GetChanges() {
			if b := change.GetBundle(); b.GetTrustDomain() == domain.Name() {
				var err error
				if roots, err = parseAll(b.GetX509Authorities()); err != nil {
					return nil, fmt.Errorf("read the bundle of %s: %w", domain.Name(), err)
				}
			}
		}
	}
	return roots, nil
}
