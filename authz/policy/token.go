package policy

import (
	"crypto/sha256"
	"strconv"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/svid"
)

// verifiedToken is what verifying a JWT-SVID gave; the nil value for one that proves nothing.
type verifiedToken struct {
	value ast.Value
	until time.Time
}

// bearer gives the token of an Authorization header (RFC 6750 section 2.1; the scheme in any case, RFC 9110 section 11.1). Several
// headers are one value with commas, which no JWT has.
func bearer(authorization string) string {
	scheme, token, found := strings.Cut(authorization, " ")
	if !found || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.Trim(token, " ")
}

// token is input.token: for whom the JWT-SVID that came with the request stands, kept apart from who sent it, since anybody may who
// holds it. nil where there is none that is valid now for one of the audiences.
func (i *identities) token(authorization string, audience []string) ast.Value {
	token := bearer(authorization)
	if token == "" || i.known == nil || len(token) > svid.MaxJWTLength {
		return nil
	}
	key := sha256.Sum256([]byte(strings.Join(audience, "\n") + "\n\n" + token))
	now := i.now()
	if v, ok := i.tokens.GetIfPresent(key); ok && now.Before(v.until) {
		return v.value
	}
	v := verifiedToken{until: now.Add(rememberFor)}
	if j, err := i.known.VerifyToken(token, audience); err == nil {
		v.value = tokenObject(j)
		if end := j.Expires.Add(svid.JWTLeeway); end.Before(v.until) {
			v.until = end
		}
	}
	i.tokens.Set(key, v)
	return v.value
}

func tokenObject(j *svid.JWT) ast.Value {
	return ast.NewObject(stringPair("spiffe_id", j.ID.String()), stringPair("trust_domain", j.ID.TrustDomain().Name()),
		[2]*ast.Term{ast.StringTerm("path"), ast.NewTerm(stringArray(svid.Segments(j.ID)))},
		[2]*ast.Term{ast.StringTerm("audience"), ast.NewTerm(stringArray(j.Audience))},
		[2]*ast.Term{ast.StringTerm("expires"), ast.NewTerm(ast.Number(strconv.FormatInt(j.Expires.Unix(), 10)))})
}
