package jointoken

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
)

// Tokens finds a token's record. What is not there is fault.NotFound.
type Tokens interface {
	Token(ctx context.Context, id string) (attest.Token, error)
}

// Verifier judges a node that joins by token. It implements attest.Verifier.
type Verifier struct{ tokens Tokens }

// NewVerifier gives a verifier over the tokens of a store.
func NewVerifier(tokens Tokens) *Verifier { return &Verifier{tokens} }

// Method is join_token.
func (*Verifier) Method() string { return Method }

const payloadSize = idSize + ed25519.SignatureSize

// Verify takes the signature of an unexpired token's seed over the binding, from an address where the token may be used. That it
// serves one node key only is for the store to keep: the Result consumes the token for this node key.
func (v *Verifier) Verify(ctx context.Context, c attest.Claim) (attest.Result, error) {
	if len(c.Payload) != payloadSize || !validID(string(c.Payload[:idSize])) {
		return attest.Result{}, refuse("evidence is not a token id and a signature")
	}
	token, err := v.find(ctx, string(c.Payload[:idSize]))
	if err != nil {
		return attest.Result{}, err
	}
	if !ed25519.Verify(token.Key, c.Binding.Bytes(), c.Payload[idSize:]) {
		return attest.Result{}, refuse("signature does not verify")
	}
	if !c.Now.Before(token.Expires) {
		return attest.Result{}, refuse("token expired")
	}
	if token.CIDR.IsValid() && !token.CIDR.Contains(c.From.Unmap().WithZone("")) {
		return attest.Result{}, refuse("token does not serve from " + c.From.String())
	}
	return result(c, token)
}

func (v *Verifier) find(ctx context.Context, id string) (attest.Token, error) {
	token, err := v.tokens.Token(ctx, id)
	switch {
	case fault.Is(err, fault.NotFound):
		return attest.Token{}, refuse("no such token")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return attest.Token{}, fmt.Errorf("look up join token: %w", err)
	case err != nil:
		return attest.Token{}, fault.New(fault.Unavailable, err, "join token could not be looked up")
	case token.ID != id || len(token.Key) != ed25519.PublicKeySize:
		return attest.Token{}, fault.New(fault.Unavailable, nil, "join token could not be looked up")
	}
	return token, nil
}

func result(c attest.Claim, token attest.Token) (attest.Result, error) {
	key, err := x509.MarshalPKIXPublicKey(token.Key)
	if err != nil {
		return attest.Result{}, fmt.Errorf("encode key of join token %s: %w", token.ID, err)
	}
	r := attest.Result{
		Key:         token.ID,
		Assurance:   attest.Bearer,
		EvidenceKey: key,
		Digest:      sha256.Sum256(c.Payload),
		Consumed: []attest.Use{{
			Kind: Method, Digest: sha256.Sum256([]byte(token.ID)), Holder: c.Binding.Holder(), Expires: token.Expires,
		}},
	}
	if token.Name != "" {
		r.Selectors = []attest.KeyValue{{Key: "name", Value: token.Name}}
	}
	return r, nil
}

// refuse says the same to the caller whatever was wrong: an unknown token and a wrong signature look alike. Why is for the log.
func refuse(why string) error {
	return fault.New(fault.Unauthenticated, errors.New(why), "join token is not valid here").
		With(fault.TokenUsed, "writ token create")
}
