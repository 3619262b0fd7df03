package jointoken_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/attest/attesttest"
	"github.com/writ-dev/writ/attest/jointoken"
	"github.com/writ-dev/writ/internal/fault"
)

var now = time.Date(2027, 1, 2, 3, 4, 5, 999, time.UTC)

func request() jointoken.Request {
	return jointoken.Request{Addresses: []string{"authority.example.org:8443", "[2001:db8::1]:8443"},
		Pins: [][sha256.Size]byte{sha256.Sum256([]byte("active")), sha256.Sum256([]byte("prepared"))}, TTL: 10 * time.Minute, Server: "a", Now: now}
}

// tokens are those of a server.
type tokens map[string]attest.Token

// Token finds one.
func (t tokens) Token(ctx context.Context, id string) (attest.Token, error) {
	if err := ctx.Err(); err != nil {
		return attest.Token{}, err
	}
	if token, ok := t[id]; ok {
		return token, nil
	}
	return attest.Token{}, fault.New(fault.NotFound, nil, "no such join token")
}

// made is a token, on both sides.
func made(t *testing.T, r jointoken.Request) (attest.Token, jointoken.Text, tokens) {
	t.Helper()
	kept, text, err := jointoken.New(r)
	if err != nil {
		t.Fatal(err)
	}
	read, err := jointoken.Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	return kept, read, tokens{kept.ID: kept}
}

func TestSuite(t *testing.T) {
	narrow := request()
	narrow.Name, narrow.CIDR = "web-1", netip.MustParsePrefix("192.0.2.0/24")
	for name, r := range map[string]jointoken.Request{"any node": request(), "one node from one network": narrow} {
		t.Run(name, func(t *testing.T) {
			_, text, kept := made(t, r)
			attesttest.Run(t, attesttest.Pair{Attestor: jointoken.NewAttestor(text), Verifier: jointoken.NewVerifier(kept), Now: now,
				State: func() any { return maps.Clone(kept) }})
		})
	}
}

func TestTextReadsBack(t *testing.T) {
	r := request()
	r.Name = "web-1"
	kept, text, err := jointoken.New(r)
	if err != nil {
		t.Fatal(err)
	}
	got, err := jointoken.Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(text, "writ1.") {
		t.Errorf("token is %.10s...", text)
	}
	expires := time.Date(2027, 1, 2, 3, 14, 5, 0, time.UTC)
	want := jointoken.Text{Addresses: r.Addresses, Pins: r.Pins, ID: kept.ID, Expires: expires, Seed: got.Seed}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	seed := got.Seed
	if public := ed25519.NewKeyFromSeed(seed[:]).Public(); !kept.Key.Equal(public) {
		t.Error("the kept key is not the seed's")
	}
	if !kept.Expires.Equal(expires) || kept.Name != "web-1" || kept.Server != "a" {
		t.Errorf("kept %+v", kept)
	}
	other, _, err := jointoken.New(r)
	if err != nil || other.ID == kept.ID || other.Key.Equal(kept.Key) {
		t.Errorf("two tokens are the same: %v", err)
	}
	if again, err := jointoken.Encode(got); err != nil || again != text {
		t.Errorf("written again it differs: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, change := range map[string]func(*jointoken.Request){
		"no address":                  func(r *jointoken.Request) { r.Addresses = nil },
		"seventeen addresses":         func(r *jointoken.Request) { r.Addresses = make([]string, 17) },
		"an address without a port":   func(r *jointoken.Request) { r.Addresses[1] = "authority.example.org" },
		"an address without a host":   func(r *jointoken.Request) { r.Addresses[1] = ":8443" },
		"port 0":                      func(r *jointoken.Request) { r.Addresses[1] = "a:0" },
		"port 65536":                  func(r *jointoken.Request) { r.Addresses[1] = "a:65536" },
		"a port with a zero before":   func(r *jointoken.Request) { r.Addresses[1] = "a:08443" },
		"a port by name":              func(r *jointoken.Request) { r.Addresses[1] = "a:https" },
		"a URL":                       func(r *jointoken.Request) { r.Addresses[1] = "https://a:8443" },
		"an address with a user":      func(r *jointoken.Request) { r.Addresses[1] = "root@a:8443" },
		"an address with a blank":     func(r *jointoken.Request) { r.Addresses[1] = "a b:8443" },
		"an address with a line end":  func(r *jointoken.Request) { r.Addresses[1] = "a\n:8443" },
		"an address of 256 bytes":     func(r *jointoken.Request) { r.Addresses[1] = strings.Repeat("a", 251) + ":8443" },
		"no root pin":                 func(r *jointoken.Request) { r.Pins = nil },
		"seventeen root pins":         func(r *jointoken.Request) { r.Pins = make([][sha256.Size]byte, 17) },
		"no ttl":                      func(r *jointoken.Request) { r.TTL = 0 },
		"a ttl that is over":          func(r *jointoken.Request) { r.TTL = -time.Minute },
		"a ttl under a second":        func(r *jointoken.Request) { r.TTL = time.Second - 1 },
		"an expiry beyond year 9999":  func(r *jointoken.Request) { r.Now = time.Date(9999, 12, 31, 23, 59, 0, 0, time.UTC) },
		"a name with a blank":         func(r *jointoken.Request) { r.Name = "web 1" },
		"a name with a line end":      func(r *jointoken.Request) { r.Name = "web\n" },
		"a name that is not ASCII":    func(r *jointoken.Request) { r.Name = "wéb" },
		"a name of 254 bytes":         func(r *jointoken.Request) { r.Name = strings.Repeat("a", 254) },
		"a name that is not text":     func(r *jointoken.Request) { r.Name = "\xff" },
		"a name that steers terminal": func(r *jointoken.Request) { r.Name = "\x1b[2J" },
	} {
		t.Run(name, func(t *testing.T) {
			r := request()
			change(&r)
			if kept, text, err := jointoken.New(r); err == nil || text != "" || kept.ID != "" {
				t.Errorf("made: %+v, %v", kept, err)
			}
		})
	}
}

// broken are texts that are no tokens, each one change away from one that is.
func broken(text string) map[string]string {
	body, _ := strings.CutPrefix(text, "writ1.")
	data, _ := base64.RawURLEncoding.DecodeString(body)
	changed := func(change func([]byte) []byte) string {
		return "writ1." + base64.RawURLEncoding.EncodeToString(change(bytes.Clone(data)))
	}
	id := len(data) - 32 - 8 - 32
	return map[string]string{
		"nothing":                     "",
		"its prefix alone":            "writ1.",
		"no prefix":                   body,
		"another version":             "writ2." + body,
		"a prefix in capitals":        "WRIT1." + body,
		"a blank before":              " " + text,
		"a line end behind":           text + "\n",
		"a line end within":           text[:20] + "\r\n" + text[20:],
		"padding":                     text + "=",
		"the other base64":            "writ1.+/" + body[2:],
		"bits behind its last byte":   text[:len(text)-1] + string(text[len(text)-1]+1), // its length leaves four
		"a digit less":                text[:len(text)-1],
		"a digit more":                text + "A",
		"twice":                       text + body,
		"a byte more":                 changed(func(b []byte) []byte { return append(b, 0) }),
		"a byte less":                 changed(func(b []byte) []byte { return b[:len(b)-1] }),
		"no addresses":                changed(func(b []byte) []byte { b[0] = 0; return b }),
		"more addresses than there":   changed(func(b []byte) []byte { b[0] = 255; return b }),
		"an address that is too long": changed(func(b []byte) []byte { b[1] = 255; return b }),
		"an address with a blank":     changed(func(b []byte) []byte { b[3] = ' '; return b }),
		"an id in capitals":           changed(func(b []byte) []byte { b[id] = 'A'; return b }),
		"an id that is a path":        changed(func(b []byte) []byte { copy(b[id:], "../"); return b }),
		"an expiry before 1970":       changed(func(b []byte) []byte { b[id+32] = 0x80; return b }),
		"an expiry without end":       changed(func(b []byte) []byte { b[id+32] = 0x7f; return b }),
		"sixteen kilobytes":           "writ1." + strings.Repeat("A", 16<<10),
	}
}

// An error never repeats any of the text: it is a secret, and errors are logged.
func TestDecodeRefuses(t *testing.T) {
	_, text, err := jointoken.New(request())
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range broken(text) {
		t.Run(name, func(t *testing.T) {
			got, err := jointoken.Decode(text)
			if err == nil {
				t.Fatal("taken")
			}
			if diff := cmp.Diff(jointoken.Text{}, got, cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
			if said := err.Error(); said != "join token is cut off or mistyped" && said != "join token does not begin with writ1." {
				t.Errorf("says %q", said)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	_, text, err := jointoken.New(request())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	for _, text := range broken(text) {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := jointoken.Decode(text)
		if err != nil {
			return
		}
		if again, err := jointoken.Encode(got); err != nil || again != text {
			t.Errorf("%q is read, and written as %q, %v", text, again, err)
		}
	})
}

func TestVerify(t *testing.T) {
	narrow := request()
	narrow.Name, narrow.CIDR = "web-1", netip.MustParsePrefix("192.0.2.0/24")
	narrow6 := request()
	narrow6.CIDR = netip.MustParsePrefix("fe80::/10")
	expires := now.Add(10 * time.Minute).Truncate(time.Second)
	for _, row := range []struct {
		name    string
		request jointoken.Request
		from    string
		now     time.Time
		taken   bool
	}{
		{"from anywhere", request(), "203.0.113.9", now, true},
		{"in its last moment", request(), "203.0.113.9", expires.Add(-1), true},
		{"at its expiry", request(), "203.0.113.9", expires, false},
		{"long after", request(), "203.0.113.9", expires.Add(time.Hour), false},
		{"from its network", narrow, "192.0.2.255", now, true},
		{"from its network, by IPv6", narrow, "::ffff:192.0.2.1", now, true},
		{"from outside", narrow, "192.0.3.1", now, false},
		{"from an address of the other kind", narrow, "2001:db8::1", now, false},
		{"from its network, on an interface", narrow6, "fe80::1%eth0", now, true},
		{"from outside, on an interface", narrow6, "2001:db8::1%eth0", now, false},
		{"from nowhere", narrow, "", now, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			kept, text, all := made(t, row.request)
			b := attest.Binding{Methods: []string{jointoken.Method}, TrustDomain: "example.org", NodeKey: []byte("node key")}
			payload, err := jointoken.NewAttestor(text).Attest(context.Background(), b)
			if err != nil {
				t.Fatal(err)
			}
			from, _ := netip.ParseAddr(row.from)
			got, err := jointoken.NewVerifier(all).Verify(context.Background(), attest.Claim{Binding: b, Payload: payload, From: from, Now: row.now})
			if !row.taken {
				if !fault.Is(err, fault.Unauthenticated) {
					t.Errorf("not refused: %+v %v", got, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			der, err := x509.MarshalPKIXPublicKey(kept.Key)
			if err != nil {
				t.Fatal(err)
			}
			want := attest.Result{Key: kept.ID, Assurance: attest.Bearer, EvidenceKey: der, Digest: sha256.Sum256(payload),
				Consumed: []attest.Use{{Kind: "join_token", Digest: sha256.Sum256([]byte(kept.ID)), Holder: sha256.Sum256([]byte("node key")),
					Expires: expires}}}
			if row.request.Name != "" {
				want.Selectors = []attest.KeyValue{{Key: "name", Value: "web-1"}}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Whoever guesses learns nothing: a token that is not there and one that is, badly signed, are answered alike.
func TestRefusalsLookAlike(t *testing.T) {
	kept, text, all := made(t, request())
	_, stranger, _ := made(t, request())
	forged := text
	forged.Seed = stranger.Seed
	said := map[string]bool{}
	for _, by := range []jointoken.Text{stranger, forged} {
		payload, err := jointoken.NewAttestor(by).Attest(context.Background(), attest.Binding{})
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []time.Time{now, kept.Expires.Add(time.Hour)} {
			_, err = jointoken.NewVerifier(all).Verify(context.Background(), attest.Claim{Payload: payload, Now: at})
			said[fmt.Sprint(fault.Status(err))] = true
		}
	}
	if len(said) != 1 {
		t.Errorf("answers differ: %v", said)
	}
}

// answers is a store with one answer.
type answers func() (attest.Token, error)

// Token gives it.
func (a answers) Token(context.Context, string) (attest.Token, error) { return a() }

// A store that does not answer has not refused anybody.
func TestVerifyWithoutStore(t *testing.T) {
	kept, text, _ := made(t, request())
	payload, err := jointoken.NewAttestor(text).Attest(context.Background(), attest.Binding{})
	if err != nil {
		t.Fatal(err)
	}
	other, short := kept, kept
	other.ID, short.Key = strings.Repeat("0", 32), kept.Key[:31]
	for name, answer := range map[string]answers{
		"it fails":                   func() (attest.Token, error) { return attest.Token{}, errors.New("disk") },
		"it is busy":                 func() (attest.Token, error) { return attest.Token{}, fault.New(fault.Unavailable, nil, "busy") },
		"it gives nothing":           func() (attest.Token, error) { return attest.Token{}, nil },
		"it gives another token":     func() (attest.Token, error) { return other, nil },
		"it gives a key that is cut": func() (attest.Token, error) { return short, nil },
	} {
		t.Run(name, func(t *testing.T) {
			_, err := jointoken.NewVerifier(answer).Verify(context.Background(), attest.Claim{Payload: payload, Now: now})
			if !fault.Is(err, fault.Unavailable) {
				t.Errorf("%v is %s", err, fault.KindOf(err))
			}
		})
	}
	for _, want := range []error{context.Canceled, context.DeadlineExceeded} {
		answer := answers(func() (attest.Token, error) { return attest.Token{}, fmt.Errorf("read: %w", want) })
		_, err := jointoken.NewVerifier(answer).Verify(context.Background(), attest.Claim{Payload: payload, Now: now})
		var e *fault.Error
		if !errors.Is(err, want) || errors.As(err, &e) {
			t.Errorf("%v, want %v as it is", err, want)
		}
	}
}

func TestSeedNeverPrints(t *testing.T) {
	_, text, _ := made(t, request())
	attestor := jointoken.NewAttestor(text)
	seed := text.Seed
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c"} {
		for _, value := range []any{seed, &seed, text, &text, attestor, *attestor, []any{seed}, map[string]any{"a": text}} {
			fmt.Fprintf(&out, verb+"\n", value)
		}
	}
	for _, handler := range []slog.Handler{slog.NewJSONHandler(&out, nil), slog.NewTextHandler(&out, nil)} {
		slog.New(handler).Info("x", "seed", seed, "text", text, "attestor", attestor, "pointer", &seed)
	}
	for _, value := range []any{seed, text, attestor} {
		data, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(data)
	}
	all := strings.ToLower(out.String())
	if !strings.Contains(all, "[key]") {
		t.Error("nothing prints as [key]")
	}
	decimal := strings.Trim(fmt.Sprint([]byte(seed[:8])), "[]")
	for form, secret := range map[string]string{"hex": fmt.Sprintf("%x", seed[:8]), "decimal": decimal, "commas": strings.ReplaceAll(decimal, " ", ","),
		"base64": strings.ToLower(base64.StdEncoding.EncodeToString(seed[:6])), "Go": strings.ToLower(strings.Trim(fmt.Sprintf("%#v", seed[:4]), "[]byte{}"))} {
		if strings.Contains(all, secret) {
			t.Errorf("the seed is shown in %s", form)
		}
	}
	if strings.Contains(out.String(), string(seed[:8])) {
		t.Error("the seed is shown as it is")
	}
}
