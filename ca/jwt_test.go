package ca_test

import (
	"context"
	"crypto"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/writ-dev/writ/ca"
	"github.com/writ-dev/writ/ca/keystore"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/svid"
)

func jwtConfig() ca.JWTConfig {
	return ca.JWTConfig{TrustDomain: domain, Server: "a", Keys: lasting{keystore.Memory()}, Ledger: newLedger()}
}

// lasting is a keystore that outlives the authority, as a disk does.
type lasting struct{ keystore.Store }

func (lasting) Lasting() bool { return true }

func startJWT(t testing.TB, c ca.JWTConfig) *ca.JWTAuthority {
	t.Helper()
	return must(ca.NewJWT(t.Context(), c))(t)
}

func jwtRequest() ca.JWTRequest {
	return ca.JWTRequest{ID: id("/orders"), Audience: []string{"db"}, TTL: 5 * time.Minute}
}

// token drafts and signs, and wants every reader to take what comes.
func token(t testing.TB, a *ca.JWTAuthority) *svid.JWT {
	t.Helper()
	draft := must(a.Draft(jwtRequest()))(t)
	text := must(a.Issue(draft))(t)
	j := must(verify(a, text))(t)
	if j.KeyID != draft.AuthorityID() || !j.Expires.Equal(draft.Expires()) || !j.IssuedAt.Equal(draft.IssuedAt()) {
		t.Errorf("drafted as %s from %s to %s, signed as %+v", draft.AuthorityID(), draft.IssuedAt(), draft.Expires(), *j)
	}
	return j
}

// verify holds a token against the bundle as it is now.
func verify(a *ca.JWTAuthority, text string) (*svid.JWT, error) {
	return svid.VerifyJWT(text, map[spiffeid.TrustDomain]svid.JWTBundle{domain: a.Bundle()}, []string{"db"}, time.Now())
}

// recorded is what the ledger says of a key.
func recorded(c ca.JWTConfig, id string) ca.AuthorityRecord {
	l := c.Ledger.(*ledger)
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.records[id]
}

func kids(a *ca.JWTAuthority) (ids []string) {
	for _, k := range a.Bundle().Keys {
		ids = append(ids, k.ID)
	}
	return ids
}

func TestJWT_03_JWT_08_INT_03_CLIENT_17_CLIENT_18_SaysNothingMoreThanItMust(t *testing.T) {
	for _, issuer := range []string{"", "https://oidc.example.org"} {
		c := jwtConfig()
		c.Issuer = issuer
		a := startJWT(t, c)
		r := jwtRequest()
		r.Audience = []string{"db", "https://x/?a=1&b=<2>", "db"}
		d := must(a.Draft(r))(t)
		text := must(a.Issue(d))(t)
		parts := strings.Split(text, ".")
		header, claims := unbase64(t, parts[0]), unbase64(t, parts[1])
		// alg, kid, typ; aud as a list, exp and iat as integers, sub, and iss where it is configured.
		if want := fmt.Sprintf(`{"alg":"ES256","kid":%q,"typ":"JWT"}`, kids(a)[0]); header != want {
			t.Errorf("header is %s, want %s", header, want)
		}
		want := fmt.Sprintf(`{"aud":["db","https://x/?a=1\u0026b=\u003c2\u003e"],"exp":%d,"iat":%d,`, d.Expires().Unix(), d.IssuedAt().Unix())
		if issuer != "" {
			want += fmt.Sprintf(`"iss":%q,`, issuer)
		}
		if want += `"sub":"spiffe://example.org/orders"}`; claims != want {
			t.Errorf("claims are %s, want %s", claims, want)
		}
		theirs := jwtbundle.FromJWTAuthorities(domain, map[string]crypto.PublicKey{a.Bundle().Keys[0].ID: a.Bundle().Keys[0].Public})
		if _, err := jwtsvid.ParseAndValidate(text, theirs, []string{"https://x/?a=1&b=<2>"}); err != nil {
			t.Errorf("go-spiffe refuses it: %v", err)
		}
		if _, err := verify(a, text); err != nil {
			t.Error(err)
		}
	}
}

// With a keystore of the other kind tokens are RS256, which is all that some verifiers know; keys from before go on.
func TestJWTUnderRSA(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := jwtConfig()
		a := startJWT(t, c)
		stop := run(t, a)
		before := token(t, a)
		stop()
		c.Keys = both{c.Keys, keystore.MemoryFor(keystore.RSA2048)}
		b := running(t, c)
		if got := token(t, b); got.KeyID != before.KeyID || got.Algorithm != "ES256" {
			t.Errorf("after the change key %s signs by %s", got.KeyID, got.Algorithm)
		}
		for b.Waiting() == "" {
			time.Sleep(time.Minute)
		}
		b.Acknowledge(b.Waiting())
		synctest.Wait()
		j := token(t, b)
		if j.KeyID == before.KeyID || j.Algorithm != "RS256" || len(kids(b)) != 2 {
			t.Errorf("key %s signs by %s, of %v", j.KeyID, j.Algorithm, kids(b))
		}
		r := jwtRequest()
		for n := 1000; ; n-- { // the longest that there is room for
			r.Audience = nil
			for i := range 12 {
				r.Audience = append(r.Audience, fmt.Sprint(i, strings.Repeat("x", n)))
			}
			d, err := b.Draft(r)
			if err != nil {
				continue
			}
			if text := must(b.Issue(d))(t); len(text) > svid.MaxJWTLength || len(text) < svid.MaxJWTLength-20 {
				t.Errorf("the longest token has %d bytes", len(text))
			}
			return
		}
	})
}

// both loads from either and makes in the second.
type both struct{ first, second keystore.Store }

func (b both) Create(ctx context.Context, name string) (crypto.Signer, error) {
	return b.second.Create(ctx, name)
}

func (b both) Load(ctx context.Context, name string) (crypto.Signer, error) {
	if key, err := b.first.Load(ctx, name); err == nil {
		return key, nil
	}
	return b.second.Load(ctx, name)
}

func (b both) Remove(ctx context.Context, name string) error {
	return errors.Join(b.first.Remove(ctx, name), b.second.Remove(ctx, name))
}

func (both) Lasting() bool { return true }

func unbase64(t testing.TB, s string) string {
	t.Helper()
	return string(must(base64.RawURLEncoding.DecodeString(s))(t))
}

func TestJWTDraftRefuses(t *testing.T) {
	a := startJWT(t, jwtConfig())
	many := slices.Repeat([]string{"x"}, 33)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	long := slices.Clone(many[:32])
	for i := range long {
		long[i] += strings.Repeat("y", 1000)
	}
	for _, row := range []struct {
		name  string
		spoil func(*ca.JWTRequest)
		valid bool
	}{
		{"what is asked for is right", func(*ca.JWTRequest) {}, true},
		{"JWT-13/no audience", func(r *ca.JWTRequest) { r.Audience = nil }, false},
		{"JWT-13/an empty audience", func(r *ca.JWTRequest) { r.Audience = []string{"db", ""} }, false},
		{"JWT-15/32 audiences", func(r *ca.JWTRequest) { r.Audience = append(many[:31:31], "db") }, true},
		{"JWT-15, CLIENT-18/33 audiences", func(r *ca.JWTRequest) { r.Audience = many }, false},
		{"an audience of 1025 bytes", func(r *ca.JWTRequest) { r.Audience = []string{strings.Repeat("x", 1025)} }, false},
		{"audiences that make the token too long", func(r *ca.JWTRequest) { r.Audience = long }, false},
		{"an audience that is no text", func(r *ca.JWTRequest) { r.Audience = []string{"\xff"} }, false},
		{"an audience with a line break", func(r *ca.JWTRequest) { r.Audience = []string{"a\nb"} }, false},
		{"JWT-34/an ID without a path", func(r *ca.JWTRequest) { r.ID = domain.ID() }, false},
		{"ID-35/another trust domain", func(r *ca.JWTRequest) { r.ID = spiffeid.RequireFromString("spiffe://other.org/x") }, false},
		{"ID-20/an ID of 2049 bytes", func(r *ca.JWTRequest) { r.ID = id("/" + strings.Repeat("x", 2049-len("spiffe://example.org/"))) }, false},
		{"JWT-11/no ID", func(r *ca.JWTRequest) { r.ID = spiffeid.ID{} }, false},
		{"a server's ID", func(r *ca.JWTRequest) { r.ID = id("/writ/server/a") }, false},
		{"no lifetime", func(r *ca.JWTRequest) { r.TTL = 0 }, false},
		{"an entry that ended", func(r *ca.JWTRequest) { r.NotAfter = time.Now().Add(-time.Second) }, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := jwtRequest()
			row.spoil(&r)
			d, err := a.Draft(r)
			if row.valid {
				if text, err := a.Issue(must(d, err)(t)); err != nil || len(text) > svid.MaxJWTLength {
					t.Errorf("%d bytes, %v", len(text), err)
				}
				return
			}
			wantFault(t, err, fault.Invalid, fault.BadRequestForSVID)
		})
	}
}

func TestJWTDraftIsIssuedOnceByItsAuthority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := startJWT(t, jwtConfig()), startJWT(t, jwtConfig())
		d := must(a.Draft(jwtRequest()))(t)
		_, err := b.Issue(d)
		wantFault(t, err, fault.Invalid, "")
		_, err = a.Issue(nil)
		wantFault(t, err, fault.Invalid, "")
		must(a.Issue(d))(t)
		_, err = a.Issue(d)
		wantFault(t, err, fault.Stale, "")
		late := must(a.Draft(jwtRequest()))(t)
		time.Sleep(5 * time.Minute)
		_, err = a.Issue(late)
		wantFault(t, err, fault.Stale, "")
		if d.Serial() == late.Serial() || len(d.Serial()) != 32 || d.Digest() != late.Digest() { // of one second, and equal
			t.Errorf("two drafts are %s and %s", d.Serial(), late.Serial())
		}
	})
}

// No token outlives its key, nor its entry.
func TestJWT_23_Lifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := jwtConfig()
		c.KeyTTL = time.Hour
		a := startJWT(t, c)
		began := time.Now()
		time.Sleep(50*time.Minute + 300*time.Millisecond)
		r := jwtRequest()
		r.TTL = time.Hour
		if got := must(a.Draft(r))(t).Expires(); !got.Equal(began.Add(time.Hour)) {
			t.Errorf("with 10 min of the key left it ends at %s", got)
		}
		r.NotAfter = time.Now().Add(2 * time.Minute)
		if got := must(a.Draft(r))(t).Expires(); !got.Equal(r.NotAfter.Truncate(time.Second)) {
			t.Errorf("with 2 min of the entry left it ends at %s", got)
		}
		time.Sleep(10 * time.Minute)
		_, err := a.Draft(r)
		wantFault(t, err, fault.Unavailable, fault.AuthorityMissing)
	})
}

// running is an authority whose Run goes on until the test is over.
func running(t *testing.T, c ca.JWTConfig) *ca.JWTAuthority {
	t.Helper()
	a := startJWT(t, c)
	run(t, a)
	return a
}

func run(t *testing.T, a *ca.JWTAuthority) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- a.Run(ctx) }()
	stopped := false
	stop = func() {
		if cancel(); !stopped {
			stopped = true
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop)
	return stop
}

func TestJWTRotation(t *testing.T) {
	for _, row := range []struct {
		name        string
		settle      time.Duration
		acknowledge bool
		other       bool          // another server has a key
		after       time.Duration // of preparing
	}{
		{"agents hold the key", 0, true, false, 0},
		{"agents hold the key, caches elsewhere may not", 4 * time.Minute, true, false, 4 * time.Minute},
		{"agents are silent: two refresh hints", 4 * time.Minute, false, false, 10 * time.Minute},
		{"other servers have agents of their own: two refresh hints", 0, true, true, 10 * time.Minute},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := jwtConfig()
				c.Settle = row.settle
				a := running(t, c)
				first := token(t, a) // the first key of a trust domain signs at once
				for a.Waiting() == "" {
					time.Sleep(time.Minute)
				}
				prepared := time.Now()
				next := a.Waiting()
				if row.other {
					other := c
					other.Server, other.Keys = "b", lasting{keystore.Memory()}
					startJWT(t, other)
					must(0, a.Reload(t.Context()))(t)
				}
				if age := time.Since(first.IssuedAt); age < 10*time.Hour || age > 14*time.Hour {
					t.Errorf("a new key is prepared after %s", age)
				}
				if !slices.Contains(kids(a), next) || !slices.Contains(kids(a), first.KeyID) {
					t.Errorf("the bundle is %v", kids(a))
				}
				if row.acknowledge {
					a.Acknowledge(next)
					if a.Waiting() != "" {
						t.Error("it still waits for agents")
					}
				}
				synctest.Wait()
				for token(t, a).KeyID == first.KeyID {
					if time.Since(prepared) > row.after+2*time.Minute {
						t.Fatalf("after %s the old key signs", time.Since(prepared))
					}
					time.Sleep(10 * time.Second)
				}
				if since := time.Since(prepared); since < row.after-time.Minute || since > row.after+time.Minute {
					t.Errorf("the new key signs after %s, want %s", since, row.after)
				}
				if got := token(t, a).KeyID; got != next {
					t.Errorf("key %s signs, want %s", got, next)
				}
			})
		})
	}
}

// The old key verifies as long as anything that it signed, and a little longer; its private half is gone before.
func TestJWTOldKeyStaysForItsTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := jwtConfig()
		a := running(t, c)
		for a.Waiting() == "" {
			time.Sleep(time.Minute)
		}
		r := jwtRequest()
		r.TTL = time.Hour
		last := must(a.Issue(must(a.Draft(r))(t)))(t)
		under := must(a.Draft(r))(t) // recorded while the key is replaced
		old := under.AuthorityID()
		ends := under.Expires()
		keyName := recorded(c, old).KeyName
		a.Acknowledge(a.Waiting())
		synctest.Wait()
		if recorded(c, old).State != ca.StateActive {
			t.Error("what was drafted with the old key could not be recorded any more")
		}
		must(a.Issue(under))(t)
		time.Sleep(2 * time.Minute)
		if got := recorded(c, old).State; got != ca.StateOld {
			t.Errorf("after the grace it is %s", got)
		}
		if _, err := c.Keys.Load(t.Context(), keyName); !fault.Is(err, fault.NotFound) {
			t.Errorf("the private key is still there: %v", err)
		}
		time.Sleep(time.Until(ends) + svid.JWTLeeway) // taken to the last moment
		must(verify(a, last))(t)
		again := startJWT(t, c) // and over a restart
		must(verify(again, last))(t)
		time.Sleep(2 * time.Minute)
		if got := recorded(c, old).State; got != ca.StateRemoved || slices.Contains(kids(a), old) || len(kids(a)) != 1 {
			t.Errorf("when its tokens have ended it is %s, and the bundle %v", got, kids(a))
		}
	})
}

func TestCLIENT_20_JWTRestart(t *testing.T) {
	for _, row := range []struct {
		name  string
		keys  func() keystore.Store
		spoil func(c ca.JWTConfig)
		same  bool // the key goes on signing
	}{
		{"the key is there", func() keystore.Store { return lasting{keystore.Memory()} }, func(ca.JWTConfig) {}, true},
		{"the key ended with the process", keystore.Memory, func(ca.JWTConfig) {}, false},
		{"the key is lost", func() keystore.Store { return lasting{keystore.Memory()} }, func(c ca.JWTConfig) {
			for _, r := range c.Ledger.(*ledger).records {
				_ = c.Keys.Remove(context.Background(), r.KeyName)
			}
		}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := jwtConfig()
				c.Keys = row.keys()
				a := startJWT(t, c)
				stop := run(t, a)
				before := token(t, a)
				stop()
				row.spoil(c)
				b := running(t, c)
				must(verify(b, before.Token()))(t) // "token from before the restart"
				if row.same {
					if got := token(t, b); got.KeyID != before.KeyID || len(kids(b)) != 1 {
						t.Errorf("key %s signs, of %v", got.KeyID, kids(b))
					}
					return
				}
				// Agents hold a bundle without the new key, so it signs once they have it and not before.
				_, err := b.Draft(jwtRequest())
				wantFault(t, err, fault.Unavailable, fault.AuthorityMissing)
				b.Acknowledge(b.Waiting())
				synctest.Wait()
				if got := token(t, b); got.KeyID == before.KeyID || len(kids(b)) != 2 {
					t.Errorf("key %s signs, of %v", got.KeyID, kids(b))
				}
				time.Sleep(time.Minute)
				must(verify(b, before.Token()))(t)
			})
		})
	}
}

// A prepared key waits over a restart too: its two refresh hints begin where they began.
func TestJWTPreparedKeyWaitsOverARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := jwtConfig()
		a := startJWT(t, c)
		stop := run(t, a)
		for a.Waiting() == "" {
			time.Sleep(time.Minute)
		}
		next := a.Waiting()
		stop()
		b := running(t, c)
		if b.Waiting() != next || token(t, b).KeyID == next || len(kids(b)) != 2 {
			t.Errorf("key %s waits, of %v; want %s", b.Waiting(), kids(b), next)
		}
		time.Sleep(12 * time.Minute)
		if got := token(t, b).KeyID; got != next {
			t.Errorf("after two hints %s signs", got)
		}
	})
}

func TestJWTKeySignsOnlyOnceItIsOnRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := jwtConfig()
		l := c.Ledger.(*ledger)
		l.err = errors.New("disk full")
		if _, err := ca.NewJWT(t.Context(), c); err == nil {
			t.Fatal("an authority came up that nobody could remember")
		}
		l.err = nil
		a := running(t, c)
		first := token(t, a).KeyID
		for a.Waiting() == "" {
			time.Sleep(time.Minute)
		}
		l.mu.Lock()
		l.err = errors.New("disk full")
		l.mu.Unlock()
		a.Acknowledge(a.Waiting())
		time.Sleep(15 * time.Minute)
		if got := token(t, a).KeyID; got != first {
			t.Error("a key signs whose activation is not on record")
		}
		l.mu.Lock()
		l.err = nil
		l.mu.Unlock()
		time.Sleep(2 * time.Minute)
		if got := token(t, a).KeyID; got == first {
			t.Error("activation is not tried again")
		}
	})
}

// What somebody revokes on record signs no more and verifies nothing, and another key takes its place.
func TestJWTRevokedKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := jwtConfig()
		a := running(t, c)
		before := token(t, a)
		l := c.Ledger.(*ledger)
		l.mu.Lock()
		r := l.records[before.KeyID]
		r.State = ca.StateRevoked
		l.records[r.ID] = r
		l.mu.Unlock()
		must(0, a.Reload(t.Context()))(t)
		if _, err := verify(a, before.Token()); err == nil {
			t.Error("it still verifies")
		}
		_, err := a.Draft(jwtRequest())
		wantFault(t, err, fault.Unavailable, fault.AuthorityMissing)
		time.Sleep(2 * time.Minute)
		a.Acknowledge(a.Waiting())
		synctest.Wait()
		if got := token(t, a).KeyID; got == before.KeyID {
			t.Error("it signs again")
		}
	})
}

// What somebody revokes before it signs never does.
func TestJWTRevokedWhilePrepared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := jwtConfig()
		a := running(t, c)
		for a.Waiting() == "" {
			time.Sleep(time.Minute)
		}
		next := a.Waiting()
		l := c.Ledger.(*ledger)
		l.mu.Lock()
		r := l.records[next]
		r.State = ca.StateRevoked
		l.records[r.ID] = r
		l.mu.Unlock()
		must(0, a.Reload(t.Context()))(t)
		first := token(t, a).KeyID
		a.Acknowledge(next)
		time.Sleep(5 * time.Minute)
		other := a.Waiting()
		if got := token(t, a).KeyID; got != first || other == "" || other == next || recorded(c, next).State != ca.StateRevoked {
			t.Errorf("key %s signs, key %q waits; the revoked one is %s", got, other, recorded(c, next).State)
		}
		time.Sleep(12 * time.Minute)
		if got := token(t, a).KeyID; got != other {
			t.Errorf("key %s signs, want %s", got, other)
		}
	})
}

// What a key signed before a restart is not known after it, so the key stays as long as any of that may live.
func TestJWTOldKeyStaysForTokensFromBeforeARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := jwtConfig()
		a := startJWT(t, c)
		stop := run(t, a)
		for a.Waiting() == "" {
			time.Sleep(time.Minute)
		}
		r := jwtRequest()
		r.TTL = 8 * time.Hour
		long := must(a.Issue(must(a.Draft(r))(t)))(t)
		stop()
		b := running(t, c)
		b.Acknowledge(b.Waiting())
		time.Sleep(7 * time.Hour)
		must(verify(b, long))(t)
	})
}

func TestJWTKeyThatEndedWhileNothingRan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := jwtConfig()
		a := startJWT(t, c)
		first := token(t, a).KeyID
		time.Sleep(25 * time.Hour)
		b := running(t, c)
		if b.Waiting() == "" || b.Waiting() == first || slices.Contains(kids(b), first) {
			t.Errorf("key %q waits, of %v", b.Waiting(), kids(b))
		}
		b.Acknowledge(b.Waiting())
		synctest.Wait()
		if got := token(t, b).KeyID; got == first {
			t.Error("it signs again")
		}
	})
}

// Authorities of certificates and of tokens share a ledger and nothing else.
func TestJWT_33_TDB_01_KeysAreNoCertificatesKeys(t *testing.T) {
	c := config()
	j := jwtConfig()
	j.Ledger, j.Keys = c.Ledger, c.Keys
	x509, jwt := start(t, c), startJWT(t, j)
	must(0, x509.Reload(t.Context()))(t)
	must(0, jwt.Reload(t.Context()))(t)
	b := x509.Bundle()
	if len(b.Roots) != 1 || len(b.Issuing) != 1 || len(kids(jwt)) != 1 {
		t.Fatalf("%d roots, %d issuing certificates, %d JWT keys", len(b.Roots), len(b.Issuing), len(kids(jwt)))
	}
	key := jwt.Bundle().Keys[0].Public.(interface{ Equal(crypto.PublicKey) bool })
	for _, cert := range append(b.Roots, b.Issuing...) {
		if key.Equal(cert.PublicKey) {
			t.Error("a certificate's key signs tokens")
		}
	}
	if again := start(t, c); again.ID() == jwt.Bundle().Keys[0].ID {
		t.Error("a JWT key is taken for a certificate's")
	}
}

func BenchmarkJWT(b *testing.B) {
	a := startJWT(b, jwtConfig())
	for b.Loop() {
		must(a.Issue(must(a.Draft(jwtRequest()))(b)))(b)
	}
}
