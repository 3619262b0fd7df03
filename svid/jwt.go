package svid

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json" // refuses a member that is there twice, at any depth
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// MaxJWTLength is the longest JWT-SVID that is read or issued, in bytes: what goes through the header limits of common servers.
const MaxJWTLength = 16 << 10

// JWTLeeway is how long after `exp` and before `nbf` a JWT-SVID is taken, for clocks that differ (JWT-SVID appendix A).
const JWTLeeway = 10 * time.Second

// mostAhead is how far `iat` may lie in the future. No standard forbids it, but a signer whose clock is so wrong errs in `exp` too;
// go-spiffe and SPIRE draw the line at the same place.
const mostAhead = time.Minute

// JWT is a JWT-SVID with its claims read. Whether anybody signed it, only VerifyJWT knows.
type JWT struct {
	ID        spiffeid.ID // `sub`
	Audience  []string    // `aud`, one at least
	Expires   time.Time   // `exp`, whole seconds
	NotBefore time.Time   // `nbf`; zero where absent
	IssuedAt  time.Time   // `iat`; zero where absent
	Issuer    string      // `iss`; empty where absent
	Claims    map[string]any
	KeyID     string // `kid`; empty where absent
	Algorithm string // `alg`, one of JWT-SVID section 2.1

	token   string
	payload []byte
}

// Token is the text that was read: a secret.
func (j *JWT) Token() string { return j.token }

// String says whose it is and keeps the token out of logs.
func (j *JWT) String() string { return "JWT-SVID of " + j.ID.String() }

// LogValue is String.
func (j *JWT) LogValue() slog.Value { return slog.StringValue(j.String()) }

// ParseJWT reads a JWT-SVID by every rule that needs neither keys nor clock. Nothing in it may be believed: VerifyJWT is what a
// token from outside has to pass.
func ParseJWT(token string) (*JWT, error) {
	j := &JWT{token: token}
	header, payload, err := split(token)
	if err == nil {
		err = j.readHeader(header)
	}
	if err == nil {
		j.payload, err = payload, j.readClaims(payload)
	}
	if err != nil {
		return nil, fmt.Errorf("no JWT-SVID: %w", err)
	}
	return j, nil
}

// VerifyJWT says for whom a token stands at that time: it passes ParseJWT, a key of its own trust domain's bundle signed it, it is
// neither expired nor from the future, and one of its audiences is among those given. These name whoever asks; there must be one.
// A token for a trust domain itself, without a path, stands for no workload.
func VerifyJWT(token string, bundles map[spiffeid.TrustDomain]JWTBundle, audience []string, now time.Time) (*JWT, error) {
	if len(audience) == 0 || slices.Contains(audience, "") { // JWT-SVID section 3.2: no list means nobody, never anybody
		return nil, errors.New("verify JWT-SVID: no audience to expect was given")
	}
	j, err := ParseJWT(token)
	if err != nil {
		return nil, err
	}
	bundle, there := bundles[j.ID.TrustDomain()]
	switch {
	case !there || bundle.TrustDomain != j.ID.TrustDomain():
		err = fmt.Errorf("trust domain %q is not known", j.ID.TrustDomain().Name())
	case j.ID.Path() == "":
		err = errors.New("its SPIFFE ID has no path")
	case !slices.ContainsFunc(j.Audience, func(a string) bool { return slices.Contains(audience, a) }):
		err = errors.New("it is for another audience")
	default:
		if err = j.checkTimes(now); err == nil {
			err = j.checkSignature(bundle)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("verify JWT-SVID of %s: %w", quote(j.ID.String()), err)
	}
	return j, nil
}

func (j *JWT) checkTimes(now time.Time) error {
	switch {
	case now.Add(-JWTLeeway).After(j.Expires):
		return fmt.Errorf("it expired at %s", j.Expires.Format(time.RFC3339))
	case !j.NotBefore.IsZero() && now.Add(JWTLeeway).Before(j.NotBefore):
		return fmt.Errorf("it is not valid before %s", j.NotBefore.Format(time.RFC3339))
	case !j.IssuedAt.IsZero() && now.Add(mostAhead).Before(j.IssuedAt):
		return errors.New("it was issued in the future")
	}
	return nil
}

// checkSignature takes the key from the bundle by its kid, and from nowhere else: `jwk`, `jku`, `x5u` and `x5c` of a header name
// what the token's maker likes.
func (j *JWT) checkSignature(bundle JWTBundle) error {
	if len(bundle.Keys) == 0 { // JWT-SVID section 6.2
		return fmt.Errorf("trust domain %q publishes no keys for JWT-SVIDs", bundle.TrustDomain.Name())
	}
	if j.KeyID == "" {
		return errors.New("it names no key")
	}
	at := slices.IndexFunc(bundle.Keys, func(k JWTKey) bool { return k.ID == j.KeyID })
	if at < 0 {
		return fmt.Errorf("key %s is not in the bundle of trust domain %q", quote(j.KeyID), bundle.TrustDomain.Name())
	}
	key := bundle.Keys[at]
	if !slices.Contains(key.algorithms(), j.Algorithm) {
		return fmt.Errorf("algorithm %s does not fit key %s", j.Algorithm, quote(j.KeyID))
	}
	signed, err := jose.ParseSignedCompact(j.token, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(j.Algorithm)})
	if err != nil {
		return errors.New("its signature cannot be read")
	}
	payload, err := signed.Verify(key.Public) // another than ours where the header has b64, RFC 7797
	if err != nil || !bytes.Equal(payload, j.payload) {
		return errors.New("its signature does not verify")
	}
	return nil
}

// split takes a compact serialization apart, RFC 7515 section 7.1. encoding/base64 passes over line breaks; nothing here does.
func split(token string) (header, payload []byte, err error) {
	if len(token) > MaxJWTLength {
		return nil, nil, fmt.Errorf("it has %d bytes, more than %d", len(token), MaxJWTLength)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, nil, errors.New("it has not the three parts of a signed token")
	}
	var decoded [3][]byte
	for i, part := range parts {
		if strings.ContainsAny(part, "\r\n") {
			return nil, nil, errors.New("it has a line break")
		}
		if decoded[i], err = base64.RawURLEncoding.Strict().DecodeString(part); err != nil || len(part) == 0 {
			return nil, nil, errors.New("a part of it is not base64url without padding")
		}
	}
	return decoded[0], decoded[1], nil
}

// members reads a JSON object. A name that is there twice, at any depth, would mean one thing to us and another to others.
func members(text []byte) (map[string]any, error) {
	if !utf8.Valid(text) {
		return nil, errors.New("is not UTF-8")
	}
	var m map[string]any
	if err := json.Unmarshal(text, &m); err != nil || m == nil {
		return nil, errors.New("is no JSON object, or says a thing twice")
	}
	return m, nil
}

// algorithmsTaken are those of JWT-SVID section 2.1.
var algorithmsTaken = []string{"RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512"}

func (j *JWT) readHeader(text []byte) error {
	header, err := members(text)
	if err != nil {
		return fmt.Errorf("its header %w", err)
	}
	j.Algorithm, _ = header["alg"].(string)
	if !slices.Contains(algorithmsTaken, j.Algorithm) { // section 4: before anything else
		return fmt.Errorf("its algorithm %s is not one that JWT-SVIDs have", quote(fmt.Sprint(header["alg"])))
	}
	if _, there := header["crit"]; there { // RFC 7515 section 4.1.11: we know no extension
		return errors.New("its header has crit")
	}
	if typ, there := header["typ"]; there && typ != "JWT" && typ != "JOSE" { // section 2.3
		return errors.New("its type is neither JWT nor JOSE")
	}
	if kid, there := header["kid"]; there {
		var text bool
		if j.KeyID, text = kid.(string); !text {
			return errors.New("its key id is not a text")
		}
	}
	return nil
}

func (j *JWT) readClaims(text []byte) (err error) {
	if j.Claims, err = members(text); err != nil {
		return fmt.Errorf("its payload %w", err)
	}
	subject, _ := j.Claims["sub"].(string)
	if j.ID, err = ParseID(subject); err != nil { // section 3.1
		return fmt.Errorf("its subject: %w", err)
	}
	if j.Audience, err = audienceOf(j.Claims["aud"]); err != nil {
		return err
	}
	if iss, there := j.Claims["iss"]; there {
		var text bool
		if j.Issuer, text = iss.(string); !text {
			return errors.New("its iss is not a text")
		}
	}
	for name, at := range map[string]*time.Time{"exp": &j.Expires, "nbf": &j.NotBefore, "iat": &j.IssuedAt} {
		if claim, there := j.Claims[name]; there {
			if *at, err = dateOf(claim); err != nil {
				return fmt.Errorf("its %s %w", name, err)
			}
		}
	}
	if j.Expires.IsZero() { // section 3.3
		return errors.New("it has no exp")
	}
	return nil
}

// audienceOf reads a text or a list of texts, RFC 7519 section 4.1.3.
func audienceOf(claim any) ([]string, error) {
	switch claim := claim.(type) {
	case string:
		return []string{claim}, nil
	case []any:
		audience := make([]string, 0, len(claim))
		for _, one := range claim {
			text, ok := one.(string)
			if !ok {
				return nil, errors.New("its aud is not made of texts")
			}
			audience = append(audience, text)
		}
		if len(audience) > 0 { // JWT-SVID section 3.2
			return audience, nil
		}
	}
	return nil, errors.New("it has no aud")
}

// lastDate is the end of year 9999: what lies behind it is no date.
const lastDate = 253402300799

// dateOf reads a NumericDate, RFC 7519 section 2. Fractions are cut off.
func dateOf(claim any) (time.Time, error) {
	seconds, ok := claim.(float64)
	if !ok || seconds != seconds || seconds < 0 || seconds > lastDate {
		return time.Time{}, errors.New("is no date")
	}
	return time.Unix(int64(seconds), 0).UTC(), nil
}
