package registration

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/svid"
)

// Limits are what one authority serves.
type Limits struct {
	TrustDomain spiffeid.TrustDomain
	MaxTTL      time.Duration // half of the issuing certificate's, so that no leaf outlives its issuer; 0: none
	MaxJWTTTL   time.Duration // half of a JWT key's, likewise; 0: none
}

// The shortest lives, and the longest hint that SPIFFE Workload API section 8 lets an issuer give.
const (
	minTTL     = 5 * time.Second
	minJWTTTL  = time.Second
	maxHint    = 1024
	reserved   = "/writ/" // our own servers and agents
	idBeginner = "spiffe://"
)

// Check says whether an authority with these limits may serve the entry. The error is fault.Invalid and lists every reason.
func (e Entry) Check(limits Limits) error {
	problems := append(append(e.problems(), e.hopeless()...), e.foreign(limits.TrustDomain)...)
	if limits.MaxTTL > 0 && e.TTL > limits.MaxTTL {
		problems = append(problems, problem{"ttl", fmt.Sprintf("ttl %s is over %s, half of the ttl of the issuing certificate",
			brief(e.TTL), brief(limits.MaxTTL))})
	}
	if limits.MaxJWTTTL > 0 && e.JWTTTL > limits.MaxJWTTTL {
		problems = append(problems, problem{"jwt_ttl", fmt.Sprintf("jwt_ttl %s is over %s, half of the life of a JWT key",
			brief(e.JWTTTL), brief(limits.MaxJWTTTL))})
	}
	return refuse(e, problems)
}

// Warnings says what is legal and likely a mistake, one sentence each.
func (e Entry) Warnings(now time.Time) []string {
	var warnings []string
	if e.Expired(now) {
		warnings = append(warnings, fmt.Sprintf("entry %q expired at %s, so no node gets it and nothing matches it", e.Name, e.Expires.Format(time.RFC3339)))
	}
	file := len(e.Match) > 0
	for _, s := range e.Match {
		file = file && s.Method == "unix" && (s.Key == "path" || s.Key == "sha256")
	}
	if file {
		warnings = append(warnings, fmt.Sprintf("entry %q matches by the executable's file alone: every user who may start it gets "+
			"the identity; add unix:uid or unix:user", e.Name))
	}
	warn := func(s attest.Selector, ofNode bool) {
		if text := doubt(s, ofNode); text != "" {
			warnings = append(warnings, fmt.Sprintf("entry %q %s", e.Name, text))
		}
	}
	for _, s := range e.Where {
		warn(s, true)
	}
	for _, s := range e.Match {
		warn(s, false)
	}
	return warnings
}

// A problem is a reason to refuse an entry, and the key of the YAML form that it is about.
type problem struct{ key, what string }

// problems are what is wrong with the entry wherever it is served.
func (e Entry) problems() []problem {
	var found []problem
	add := func(wrong bool, key, format string, args ...any) {
		if wrong {
			found = append(found, problem{key, fmt.Sprintf(format, args...)})
		}
	}
	path := e.ID.Path()
	add(e.ID.IsZero(), "id", "neither id nor path is given")
	add(!e.ID.IsZero() && path == "", "id", "SPIFFE ID %s has no path; it would be the trust domain's own", e.ID)
	add(strings.HasPrefix(path, reserved), "id", "SPIFFE ID %s lies under %s, which is reserved", e.ID, reserved)
	add(len(e.ID.String()) > svid.MaxIDLength, "id", "SPIFFE ID has %d bytes, more than %d", len(e.ID.String()), svid.MaxIDLength)
	if err := svid.CheckServable(e.ID.TrustDomain()); !e.ID.IsZero() && err != nil {
		add(true, "id", "%v", err) // ruling R17
	}
	add(!printable(e.Name), "name", "name %q is empty, begins or ends with a blank, or holds what cannot be printed", e.Name)
	add(len(e.Name) > svid.MaxIDLength, "name", "name has %d bytes, more than %d", len(e.Name), svid.MaxIDLength)
	add(strings.HasPrefix(e.Name, idBeginner) && e.Name != e.ID.String(), "name", "name %s is another SPIFFE ID than the entry's", e.Name)
	add(len(e.Where) == 0 && !e.Any, "where", "no node selectors: name some under where, or say any: true")
	add(len(e.Where) > 0 && e.Any, "any", "where and any: true exclude each other")
	add(len(e.Match) == 0, "match", "no workload selectors: every process of the node would match")
	for _, s := range e.Where {
		add(!isText(s.String()), "where", "selector %q holds what cannot be printed", s.String())
	}
	for _, s := range e.Match {
		add(!isText(s.String()), "match", "selector %q holds what cannot be printed", s.String())
	}
	add(e.TTL != 0 && e.TTL < minTTL, "ttl", "ttl %s is under %s", brief(e.TTL), brief(minTTL))
	add(e.JWTTTL != 0 && e.JWTTTL < minJWTTTL, "jwt_ttl", "jwt_ttl %s is under %s", brief(e.JWTTTL), brief(minJWTTTL))
	add(len(e.Hint) > maxHint, "hint", "hint has %d bytes, more than %d", len(e.Hint), maxHint)
	add(e.Hint != "" && !printable(e.Hint), "hint", "hint %q begins or ends with a blank, or holds what cannot be printed", e.Hint)
	for i, name := range e.DNS {
		if err := checkDNS(name, e.DNS[:i]); err != nil {
			add(true, "dns", "%v", err)
		}
	}
	for _, td := range e.FederatesWith {
		add(td == e.ID.TrustDomain(), "federates_with", "trust domain %s is the entry's own", td)
	}
	return found
}

// foreign refuses what another authority has to issue: SPIFFE-ID section 4.1.2.
func (e Entry) foreign(td spiffeid.TrustDomain) []problem {
	if e.ID.IsZero() || e.ID.MemberOf(td) {
		return nil
	}
	return []problem{{"id", fmt.Sprintf("SPIFFE ID %s is not of trust domain %s", e.ID, td)}}
}

func refuse(e Entry, problems []problem) error {
	if len(problems) == 0 {
		return nil
	}
	refused := fault.New(fault.Invalid, nil, fmt.Sprintf("entry %q is refused", e.Name)).
		With(fault.BadEntry, "mend the entry, then `writ entry apply` it again")
	for _, p := range problems {
		refused.Because(p.what)
	}
	return refused
}

// isText keeps out control characters, line breaks and the marks that turn the direction of writing.
func isText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// printable is text that is there and that nothing hides around.
func printable(s string) bool { return s != "" && strings.TrimSpace(s) == s && isText(s) }

// brief is the duration without its zeros: 1h and not 1h0m0s.
func brief(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
