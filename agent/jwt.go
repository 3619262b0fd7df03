package agent

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/svid"
)

// jwtPatience is how long a workload waits for a JWT-SVID that is not held: a server that restarts answers within it, and one that
// is away is said to be before a caller gives up by itself.
const jwtPatience = 1500 * time.Millisecond

// JWTRequest is what a workload asks for.
type JWTRequest struct {
	Audience []string    // 1 to 32 values, each of 1 to 1024 bytes and without control characters
	ID       spiffeid.ID // zero: every one that the workload may hold
}

// JWTSVID is one JWT-SVID, with its audience in the order in which it was first asked for.
type JWTSVID struct {
	Entry   string // the entry's name
	ID      spiffeid.ID
	Hint    string
	Token   Token
	Expires time.Time
}

// Token is a JWT-SVID as it is sent. It does not print.
type Token string

// String hides the token.
func (Token) String() string { return "[token]" }

// GoString hides the token.
func (Token) GoString() string { return "[token]" }

// MarshalText hides the token.
func (Token) MarshalText() ([]byte, error) { return []byte("[token]"), nil }

// LogValue hides the token.
func (Token) LogValue() slog.Value { return slog.StringValue("[token]") }

// FetchJWTs gives the process a JWT-SVID for each entry that it matches, in the order of View.Identities and with the same hints;
// none where it matches no entry. What is held is given at once, while it has more than a tenth
// of its life before it (five seconds, where that is less); the server is waited for only where nothing is. Then an entry whose
// JWT-SVID does not come within 1.5 s is left out, but never the first, which is the one that workloads take: the error is
// fault.Unavailable. fault.Invalid: such an audience is issued to nobody. fault.Denied: it may hold others than the ID that it asks for.
func (a *Agent) FetchJWTs(ctx context.Context, p attest.Peer, r JWTRequest) ([]JWTSVID, error) {
	svids, waited, err := a.fetchJWTs(ctx, p, r)
	switch {
	case err != nil:
		a.tally.count(a.tally.jwtFetches, err)
	case len(svids) == 0:
		a.tally.jwtFetches.WithLabelValues(fault.Denied.String()).Inc()
	case waited:
		a.tally.jwtFetches.WithLabelValues("signed").Inc()
	default:
		a.tally.jwtFetches.WithLabelValues("held").Inc()
	}
	return svids, err
}

func (a *Agent) fetchJWTs(ctx context.Context, p attest.Peer, r JWTRequest) (svids []JWTSVID, waited bool, err error) {
	key, err := audienceKey(r.Audience)
	if err != nil {
		return nil, false, err
	}
	patience := time.NewTimer(jwtPatience)
	defer patience.Stop()
	if err := a.awaitSync(ctx, jwtPatience); err != nil {
		return nil, false, err
	}
	found, err := a.selectorsOf(ctx, p)
	if err != nil {
		return nil, false, err
	}
	q := jwtQuestion{JWTRequest: r, selectors: found.selectors, uid: p.Process().UID, key: key}
	for late := false; ; waited = true {
		answer := a.cache.answerJWT(q, a.now())
		if answer.entries == 0 {
			a.sayUnmatched(ctx, Sighting{Process: p.Process(), Selectors: found.selectors, At: a.now()})
			return nil, false, nil
		}
		if answer.asked {
			wake(a.askJWTs)
		}
		if answer.wait == nil || late {
			a.remember(p, found)
			svids, err = a.handOut(p, answer)
			return svids, waited, err
		}
		select {
		case <-answer.wait:
		case <-patience.C:
			late = true
		case <-ctx.Done():
			return nil, false, ctx.Err()
		case <-a.stopped:
			return nil, false, stopping()
		}
	}
}

// handOut gives what there is to a process that is still what was attested.
func (a *Agent) handOut(p attest.Peer, answer jwtAnswer) ([]JWTSVID, error) {
	if err := p.Verify(); err != nil {
		return nil, gone(err)
	}
	if len(answer.svids) == 0 {
		return nil, othersOnly(answer.others)
	}
	if answer.svids[0].Token == "" {
		return nil, a.unsigned(answer.why)
	}
	return slices.DeleteFunc(answer.svids, func(s JWTSVID) bool { return s.Token == "" }), nil
}

// The bounds of what a denial names: it travels in a header.
const mostNamed, mostNamedBytes = 10, 1 << 10

// othersOnly denies an ID that the process may not hold. It learns which it may, as it would by asking for none in particular, and
// nothing of what others may. The first words are looked for by rust-spiffe (clients.md rule 3).
func othersOnly(ids []spiffeid.ID) error {
	var named []string
	size := 0
	for _, id := range ids {
		if size += len(id.String()); len(named) == mostNamed || size > mostNamedBytes {
			break
		}
		named = append(named, id.String())
	}
	its := strings.Join(named, ", ")
	if left := len(ids) - len(named); left > 0 {
		its = strings.TrimPrefix(fmt.Sprintf("%s and %d more", its, left), " and ")
	}
	return fault.New(fault.Denied, nil, "no identity issued with that SPIFFE ID; this process may hold "+its).
		With(fault.OtherIdentity, "ask for one that it may hold, or for none in particular")
}

// unsigned says why there is no JWT-SVID. What the server holds against this node is no workload's business.
func (a *Agent) unsigned(why error) error {
	if fault.Is(why, fault.Invalid) {
		return why
	}
	reason := "the server does not answer in time"
	var said *fault.Error
	switch {
	case a.troubled() != nil:
		reason = "the server turned this node away"
	case a.link.server() == nil:
		reason = "no server answers"
	case fault.Is(why, fault.Unreachable):
		reason = "the server does not answer"
	case errors.As(why, &said) && (passing(why) || said.Kind == fault.NotFound):
		reason = said.What
	case why != nil:
		reason = "the server does not sign one"
	}
	return fault.New(fault.Unavailable, why, "no JWT-SVID for this audience is held: "+reason).
		With(fault.NoJWT, "try again; /healthz of the agent says whether it has a server")
}

// ViewOf attests the process and gives what it may hold now, as Subscribe and View do; nothing follows it.
func (a *Agent) ViewOf(ctx context.Context, p attest.Peer) (View, error) {
	if err := a.awaitSync(ctx, knownPatience); err != nil {
		return View{}, err
	}
	found, err := a.selectorsOf(ctx, p)
	if err != nil {
		return View{}, err
	}
	v := a.cache.glance(found.selectors, a.now())
	if len(v.Identities) == 0 && !v.Pending {
		a.sayUnmatched(ctx, Sighting{Process: p.Process(), Selectors: found.selectors, At: a.now()})
	} else {
		a.remember(p, found)
	}
	if err := p.Verify(); err != nil {
		return View{}, gone(err)
	}
	return v, nil
}

// The bounds of an audience, as the authority has them.
const mostAudiences, longestAudience = 32, 1024

// audienceKey is the same for the same values in whatever order, each once or more often.
func audienceKey(audience []string) (string, error) {
	if len(audience) == 0 || len(audience) > mostAudiences { // JWT-SVID section 3.2: one at least
		return "", fault.New(fault.Invalid, nil, fmt.Sprintf("an audience of 1 to %d values must be given", mostAudiences))
	}
	all := 0
	for _, one := range audience {
		all += len(one)
		if one == "" || len(one) > longestAudience || !utf8.ValidString(one) || strings.ContainsFunc(one, unicode.IsControl) {
			return "", fault.New(fault.Invalid, nil, fmt.Sprintf("a value of an audience must be text of 1 to %d bytes", longestAudience))
		}
	}
	if base64.RawURLEncoding.EncodedLen(all) > svid.MaxJWTLength {
		return "", fault.New(fault.Invalid, nil, fmt.Sprintf("an audience of %d bytes does not fit into a JWT-SVID", all))
	}
	if len(audience) == 1 {
		return audience[0], nil
	}
	set := slices.Sorted(slices.Values(audience))
	return strings.Join(slices.Compact(set), "\x00"), nil // which no value has
}
