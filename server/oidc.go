package server

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/writ-dev/writ/svid"
)

// OIDC says under which URL others find the keys of our JWT-SVIDs.
type OIDC struct {
	Issuer string // passes CheckIssuer; the same as the JWT authority's
	// Certificate is that of the listener. Nil: this server's own SVID, which then names the issuer's host: for those who hold the
	// trust domain's bundle.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

// CheckIssuer gives the host name of an issuer, empty where it is an IP address. An issuer is an https URL without query, fragment,
// user and trailing slash: what is after the slash of two URLs that differ in it alone, clients do not agree about.
func CheckIssuer(issuer string) (host string, err error) {
	u, err := url.Parse(issuer)
	switch {
	case err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Opaque != "":
		return "", errors.New("is no https URL")
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.HasSuffix(issuer, "#"):
		return "", errors.New("has a user, a query or a fragment")
	case strings.HasSuffix(issuer, "/") || u.String() != issuer || u.Path != "" && u.JoinPath().String() != issuer:
		return "", errors.New("ends with a slash, or is not in the shortest form")
	}
	if _, err := netip.ParseAddr(u.Hostname()); err == nil {
		return "", nil
	}
	return u.Hostname(), nil
}

// discovery is what OpenID Connect Discovery 1.0 section 3 has and relying parties of workload identities read. There is no
// authorization endpoint: tokens come from the Workload API.
type discovery struct {
	Issuer     string   `json:"issuer"`
	KeysURL    string   `json:"jwks_uri"`
	Responses  []string `json:"response_types_supported"`
	Subjects   []string `json:"subject_types_supported"`
	Algorithms []string `json:"id_token_signing_alg_values_supported"`
	Claims     []string `json:"claims_supported"`
}

// keysPath is where the keys are below the issuer.
const keysPath = "/keys"

// OIDCServer serves the discovery document and the keys over TLS; nil where the configuration has no issuer. The caller serves it
// by ServeTLS without files, and shuts it down.
func (s *Server) OIDCServer() *http.Server {
	if s.config.OIDC == nil {
		return nil
	}
	certificate := s.config.OIDC.Certificate
	if certificate == nil {
		certificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.identity.current(), nil }
	}
	return &http.Server{Handler: s.oidcHandler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second,
		IdleTimeout: 15 * time.Second, MaxHeaderBytes: 16 << 10, ErrorLog: log.New(io.Discard, "", 0), // strangers' handshakes
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: certificate}} // 1.2: not only our own parts read it
}

func (s *Server) oidcHandler() http.Handler {
	base := ""
	if u, err := url.Parse(s.config.OIDC.Issuer); err == nil {
		base = u.EscapedPath()
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+base+"/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) { s.answerJSON(w, r, s.oidcDocument()) })
	mux.HandleFunc("GET "+base+keysPath, func(w http.ResponseWriter, r *http.Request) { s.answerJSON(w, r, s.oidcKeys()) })
	return mux
}

// oidcKeys are the same keys as in the bundle. Here `use` is sig, since this is what OIDC code looks for.
func (s *Server) oidcKeys() jose.JSONWebKeySet {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, k := range s.config.JWT.Bundle().Keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{KeyID: k.ID, Key: k.Public, Use: "sig", Algorithm: algorithmOf(k)})
	}
	return set
}

// algorithmOf says how a key of ours signs.
func algorithmOf(k svid.JWTKey) string {
	if _, ok := k.Public.(*rsa.PublicKey); ok {
		return string(jose.RS256)
	}
	return string(jose.ES256)
}

// oidcDocument names the algorithms of the keys that there are.
func (s *Server) oidcDocument() discovery {
	issuer := s.config.OIDC.Issuer
	d := discovery{Issuer: issuer, KeysURL: issuer + keysPath, Responses: []string{"id_token"}, Subjects: []string{"public"},
		Algorithms: []string{}, Claims: []string{"iss", "sub", "aud", "exp", "iat"}}
	for _, k := range s.config.JWT.Bundle().Keys {
		if name := algorithmOf(k); !slices.Contains(d.Algorithms, name) {
			d.Algorithms = append(d.Algorithms, name)
		}
	}
	slices.Sort(d.Algorithms)
	return d
}

// answerJSON lets others keep the answer as long as the authority waits before it signs with a new key.
func (s *Server) answerJSON(w http.ResponseWriter, r *http.Request, content any) {
	text, err := json.Marshal(content)
	if err != nil {
		s.config.Log.ErrorContext(r.Context(), "OIDC document not written", "err", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	sum := sha256.Sum256(text)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", fmt.Sprintf("public, max-age=%d", int(RefreshHint.Seconds())))
	w.Header().Set("ETag", `"`+hex.EncodeToString(sum[:16])+`"`)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(text)) // HEAD, If-None-Match
}
