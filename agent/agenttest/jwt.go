package agenttest

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/json"
	"strings"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/svid"
)

// jwtKey is one of the authority's JWT keys.
type jwtKey struct {
	id  string
	key *ecdsa.PrivateKey
}

func (a *Authority) newJWTKey() jwtKey { return jwtKey{rand.Text(), newKey(a.t)} }

// RotateJWT signs with a new key from now on and pushes the bundle; the key before stays in it or not.
func (a *Authority) RotateJWT(keep bool) {
	a.Lock()
	keys := a.jwtKeys
	if !keep {
		keys = nil
	}
	a.jwtKeys = append([]jwtKey{a.newJWTKey()}, keys...)
	a.Unlock()
	a.Change(a.Bundle())
}

// jwks is the set of the JWT keys, nothing where there is none.
func (a *Authority) jwks() []byte {
	if len(a.jwtKeys) == 0 {
		return nil
	}
	b := svid.JWTBundle{TrustDomain: spiffeid.RequireTrustDomainFromString(a.domain)}
	for _, k := range a.jwtKeys {
		b.Keys = append(b.Keys, svid.JWTKey{ID: k.id, Public: &k.key.PublicKey})
	}
	return b.JWKS()
}

// JWT signs any claims with the present key.
func (a *Authority) JWT(claims map[string]any) string {
	a.Lock()
	defer a.Unlock()
	return a.jwt(claims, a.jwtKeys[0])
}

// JWTByCA signs them with the key that issues X.509-SVIDs, under the name of the present key.
func (a *Authority) JWTByCA(claims map[string]any) string {
	a.Lock()
	defer a.Unlock()
	return a.jwt(claims, jwtKey{a.jwtKeys[0].id, a.key})
}

func (a *Authority) jwt(claims map[string]any, key jwtKey) string {
	payload, err := json.Marshal(claims)
	if err != nil {
		a.t.Error(err)
		return ""
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key.key, KeyID: key.id}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		a.t.Error(err)
		return ""
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		a.t.Error(err)
		return ""
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		a.t.Error(err)
	}
	return token
}

// SignJWT is the node API's.
func (a *Authority) SignJWT(ctx context.Context, request *nodev1.SignJWTRequest) (*nodev1.SignJWTResponse, error) {
	if err := a.known(ctx); err != nil {
		return nil, err
	}
	a.Lock()
	before := a.BeforeJWT
	a.Unlock()
	if before != nil {
		if err := before(ctx, request); err != nil {
			return nil, err
		}
	}
	a.Lock()
	defer a.Unlock()
	if len(a.jwtKeys) == 0 {
		return nil, status.Error(codes.Unimplemented, "no JWT-SVIDs")
	}
	answer := &nodev1.SignJWTResponse{}
	for _, r := range request.GetRequests() {
		result := a.signJWT(r)
		if a.BendJWT != nil {
			a.BendJWT(result)
		}
		answer.Results = append(answer.Results, result)
	}
	return answer, nil
}

func (a *Authority) signJWT(r *nodev1.JWTSigningRequest) *nodev1.JWTSigningResult {
	entry := a.entries[r.GetEntry()]
	if entry == nil || entry.GetSpiffeId() != r.GetSpiffeId() || a.Refuse != nil && a.Refuse(r.GetEntry()) {
		return &nodev1.JWTSigningResult{Status: uint32(codes.PermissionDenied), Code: string(fault.NotEntitled), Message: "no such entry"}
	}
	a.SignedJWTs[r.GetEntry()+" "+strings.Join(r.GetAudience(), ",")]++
	ttl := a.JWTTTL
	if entry.GetJwtTtl() != nil {
		ttl = entry.GetJwtTtl().AsDuration()
	}
	issued, expires := a.Now().Unix(), a.Now().Add(ttl).Unix()
	token := a.jwt(map[string]any{"sub": r.GetSpiffeId(), "aud": r.GetAudience(), "iat": issued, "exp": expires}, a.jwtKeys[0])
	return &nodev1.JWTSigningResult{Token: token, IssuedUnix: issued, ExpiresUnix: expires}
}
