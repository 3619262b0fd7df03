package server_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/attest"
)

// host is a node as a test plays it: by the protocol, unless the test bends a step.
type host struct {
	d          *domain
	attestors  []attest.Attestor
	key        crypto.Signer // the node key
	svidKey    crypto.Signer // of the SVID that is asked for
	id         string
	generation uint64
	chain      [][]byte
	serving    crypto.Signer // the key of chain
}

// bent changes what one attestation says; a nil step changes nothing.
type bent struct {
	hello   func(*nodev1.Hello)
	binding func(*attest.Binding) // what is signed, not what is said
	proof   func(*nodev1.Proof)
	first   *nodev1.AttestRequest // in place of the hello
}

func (d *domain) newHost(attestors ...attest.Attestor) *host {
	return &host{d: d, attestors: attestors, key: newKey(d.t), svidKey: newKey(d.t)}
}

// join makes a node that joined by a token of that name.
func (d *domain) join(name string) *host {
	d.t.Helper()
	return d.admitted(d.token(&adminv1.CreateTokenRequest{Node: name}))
}

// admitted makes a node and has it prove itself.
func (d *domain) admitted(attestors ...attest.Attestor) *host {
	d.t.Helper()
	h := d.newHost(attestors...)
	must(h.attest(bent{}))(d.t)
	return h
}

// attest proves the host by its attestors over a new connection.
func (h *host) attest(b bent) (*nodev1.Admission, error) {
	return h.attestOver(h.d.dial(nil), b)
}

func (h *host) attestOver(c *client, b bent) (*nodev1.Admission, error) {
	hello := &nodev1.Hello{Version: 1}
	for _, a := range h.attestors {
		hello.Methods = append(hello.Methods, a.Method())
	}
	return h.prove(c, hello, h.attestors, b)
}

// renew names a generation and a key for it.
func (h *host) renew(generation uint64, key crypto.Signer) (*nodev1.Admission, error) {
	h.svidKey = key
	return h.prove(h.d.dial(nil), &nodev1.Hello{Version: 1, AgentId: h.id, Generation: generation}, nil, bent{})
}

func (h *host) prove(c *client, hello *nodev1.Hello, attestors []attest.Attestor, b bent) (*nodev1.Admission, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	stream, err := c.Attest(ctx)
	if err != nil {
		return nil, err
	}
	hello.NodeKey, hello.SvidKey = keyDER(h.d.t, h.key), keyDER(h.d.t, h.svidKey)
	if b.hello != nil {
		b.hello(hello)
	}
	first := &nodev1.AttestRequest{Step: &nodev1.AttestRequest_Hello{Hello: hello}}
	if b.first != nil {
		first = b.first
	}
	if err := stream.Send(first); err != nil {
		return nil, why(stream, err)
	}
	answer, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	binding, err := bindingOf(stream, hello, answer.GetChallenge().GetNonce())
	if err != nil {
		return nil, err
	}
	if b.binding != nil {
		b.binding(&binding)
	}
	proof, err := h.proof(ctx, binding, attestors)
	if err != nil {
		return nil, err
	}
	if b.proof != nil {
		b.proof(proof)
	}
	if err := stream.Send(&nodev1.AttestRequest{Step: &nodev1.AttestRequest_Proof{Proof: proof}}); err != nil {
		return nil, why(stream, err)
	}
	if answer, err = stream.Recv(); err != nil {
		return nil, err
	}
	a := answer.GetAdmission()
	h.id, h.generation, h.chain, h.serving = a.GetAgentId(), a.GetGeneration(), a.GetCertificates(), h.svidKey
	return a, nil
}

// bindingOf is the binding of the stream's connection, as an honest node builds it.
func bindingOf(stream nodev1.Node_AttestClient, hello *nodev1.Hello, nonce []byte) (attest.Binding, error) {
	p, _ := peer.FromContext(stream.Context())
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return attest.Binding{}, errors.New("the stream has no TLS connection")
	}
	exporter, err := info.State.ExportKeyingMaterial(attest.ExporterLabel, nil, attest.NonceSize)
	b := attest.Binding{Methods: hello.Methods, TrustDomain: example.Name(), Exporter: exporter, Nonce: nonce, NodeKey: hello.NodeKey, SVIDKey: hello.SvidKey}
	if len(hello.Methods) == 0 {
		b.Methods = []string{attest.Renewal}
	}
	return b, err
}

func (h *host) proof(ctx context.Context, b attest.Binding, attestors []attest.Attestor) (*nodev1.Proof, error) {
	digest := b.Digest()
	var proof nodev1.Proof
	var err error
	if proof.NodeKeySignature, err = h.key.Sign(rand.Reader, digest[:], crypto.SHA256); err != nil {
		return nil, err
	}
	if proof.SvidKeySignature, err = h.svidKey.Sign(rand.Reader, digest[:], crypto.SHA256); err != nil {
		return nil, err
	}
	for _, a := range attestors {
		payload, err := a.Attest(ctx, b)
		if err != nil {
			return nil, err
		}
		proof.Evidence = append(proof.Evidence, &nodev1.Evidence{Method: a.Method(), Payload: payload})
	}
	return &proof, nil
}

// why is the stream's own error: a broken send does not know it.
func why(stream nodev1.Node_AttestClient, err error) error {
	if _, told := stream.Recv(); told != nil {
		return told
	}
	return err
}

// certificate is the agent SVID that the host holds.
func (h *host) certificate() *tls.Certificate {
	return &tls.Certificate{Certificate: h.chain, PrivateKey: h.serving}
}

// connect dials with the agent SVID.
func (h *host) connect() *client { return h.d.dial(h.certificate()) }

// sign asks for the SVID of each entry, by its name as the harness's entries are named, and gives one result per entry.
func (h *host) sign(names ...string) ([]*nodev1.SigningResult, error) {
	request := &nodev1.SignRequest{}
	for _, name := range names {
		request.Requests = append(request.Requests, &nodev1.SigningRequest{Entry: name, SpiffeId: "spiffe://example.org/" + name,
			Csr: csrOf(h.d.t, &x509.CertificateRequest{}, newKey(h.d.t))})
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	answer, err := h.connect().Sign(ctx, request)
	return answer.GetResults(), err
}

// workload has the server sign the SVID of an entry.
func (h *host) workload(name string) *tls.Certificate {
	h.d.t.Helper()
	key := newKey(h.d.t)
	answer := must(h.connect().Sign(h.d.t.Context(), &nodev1.SignRequest{Requests: []*nodev1.SigningRequest{{Entry: name,
		SpiffeId: "spiffe://example.org/" + name, Csr: csrOf(h.d.t, &x509.CertificateRequest{}, key)}}}))(h.d.t)
	if r := answer.Results[0]; r.Status != 0 {
		h.d.t.Fatalf("the SVID of %s is refused: %s", name, r.Message)
	}
	return &tls.Certificate{Certificate: answer.Results[0].Certificates, PrivateKey: key}
}

func csrOf(t *testing.T, template *x509.CertificateRequest, key crypto.Signer) []byte {
	t.Helper()
	return must(x509.CreateCertificateRequest(rand.Reader, template, key))(t)
}

func keyDER(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	return must(x509.MarshalPKIXPublicKey(key.Public()))(t)
}

func seconds(n int64) *durationpb.Duration { return durationpb.New(time.Duration(n) * time.Second) }
