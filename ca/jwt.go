package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/writ-dev/writ/ca/keystore"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/svid"
)

// ProfileJWT is how records and metrics call what a JWTAuthority signs.
const ProfileJWT = "jwt"

// JWTConfig is what a JWTAuthority is made of. TrustDomain, Server, Keys and Ledger are required.
type JWTConfig struct {
	TrustDomain spiffeid.TrustDomain
	Server      string         // this server's name, as in /writ/server/NAME
	Keys        keystore.Store // its kind of key says how tokens are signed: ES256 or RS256
	Ledger      Ledger
	Issuer      string           // `iss` of every token: where OIDC finds the keys; no `iss` where empty
	Now         func() time.Time // time.Now where nil
	Log         *slog.Logger     // discards where nil
	KeyTTL      time.Duration    // of a key; 24h where zero. A new one is made at half of it, and no token outlives its key
	Hint        time.Duration    // the bundle's refresh hint; 5m where zero
	Settle      time.Duration    // how long caches elsewhere hold the set of keys: a new one signs no sooner while another does
}

// JWTAuthority signs JWT-SVIDs for one trust domain, on one server. Its keys stand in no chain: whoever verifies a token must hold
// the very key, so one signs only once the agents have it. Methods may be called from several goroutines.
type JWTAuthority struct {
	config JWTConfig
	wake   chan struct{} // capacity 1: Run has something to look at

	mu      sync.RWMutex        // guards the rest; never held over a signature or the ledger
	active  *jwtSigner          // signs; nil while none may
	next    *jwtSigner          // prepared; nil while none is
	former  []jwtFormer         // replaced a moment ago, oldest first
	known   map[string]jwtKnown // by ID: the jwt authorities of all servers
	written uint64              // how often this process has added to known
	acked   string              // the ID of a key that every connected agent holds
}

// jwtSigner is a key that signs or will.
type jwtSigner struct {
	id, keyName string
	key         crypto.Signer // prints nothing of the private key: never log a jwtSigner
	algorithm   jwtAlgorithm
	header      string    // as it stands in the token, with the dot behind it
	since       time.Time // in the bundle
	notAfter    time.Time
	last        atomic.Int64 // the latest end of its tokens, Unix seconds
}

// String keeps the key out of logs.
func (s *jwtSigner) String() string { return "JWT authority " + s.id }

// NewJWT loads this server's keys from the ledger and prepares one where none may sign. The first key of a trust domain signs at
// once, since no agent can hold a bundle without it; any other waits for Acknowledge or for time to pass.
func NewJWT(ctx context.Context, c JWTConfig) (*JWTAuthority, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.KeyTTL == 0 {
		c.KeyTTL = 24 * time.Hour
	}
	if c.Hint == 0 {
		c.Hint = 5 * time.Minute
	}
	if c.Keys == nil || c.Ledger == nil || c.TrustDomain.IsZero() || c.Server == "" {
		return nil, errors.New("set up JWT authority: no keystore, ledger, trust domain or server name")
	}
	a := &JWTAuthority{config: c, wake: make(chan struct{}, 1)}
	if err := a.Reload(ctx); err != nil {
		return nil, err
	}
	if err := a.find(ctx); err != nil {
		return nil, fmt.Errorf("set up JWT key: %w", err)
	}
	return a, nil
}

// JWTRequest is what is wanted of a JWTAuthority.
type JWTRequest struct {
	ID       spiffeid.ID
	Audience []string      // 1 to 32, none empty
	TTL      time.Duration // from now; cut to what the key has left
	NotAfter time.Time     // a further bound on the end; none where zero
}

// JWTDraft is an exact token that waits for its signature. The caller records it and has its JWTAuthority issue it, once.
type JWTDraft struct {
	authority *JWTAuthority
	by        *jwtSigner
	id        spiffeid.ID
	audience  []string
	issued    time.Time
	expires   time.Time
	serial    []byte
	signed    string // header and claims, as they stand in the token
	redeemed  atomic.Bool
}

// Serial is the record's own number, 32 lower-case hex digits. The token does not hold it: two tokens of one second may be equal.
func (d *JWTDraft) Serial() string { return fmt.Sprintf("%x", d.serial) }

// ID is whose token it will be.
func (d *JWTDraft) ID() spiffeid.ID { return d.id }

// Audience is for whom.
func (d *JWTDraft) Audience() []string { return d.audience }

// IssuedAt is `iat`.
func (d *JWTDraft) IssuedAt() time.Time { return d.issued }

// Expires is `exp`, which may come before what was asked for.
func (d *JWTDraft) Expires() time.Time { return d.expires }

// AuthorityID is the `kid` of the key that will sign it.
func (d *JWTDraft) AuthorityID() string { return d.by.id }

// Digest is the SHA-256 of the signing input, so that whoever holds a token finds its record.
func (d *JWTDraft) Digest() [32]byte { return sha256.Sum256([]byte(d.signed)) }

// jwtClaims are all that a token says; the order is the alphabet's.
type jwtClaims struct {
	Audience []string `json:"aud"` // a list even of one: RFC 7519 has both, everybody reads this
	Expires  int64    `json:"exp"`
	Issued   int64    `json:"iat"`
	Issuer   string   `json:"iss,omitempty"`
	Subject  string   `json:"sub"`
}

// Draft prepares the token that a JWTRequest asks for. It touches no key. fault.Unavailable: no key may sign yet, or any more.
func (a *JWTAuthority) Draft(r JWTRequest) (*JWTDraft, error) {
	now := a.config.Now()
	by := a.current()
	if by == nil || !by.notAfter.After(now) {
		return nil, fault.New(fault.Unavailable, nil, "no JWT key signs yet; try again").
			Because("a new key signs once the agents hold it").With(fault.AuthorityMissing, "")
	}
	if err := WorkloadSVID().admit(a.config.TrustDomain, r.ID); err != nil {
		return nil, refuse(err, "the SPIFFE ID cannot be issued")
	}
	audience, err := checkAudience(r.Audience)
	if err != nil {
		return nil, refuse(err, "the audience cannot be issued")
	}
	d := &JWTDraft{authority: a, by: by, id: r.ID, audience: audience, issued: now.Truncate(time.Second).UTC(), serial: newSerial(),
		expires: earlier(r.NotAfter, earlier(by.notAfter, now.Add(r.TTL))).Truncate(time.Second).UTC()}
	if r.TTL <= 0 || !d.expires.After(now) {
		return nil, refuse(errors.New("it would end before it begins"), "the lifetime cannot be issued")
	}
	claims, err := json.Marshal(jwtClaims{audience, d.expires.Unix(), d.issued.Unix(), a.config.Issuer, r.ID.String()})
	if err != nil {
		return nil, fmt.Errorf("encode claims of %s: %w", r.ID, err)
	}
	d.signed = by.header + base64.RawURLEncoding.EncodeToString(claims)
	if len(d.signed)+1+base64.RawURLEncoding.EncodedLen(by.algorithm.size) > svid.MaxJWTLength {
		return nil, refuse(fmt.Errorf("the token would be longer than %d bytes", svid.MaxJWTLength), "the audience cannot be issued")
	}
	by.note(d.expires)
	return d, nil
}

// note keeps the latest end of a key's tokens.
func (s *jwtSigner) note(end time.Time) {
	for {
		last := s.last.Load()
		if last >= end.Unix() || s.last.CompareAndSwap(last, end.Unix()) {
			return
		}
	}
}

// The bounds of an audience. More than 32 values are refused by clients in the field.
const mostAudiences, maxAudience = 32, 1024

// checkAudience drops what comes twice.
func checkAudience(all []string) ([]string, error) {
	if len(all) == 0 || len(all) > mostAudiences { // JWT-SVID section 3.2: one at least
		return nil, fmt.Errorf("there must be 1 to %d values", mostAudiences)
	}
	kept := make([]string, 0, len(all))
	for _, one := range all {
		if one == "" || len(one) > maxAudience || !utf8.ValidString(one) || slices.ContainsFunc([]rune(one), unicode.IsControl) {
			return nil, fmt.Errorf("a value must be text of 1 to %d bytes", maxAudience)
		}
		if !slices.Contains(kept, one) {
			kept = append(kept, one)
		}
	}
	return kept, nil
}

// Issue signs a JWTDraft and gives the token. A draft is issued once, and by the authority that drafted it.
func (a *JWTAuthority) Issue(d *JWTDraft) (string, error) {
	switch {
	case d == nil || d.authority != a:
		return "", fault.New(fault.Invalid, nil, "the draft is another authority's")
	case !d.redeemed.CompareAndSwap(false, true):
		return "", fault.New(fault.Stale, nil, "the draft is issued already")
	case !d.expires.After(a.config.Now()):
		return "", fault.New(fault.Stale, nil, "the draft has expired")
	}
	digest := d.Digest()
	signature, err := d.by.key.Sign(rand.Reader, digest[:], crypto.SHA256) // of an RSA key: PKCS #1 v1.5, as RS256 is
	if err != nil {
		return "", fault.New(fault.Unavailable, err, "the JWT key does not sign").With(fault.AuthorityMissing, "")
	}
	if d.by.algorithm == es256 {
		if signature, err = fixedWidth(signature); err != nil {
			return "", fmt.Errorf("sign with JWT authority %s: %w", d.by.id, err)
		}
	}
	return d.signed + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

// jwtAlgorithm is how a kind of key signs tokens.
type jwtAlgorithm struct {
	name string // `alg`
	size int    // of a signature, in bytes
}

// ES256 unless somebody's verifier knows RSA alone: an RSA signature costs the server some twenty-five times as much.
var es256, rs256 = jwtAlgorithm{"ES256", 2 * coordinate}, jwtAlgorithm{"RS256", 256}

// jwtAlgorithmOf says which keys sign tokens.
func jwtAlgorithmOf(public crypto.PublicKey) (jwtAlgorithm, error) {
	kind, err := kindOf(public)
	if key, ok := public.(*rsa.PublicKey); ok && err == nil && key.Size() == rs256.size {
		return rs256, nil
	}
	if kind == "P-256" {
		return es256, nil
	}
	return jwtAlgorithm{}, errors.New("JWT keys are P-256, or RSA of 2048 bits")
}

const coordinate = 32 // bytes of a P-256 coordinate

// fixedWidth turns an ECDSA signature into the form that JWS has, RFC 7518 section 3.4.
func fixedWidth(der []byte) ([]byte, error) {
	input, inner := cryptobyte.String(der), cryptobyte.String(nil)
	r, s := new(big.Int), new(big.Int)
	if !input.ReadASN1(&inner, casn1.SEQUENCE) || !inner.ReadASN1Integer(r) || !inner.ReadASN1Integer(s) ||
		r.Sign() <= 0 || s.Sign() <= 0 || max(r.BitLen(), s.BitLen()) > 8*coordinate {
		return nil, errors.New("the signature cannot be read")
	}
	out := make([]byte, 2*coordinate)
	r.FillBytes(out[:coordinate])
	s.FillBytes(out[coordinate:])
	return out, nil
}
