package policy_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/authz/policy"
	"github.com/writ-dev/writ/svid"
)

// signer is a trust domain's JWT authority.
type signer struct {
	t   testing.TB
	key *ecdsa.PrivateKey
}

func newSigner(t testing.TB) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{t, key}
}

func (s signer) bundle() svid.JWTBundle {
	return svid.JWTBundle{TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Keys: []svid.JWTKey{{ID: "k", Public: s.key.Public()}}}
}

func (s signer) sign(claims map[string]any) string {
	s.t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		s.t.Fatal(err)
	}
	j, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: s.key, KeyID: "k"}}, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	signed, err := j.Sign(payload)
	if err != nil {
		s.t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		s.t.Fatal(err)
	}
	return token
}

// echoToken shows policies' input.token and input.source.
var echoToken = map[string]string{"policy.yaml": "decision: envoy/authz/answer\ntoken_audience: [orders, billing]\n", "echo.rego": `package envoy.authz
answer := {"allowed": true, "dynamic_metadata": {"token": object.get(input, "token", null), "source": object.get(input, ["source", "spiffe_id"], null)}}
token_is_read if input.token
`}

// A JWT-SVID that came with a request is validated as one, and its subject kept apart from who sent it.
func TestEXT_05_JWT_24_JWT_25_TokenOfARequest(t *testing.T) {
	s, stranger := newSigner(t), newSigner(t)
	now := time.Now()
	claims := func(changes ...any) map[string]any {
		c := map[string]any{"sub": "spiffe://example.org/batch", "aud": []string{"orders"}, "exp": now.Add(time.Minute).Unix(), "iat": now.Unix()}
		for i := 0; i < len(changes); i += 2 {
			c[changes[i].(string)] = changes[i+1]
		}
		return c
	}
	good := s.sign(claims())
	batch := map[string]any{"spiffe_id": "spiffe://example.org/batch", "trust_domain": "example.org", "path": []any{"batch"},
		"audience": []any{"orders"}, "expires": float64(now.Add(time.Minute).Unix())}
	n := &node{keys: s.bundle(), now: time.Now}
	set, err := policy.LoadFS(t.Context(), mapFS(echoToken), policy.Config{Identities: n})
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name, authorization string
		want                any
	}{
		{"a token", "Bearer " + good, batch},
		{"JWT-24: the scheme in another case", "bEaReR " + good, batch},
		{"JWT-24: spaces around it", "Bearer   " + good + " ", batch},
		{"no header", "", nil},
		{"JWT-24: another scheme", "Basic " + good, nil},
		{"JWT-24: no scheme", good, nil},
		{"JWT-24: two of them", "Bearer " + good + ",Bearer " + good, nil},
		{"JWT-24: two of them, with a space", "Bearer " + good + ", Bearer " + good, nil},
		{"for another audience", "Bearer " + s.sign(claims("aud", []string{"db"})), nil},
		{"for several", "Bearer " + s.sign(claims("aud", []string{"billing", "db"})), map[string]any{"spiffe_id": "spiffe://example.org/batch",
			"trust_domain": "example.org", "path": []any{"batch"}, "audience": []any{"billing", "db"}, "expires": batch["expires"]}},
		{"that has ended", "Bearer " + s.sign(claims("exp", now.Add(-time.Minute).Unix())), nil},
		{"of another trust domain", "Bearer " + s.sign(claims("sub", "spiffe://partner.org/batch")), nil},
		{"signed by a stranger", "Bearer " + stranger.sign(claims()), nil},
		{"that is none", "Bearer x.y.z", nil},
		{"that is too long", "Bearer " + strings.Repeat("x", 1<<20), nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := message(t, fullRequest)
			r.Attributes.Source.Principal, r.Attributes.Source.Certificate = web, ""
			r.Attributes.Request.Http.Headers = map[string]string{"authorization": row.authorization}
			got := metadata(t, set.Decide(t.Context(), wire(t, r)))
			if diff := cmp.Diff(map[string]any{"token": row.want, "source": web}, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("JWT-25: raw headers of a gRPC call", func(t *testing.T) {
		r := message(t, fullRequest)
		r.Attributes.Request.Http.Headers = nil
		lines := []*corev3.HeaderValue{{Key: "content-type", Value: "application/grpc"}, {Key: "authorization", RawValue: []byte("Bearer " + good)}}
		r.Attributes.Request.Http.HeaderMap = &corev3.HeaderMap{Headers: lines}
		if diff := cmp.Diff(any(batch), metadata(t, set.Decide(t.Context(), wire(t, r)))["token"]); diff != "" {
			t.Error(diff)
		}
		r.Attributes.Request.Http.HeaderMap.Headers = append(lines, lines[1])
		if got := metadata(t, set.Decide(t.Context(), wire(t, r)))["token"]; got != nil {
			t.Errorf("two of them are %v", got)
		}
	})
}

// Verifying costs more than all the rest of a decision, so what verified is remembered, for a moment: a key that is withdrawn is.
func TestVerifiedTokensAreRememberedForAMoment(t *testing.T) {
	s := newSigner(t)
	var passed atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(passed.Load())) }
	n := &node{keys: s.bundle(), now: now}
	set, err := policy.LoadFS(t.Context(), mapFS(map[string]string{"policy.yaml": "token_audience: [orders]\n",
		"a.rego": "package envoy.authz\nallow if input.token.path[0] == \"batch\"\n"}), policy.Config{Identities: n, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	r := message(t, fullRequest)
	r.Attributes.Request.Http.Headers = map[string]string{"authorization": "Bearer " + s.sign(map[string]any{"sub": "spiffe://example.org/batch",
		"aud": "orders", "exp": now().Add(time.Minute).Unix()})}
	bytes := wire(t, r)
	allowed := func(want string) {
		t.Helper()
		if d := set.Decide(t.Context(), bytes); d.Outcome.String() != want {
			t.Errorf("%s (%s), want %s", d.Outcome, d.Reason, want)
		}
	}
	for range 10 {
		allowed("allowed")
	}
	if got := n.asked.Load(); got > 2 {
		t.Errorf("verified %d times", got)
	}
	n.keys.Keys = nil
	passed.Store(int64(2 * time.Second))
	allowed("denied")
	n.keys = s.bundle()
	passed.Store(int64(65 * time.Second)) // within the leeway
	allowed("allowed")
	passed.Store(int64(71 * time.Second))
	allowed("denied")
}

func TestTokensNeedAnAudience(t *testing.T) {
	for name, row := range map[string]struct{ manifest, want string }{
		"none":         {"", "input.token is read and policy.yaml has no token_audience"},
		"an empty one": {"token_audience: [\"\"]\n", "token_audience: an audience is empty"},
	} {
		_, err := policy.LoadFS(t.Context(), mapFS(map[string]string{"policy.yaml": row.manifest, "a.rego": "package envoy.authz\nallow if input.token.spiffe_id\n"}),
			policy.Config{})
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
