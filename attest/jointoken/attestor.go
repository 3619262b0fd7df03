package jointoken

import (
	"context"
	"crypto/ed25519"

	"github.com/writ-dev/writ/attest"
)

// Attestor proves possession of a token's seed. It implements attest.Attestor.
type Attestor struct {
	id  string
	key func() ed25519.PrivateKey // a function, since a field would be printed with the rest
}

// NewAttestor gives the attestor for a token.
func NewAttestor(t Text) *Attestor { return &Attestor{t.ID, t.Seed.private} }

// Method is join_token.
func (*Attestor) Method() string { return Method }

// Attest gives the token's id, 32 bytes, and the seed's Ed25519 signature over the binding, 64 bytes.
func (a *Attestor) Attest(_ context.Context, b attest.Binding) ([]byte, error) {
	return append([]byte(a.id), ed25519.Sign(a.key(), b.Bytes())...), nil
}
