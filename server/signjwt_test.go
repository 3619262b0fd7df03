package server_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/api/registrationv1"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/ca"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/server"
	"github.com/writ-dev/writ/svid"
)

// jwt asks for the token of an entry, named as the harness's entries are.
func (h *host) jwt(name string, audience ...string) *nodev1.JWTSigningResult {
	h.d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	answer := must(h.connect().SignJWT(ctx, &nodev1.SignJWTRequest{Requests: []*nodev1.JWTSigningRequest{{Entry: name,
		SpiffeId: "spiffe://example.org/" + name, Audience: audience}}}))(h.d.t)
	return answer.Results[0]
}

// verifyJWT holds a token against the bundle that an agent was sent.
func verifyJWT(b *nodev1.Bundle, token string, audience ...string) (*svid.JWT, error) {
	keys, err := svid.ParseJWKS(example, b.GetJwtAuthorities())
	if err != nil {
		return nil, err
	}
	return svid.VerifyJWT(token, map[spiffeid.TrustDomain]svid.JWTBundle{example: keys}, audience, time.Now())
}

func TestSignJWT(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	own, other := entry("orders", "join_token:name:web-1"), entry("other", "join_token:name:web-2")
	d.apply(own, other, entry("deleted"))
	d.caughtUp()
	h := d.join("web-1")
	f := h.follow()
	f.next()
	d.remove("deleted")
	d.caughtUp()
	for _, row := range []struct {
		name, entry, id string
		audience        []string
		want            codes.Code
		code            fault.Code
	}{
		{"one audience", "orders", ordersID, []string{"db"}, codes.OK, ""},
		{"two audiences", "orders", ordersID, []string{"db", "cache"}, codes.OK, ""},
		{"JWT-13/no audience", "orders", ordersID, nil, codes.InvalidArgument, fault.BadRequestForSVID},
		{"JWT-13/an empty audience", "orders", ordersID, []string{""}, codes.InvalidArgument, fault.BadRequestForSVID},
		{"33 audiences", "orders", ordersID, strings.Split(strings.Repeat("x,", 32)+"x", ","), codes.InvalidArgument, fault.BadRequestForSVID},
		{"ID is not the entry's", "orders", "spiffe://example.org/admin", []string{"db"}, codes.PermissionDenied, fault.NotEntitled},
		{"JWT-34/ID without a path", "orders", "spiffe://example.org", []string{"db"}, codes.PermissionDenied, fault.NotEntitled},
		{"ID is of another trust domain", "orders", "spiffe://example.net/orders", []string{"db"}, codes.PermissionDenied, fault.NotEntitled},
		{"ID cannot be read", "orders", "spiffe://example.org/orders/", []string{"db"}, codes.InvalidArgument, fault.BadRequestForSVID},
		{"entry is another node's", "other", "spiffe://example.org/other", []string{"db"}, codes.PermissionDenied, fault.NotEntitled},
		{"entry is there no more", "deleted", "spiffe://example.org/deleted", []string{"db"}, codes.PermissionDenied, fault.NotEntitled},
		{"entry is not named", "", ordersID, []string{"db"}, codes.PermissionDenied, fault.NotEntitled},
	} {
		t.Run(row.name, func(t *testing.T) {
			before := len(records[audit.Issuance](d, audit.KindIssuance))
			// An honest request beside it is signed whatever becomes of this one.
			answer := must(h.connect().SignJWT(t.Context(), &nodev1.SignJWTRequest{Requests: []*nodev1.JWTSigningRequest{
				{Entry: row.entry, SpiffeId: row.id, Audience: row.audience}, {Entry: "orders", SpiffeId: ordersID, Audience: []string{"db"}}}}))(t)
			got, honest := answer.Results[0], answer.Results[1]
			if codes.Code(got.Status) != row.want || got.Code != string(row.code) || (got.Token != "") != (row.want == codes.OK) {
				t.Errorf("answered %s %s %q, want %s %s", codes.Code(got.Status), got.Code, got.Message, row.want, row.code)
			}
			d.checkJWT(f.bundle, honest, ordersID, "db")
			signed := 1
			if row.want == codes.OK {
				d.checkJWT(f.bundle, got, ordersID, row.audience...)
				signed = 2
			}
			if recorded := len(records[audit.Issuance](d, audit.KindIssuance)) - before; recorded != signed {
				t.Errorf("%d issuances are recorded, want %d", recorded, signed)
			}
		})
	}
	d.checkIssuances()
	if strings.Contains(d.log.all(), "eyJ") { // JWT-30
		t.Error("a token is in the log")
	}
}

func (l *lines) all() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// checkJWT wants a token that the agents' bundle verifies, and a record of exactly it.
func (d *domain) checkJWT(b *nodev1.Bundle, r *nodev1.JWTSigningResult, id string, audience ...string) *svid.JWT {
	d.t.Helper()
	j := must(verifyJWT(b, r.Token, audience[0]))(d.t)
	if j.ID.String() != id || !slices.Equal(j.Audience, audience) || j.Expires.Unix() != r.ExpiresUnix || j.IssuedAt.Unix() != r.IssuedUnix {
		d.t.Errorf("the token says %s for %v from %s to %s", j.ID, j.Audience, j.IssuedAt, j.Expires)
	}
	all := records[audit.Issuance](d, audit.KindIssuance)
	if !slices.ContainsFunc(all, func(i audit.Issuance) bool {
		return i.Profile == "jwt" && i.SPIFFEID == id && slices.Equal(i.Audience, audience) && i.NotAfter.Equal(j.Expires) && i.AuthorityID == j.KeyID
	}) {
		d.t.Errorf("the token of %s has no record", id)
	}
	return j
}

func TestSignJWTBoundsTheLifetime(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	now := time.Now()
	short, ends, long := entry("short"), entry("ends"), entry("long")
	short.JwtTtl, long.JwtTtl = seconds(60), seconds(12*3600)
	ends.Expires = timestamppb.New(now.Add(2 * time.Minute))
	d.apply(short, ends, long, entry("plain"))
	d.caughtUp()
	h := d.join("web-1")
	for _, row := range []struct {
		entry       string
		least, most time.Duration
	}{
		{"plain", 5*time.Minute - 2*time.Second, 5*time.Minute + patience},
		{"short", 58 * time.Second, time.Minute + patience},
		{"ends", 118 * time.Second, 2 * time.Minute},
		{"long", 12*time.Hour - 2*time.Second, 12*time.Hour + patience},
	} {
		if r := h.jwt(row.entry, "db"); r.ExpiresUnix < now.Add(row.least).Unix() || r.ExpiresUnix > now.Add(row.most).Unix() {
			t.Errorf("%s: it lives for %s: %s", row.entry, time.Unix(r.ExpiresUnix, 0).Sub(now), r.Message)
		}
	}
	over := entry("over")
	over.JwtTtl = seconds(12*3600 + 1)
	_, err := d.admin.ApplyEntries(t.Context(), &adminv1.ApplyEntriesRequest{Entries: []*registrationv1.Entry{over}})
	wantFault(t, err, fault.Invalid, fault.BadEntry)
}

func TestSignJWTRefusesTooManyRequests(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	d.apply(entry("orders"))
	d.caughtUp()
	h := d.join("web-1")
	many := slices.Repeat([]*nodev1.JWTSigningRequest{{Entry: "orders", SpiffeId: ordersID, Audience: []string{"db"}}}, 257)
	_, err := h.connect().SignJWT(t.Context(), &nodev1.SignJWTRequest{Requests: many})
	wantFault(t, err, fault.Invalid, "")
	for i, r := range must(h.connect().SignJWT(t.Context(), &nodev1.SignJWTRequest{Requests: many[:256]}))(t).Results {
		if r.Status != 0 {
			t.Fatalf("request %d of 256 is refused: %s", i, r.Message)
		}
	}
	d.checkIssuances()
}

func TestSignJWTNeedsAnAgent(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	d.apply(entry("orders"))
	d.caughtUp()
	h := d.join("web-1")
	request := &nodev1.SignJWTRequest{Requests: []*nodev1.JWTSigningRequest{{Entry: "orders", SpiffeId: ordersID, Audience: []string{"db"}}}}
	_, err := d.dial(nil).SignJWT(t.Context(), request)
	wantFault(t, err, fault.Unauthenticated, "")
	must(d.admin.BanNode(t.Context(), &adminv1.BanNodeRequest{Subject: h.id}))(t)
	d.caughtUp()
	_, err = h.connect().SignJWT(t.Context(), request)
	wantFault(t, err, fault.Denied, fault.NodeBanned)
}

// A server that has the profile switched off says so, and not that something went wrong.
func TestSignJWTIsUnimplementedWithoutAnAuthority(t *testing.T) {
	t.Parallel()
	d := newDomain(t, func(c *server.Config) { c.JWT = nil })
	h := d.join("web-1")
	f := h.follow()
	f.next()
	_, err := h.connect().SignJWT(t.Context(), &nodev1.SignJWTRequest{})
	if status := status.Code(err); status != codes.Unimplemented || len(f.bundle.JwtAuthorities) > 0 {
		t.Errorf("answered %s, with the keys %s", status, f.bundle.JwtAuthorities)
	}
}

// What is gone between drafting and recording is not signed, as with certificates.
func TestSignJWTIssuesNothingForWhatIsGone(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name string
		do   func(d *domain, h *host)
		want codes.Code
	}{
		{"nothing happens", func(*domain, *host) {}, codes.OK},
		{"the entry is deleted", func(d *domain, _ *host) { d.remove("orders") }, codes.FailedPrecondition},
		{"the entry changes", func(d *domain, _ *host) { d.apply(entry("orders", "x509pop:subject:web-9")) }, codes.FailedPrecondition},
		{"the node is banned", func(d *domain, h *host) {
			must(d.admin.BanNode(d.t.Context(), &adminv1.BanNodeRequest{Subject: h.id}))(d.t)
		}, codes.FailedPrecondition},
		{"the key is revoked", func(d *domain, _ *host) {
			for _, r := range must(d.db.Authorities(context.Background()))(d.t) {
				if r.Use == ca.UseJWT {
					r.State = ca.StateRevoked
					must(0, d.db.RecordAuthority(context.Background(), r))(d.t)
				}
			}
		}, codes.FailedPrecondition},
		{"the store closes", func(d *domain, _ *host) { d.db.Close() }, codes.Unavailable},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			var door intents
			d := newDomain(t, func(c *server.Config) {
				door.Issuances = c.Store.Issuances
				c.Store.Issuances = &door
			})
			d.apply(entry("orders"))
			d.caughtUp()
			h := d.join("web-1")
			meanwhile := func() { row.do(d, h) }
			door.before.Store(&meanwhile)
			r := h.jwt("orders", "db")
			if got := codes.Code(r.Status); got != row.want || (r.Token != "") != (row.want == codes.OK) {
				t.Errorf("answered %s %q, want %s", got, r.Message, row.want)
			}
		})
	}
}

// jwtKey is the id of the key that signs now.
func (h *host) jwtKey() string {
	h.d.t.Helper()
	r := h.jwt("orders", "db")
	if r.Status != 0 {
		h.d.t.Fatalf("refused: %s", r.Message)
	}
	return must(svid.ParseJWT(r.Token))(h.d.t).KeyID
}

// A new key is pushed to every agent, and signs when the last of them says that it holds it.
func TestJWTKeySignsOnceEveryAgentHoldsIt(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	d.apply(entry("orders"))
	d.caughtUp()
	d.ahead.Store(int64(14 * time.Hour))
	d.jwt.Acknowledge("") // has it look at the clock now
	d.until("a new key is prepared", func() bool { return d.jwt.Waiting() != "" })
	d.caughtUp()
	next := d.jwt.Waiting()
	slow := d.join("web-2")
	late := slow.follow()
	late.silent = true
	late.next()
	h := d.join("web-1")
	first := h.jwtKey()
	fast := h.follow()
	fast.next()
	for _, f := range []*follower{late, fast} {
		if !strings.Contains(string(f.bundle.JwtAuthorities), next) || !strings.Contains(string(f.bundle.JwtAuthorities), first) {
			t.Errorf("an agent holds the keys %s", f.bundle.JwtAuthorities)
		}
	}
	d.caughtUp()
	if got := h.jwtKey(); got != first || got == next {
		t.Errorf("key %s signs, and one agent has not said that it holds it", got)
	}
	late.ack()
	d.until("the new key signs", func() bool { return h.jwtKey() == next })
}
