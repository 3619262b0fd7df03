// Package svid reads SPIFFE IDs, X.509-SVIDs and JWT-SVIDs by the letter of the standards, into go-spiffe's types. It is the only
// parser of the tree: go-spiffe is laxer than the standards in places that an attacker can reach. Start with ParseID; Verify is
// what a peer's certificate has to pass, VerifyJWT what a token has to.
package svid

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// MaxIDLength is the longest SPIFFE ID that is issued. SPIFFE-ID section 2.3 makes it a floor for readers and a ceiling for
// issuers, so parsing takes longer ones.
const MaxIDLength = 2048

const (
	prefix               = "spiffe://"
	maxParsedLength      = 8 << 10 // a hard cap on what strangers may send
	maxTrustDomainLength = 255     // SPIFFE-ID section 2.3
)

// ParseID reads a SPIFFE ID. It changes nothing: what it takes, String gives back byte for byte, and what is not canonical
// (upper case in scheme or trust domain, escapes, dot segments, a trailing slash, an empty query or fragment) is refused.
func ParseID(s string) (spiffeid.ID, error) {
	if err := checkID(s); err != nil {
		return spiffeid.ID{}, err
	}
	return spiffeid.FromString(s)
}

// ParseTrustDomain reads the bare name of a trust domain. An ID is not taken for one.
func ParseTrustDomain(name string) (spiffeid.TrustDomain, error) {
	if err := checkTrustDomain(name); err != nil {
		return spiffeid.TrustDomain{}, err
	}
	return spiffeid.TrustDomainFromString(name)
}

// Segments gives the path's segments, empty and not nil for an ID without a path.
func Segments(id spiffeid.ID) []string {
	path := id.Path()
	if path == "" {
		return []string{}
	}
	return strings.Split(path[1:], "/")
}

// CheckServable refuses trust domains that are legal names and that Go's crypto/x509 cannot read in a certificate: those with an
// empty label, such as "a." and "a..b". A server must not be started for one, nor an entry taken.
func CheckServable(td spiffeid.TrustDomain) error {
	for label := range strings.SplitSeq(td.Name(), ".") {
		if label == "" {
			return fmt.Errorf("trust domain %q has an empty label: Go programs refuse certificates that carry it", td.Name())
		}
	}
	return nil
}

func checkID(s string) error {
	switch {
	case s == "":
		return errors.New("SPIFFE ID is empty")
	case len(s) > maxParsedLength:
		return fmt.Errorf("SPIFFE ID has %d bytes, more than %d", len(s), maxParsedLength)
	case !strings.HasPrefix(s, prefix):
		return fmt.Errorf("SPIFFE ID %s does not begin with %s", quote(s), prefix)
	}
	authority, path, hasPath := strings.Cut(s[len(prefix):], "/")
	if err := checkTrustDomain(authority); err != nil {
		return fmt.Errorf("SPIFFE ID %s: %w", quote(s), err)
	}
	if !hasPath {
		return nil
	}
	for segment := range strings.SplitSeq(path, "/") {
		if err := checkSegment(segment); err != nil {
			return fmt.Errorf("SPIFFE ID %s: %w", quote(s), err)
		}
	}
	return nil
}

func checkTrustDomain(name string) error {
	switch {
	case name == "":
		return errors.New("trust domain is empty")
	case len(name) > maxTrustDomainLength:
		return fmt.Errorf("trust domain has %d bytes, more than %d", len(name), maxTrustDomainLength)
	}
	for i := range len(name) {
		if !lowerOrMark(name[i]) {
			return fmt.Errorf("trust domain holds %s; only a-z, 0-9, dot, dash and underscore may stand there", first(name[i:]))
		}
	}
	return nil
}

func checkSegment(segment string) error {
	switch segment {
	case "":
		return errors.New("path has an empty segment or a trailing slash")
	case ".", "..":
		return errors.New("path has a dot segment")
	}
	for i := range len(segment) {
		if c := segment[i]; !lowerOrMark(c) && (c < 'A' || c > 'Z') {
			return fmt.Errorf("path holds %s; only letters, digits, dot, dash and underscore may stand there", first(segment[i:]))
		}
	}
	return nil
}

// lowerOrMark is a byte test: no folding, no Unicode, so that a KELVIN SIGN is never a k.
func lowerOrMark(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_'
}

// first quotes the character that s begins with, whole where it has more than one byte, and a byte that begins none as such.
func first(s string) string {
	r, size := utf8.DecodeRuneInString(s)
	if r == utf8.RuneError && size <= 1 {
		return fmt.Sprintf("the byte 0x%02x", s[0])
	}
	return strconv.QuoteRune(r)
}

// quote keeps errors readable and free of control characters, whatever a stranger sent.
func quote(s string) string {
	const most = 120
	if len(s) > most {
		return fmt.Sprintf("%q...", s[:most])
	}
	return fmt.Sprintf("%q", s)
}
