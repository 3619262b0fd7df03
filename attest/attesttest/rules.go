package attesttest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
)

// A suite is a pair and one binding for it.
type suite struct {
	Pair
	binding attest.Binding
}

func newSuite(p Pair) suite {
	if !p.From.IsValid() {
		p.From = netip.MustParseAddr("192.0.2.1")
	}
	if p.Now.IsZero() {
		p.Now = time.Now()
	}
	if p.State == nil {
		p.State = func() any { return nil }
	}
	return suite{p, attest.Binding{
		Methods: []string{p.Attestor.Method()}, TrustDomain: "example.org", Exporter: noise(attest.NonceSize),
		Nonce: noise(attest.NonceSize), NodeKey: publicKey(), SVIDKey: publicKey(),
	}}
}

func noise(n int) []byte {
	out := make([]byte, n)
	_, _ = rand.Read(out) // never fails
	return out
}

func publicKey() []byte {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return noise(91) // no verifier looks into it
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return noise(91)
	}
	return der
}

// evidence is what the attestor makes for a binding.
func (s suite) evidence(b attest.Binding) ([]byte, error) {
	payload, err := s.Attestor.Attest(context.Background(), b)
	if err != nil {
		return nil, fmt.Errorf("attest: %w", err)
	}
	return payload, nil
}

func (s suite) verify(b attest.Binding, payload []byte) (attest.Result, error) {
	return s.Verifier.Verify(context.Background(), attest.Claim{Binding: b, Payload: payload, From: s.From, Now: s.Now})
}

// refuses is nil if the payload is refused, and of the right kind: what does not verify is Unauthenticated.
func (s suite) refuses(what string, b attest.Binding, payload []byte) error {
	result, err := s.verify(b, payload)
	if err == nil {
		return fmt.Errorf("%s: accepted as %q", what, result.Key)
	}
	if !fault.Is(err, fault.Unauthenticated) {
		return fmt.Errorf("%s: %w is %s, want unauthenticated", what, err, fault.KindOf(err))
	}
	return nil
}

// own gives evidence for the suite's binding with its verdict.
func (s suite) own() ([]byte, attest.Result, error) {
	payload, err := s.evidence(s.binding)
	if err != nil {
		return nil, attest.Result{}, err
	}
	result, err := s.verify(s.binding, payload)
	if err != nil {
		return nil, attest.Result{}, fmt.Errorf("own evidence: %w", err)
	}
	return payload, result, nil
}

func sameMethod(s suite) error {
	if a, v := s.Attestor.Method(), s.Verifier.Method(); a != v || a == "" {
		return fmt.Errorf("attestor %q, verifier %q", a, v)
	}
	return nil
}

func takesItsOwn(s suite) error {
	_, _, err := s.own()
	return err
}

// keyAlphabet is what a path segment of a SPIFFE ID may hold.
const keyAlphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"

func resultIsWhole(s suite) error {
	_, r, err := s.own()
	if err != nil {
		return err
	}
	var errs []error
	refuse := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	refuse(r.Key == "" || strings.Trim(r.Key, keyAlphabet) != "" || strings.Trim(r.Key, ".") == "", "key %q is no path segment", r.Key)
	refuse(r.Assurance < attest.Bearer || r.Assurance > attest.Hardware, "assurance %d", r.Assurance)
	refuse(r.Assurance == attest.Bearer && len(r.Consumed) == 0, "bearer evidence uses nothing up")
	refuse(len(r.EvidenceKey) == 0, "nothing that a ban could cover")
	refuse(r.Digest == [32]byte{}, "no digest for the audit record")
	refuse(!r.Until.IsZero() && !r.Until.After(s.Now), "evidence ended at %s, before it was judged", r.Until)
	for _, kv := range r.Selectors {
		_, err := attest.ParseSelector(s.Verifier.Method() + ":" + kv.Key + ":" + kv.Value)
		refuse(err != nil || strings.Contains(kv.Key, ":"), "selector %q: %v", kv, err)
	}
	for _, use := range r.Consumed {
		refuse(use.Kind != s.Verifier.Method(), "use of kind %q", use.Kind)
		refuse(use.Digest == [32]byte{}, "use without a digest")
		refuse(use.Holder != s.binding.Holder(), "use is not held by this node key")
		refuse(!use.Expires.After(s.Now), "use expires at %s, before it was judged", use.Expires)
	}
	return errors.Join(errs...)
}

func keyIsStable(s suite) error {
	_, first, err := s.own()
	if err != nil {
		return err
	}
	other := newSuite(s.Pair)
	_, second, err := other.own()
	if err != nil {
		return err
	}
	if first.Key != second.Key || !bytes.Equal(first.EvidenceKey, second.EvidenceKey) {
		return fmt.Errorf("key %q, then %q", first.Key, second.Key)
	}
	return nil
}

func changesNothing(s suite) error {
	payload, err := s.evidence(s.binding)
	if err != nil {
		return err
	}
	state, payloadWas, bindingWas := s.State(), bytes.Clone(payload), s.binding.Bytes()
	first, err := s.verify(s.binding, payload)
	if err != nil {
		return err
	}
	second, err := s.verify(s.binding, payload)
	if err != nil {
		return fmt.Errorf("judged a second time: %w", err)
	}
	_ = s.refuses("with a wrong nonce", otherBindings(s.binding)["another nonce"], payload)
	if diff := cmp.Diff(first, second); diff != "" {
		return fmt.Errorf("a second verdict differs: %s", diff)
	}
	if !bytes.Equal(payload, payloadWas) || !bytes.Equal(s.binding.Bytes(), bindingWas) {
		return errors.New("the claim was written to")
	}
	if diff := cmp.Diff(state, s.State(), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		return fmt.Errorf("state changed: %s", diff)
	}
	return nil
}

// otherBindings are what evidence for b could be replayed or relayed to.
func otherBindings(b attest.Binding) map[string]attest.Binding {
	change := func(f func(*attest.Binding)) attest.Binding {
		o := b
		f(&o)
		return o
	}
	return map[string]attest.Binding{
		"another nonce":        change(func(o *attest.Binding) { o.Nonce = noise(attest.NonceSize) }),
		"another connection":   change(func(o *attest.Binding) { o.Exporter = noise(attest.NonceSize) }),
		"another node key":     change(func(o *attest.Binding) { o.NodeKey = publicKey() }),
		"another SVID key":     change(func(o *attest.Binding) { o.SVIDKey = publicKey() }),
		"another trust domain": change(func(o *attest.Binding) { o.TrustDomain = "example.com" }),
		"another method":       change(func(o *attest.Binding) { o.Methods = []string{"other"} }),
		"one method more":      change(func(o *attest.Binding) { o.Methods = append(slices.Clone(b.Methods), "other") }),
		"the keys exchanged":   change(func(o *attest.Binding) { o.NodeKey, o.SVIDKey = b.SVIDKey, b.NodeKey }),
		"a byte moved between fields": change(func(o *attest.Binding) {
			o.Exporter, o.Nonce = b.Exporter[:len(b.Exporter)-1], append([]byte{b.Exporter[len(b.Exporter)-1]}, b.Nonce...)
		}),
		"no nonce":  change(func(o *attest.Binding) { o.Nonce = nil }),
		"no fields": {},
	}
}

func boundToItsBinding(s suite) error {
	payload, _, err := s.own()
	if err != nil {
		return err
	}
	var errs []error
	for name, b := range otherBindings(s.binding) {
		errs = append(errs, s.refuses(name, b, payload))
	}
	return errors.Join(errs...)
}

func refusesPrefixes(s suite) error {
	payload, _, err := s.own()
	if err != nil {
		return err
	}
	for n := range payload {
		if err := s.refuses(fmt.Sprintf("%d of %d bytes", n, len(payload)), s.binding, payload[:n:n]); err != nil {
			return err
		}
	}
	return nil
}

func refusesSuffixes(s suite) error {
	payload, _, err := s.own()
	if err != nil {
		return err
	}
	for name, more := range map[string][]byte{"a zero": {0}, "itself": payload, "a line end": []byte("\n"), "a megabyte": make([]byte, 1<<20)} {
		if err := s.refuses("followed by "+name, s.binding, slices.Concat(payload, more)); err != nil {
			return err
		}
	}
	return nil
}

// refusesFlips allows for what evidence carries without need, such as a root at the end of a chain: but then the verdict must be
// the same but for the digest.
func refusesFlips(s suite) error {
	payload, want, err := s.own()
	if err != nil {
		return err
	}
	want.Digest = [32]byte{}
	for i := range payload {
		changed := bytes.Clone(payload)
		changed[i] ^= 1 << (i % 8)
		got, err := s.verify(s.binding, changed)
		if err == nil {
			got.Digest = [32]byte{}
			if diff := cmp.Diff(want, got); diff != "" {
				return fmt.Errorf("byte %d: accepted, and finds something else: %s", i, diff)
			}
		} else if !fault.Is(err, fault.Unauthenticated) {
			return fmt.Errorf("byte %d: %w is %s, want unauthenticated", i, err, fault.KindOf(err))
		}
	}
	return nil
}

func refusesNoise(s suite) error {
	errs := []error{s.refuses("nil", s.binding, nil), s.refuses("empty", s.binding, []byte{}),
		s.refuses("sixteen megabytes", s.binding, make([]byte, 16<<20))}
	for n := range 300 {
		errs = append(errs, s.refuses(fmt.Sprintf("%d random bytes", n), s.binding, noise(n)))
	}
	return errors.Join(errs...)
}

func judgesConcurrently(s suite) error {
	payload, want, err := s.own()
	if err != nil {
		return err
	}
	wrong := otherBindings(s.binding)["another node key"]
	errs := make([]error, 32)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() {
			if i%2 == 0 {
				errs[i] = s.refuses("another node key", wrong, payload)
				return
			}
			got, err := s.verify(s.binding, payload)
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				errs[i] = fmt.Errorf("verdict differs: %w %s", err, diff)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func cancelled(s suite) error {
	payload, _, err := s.own()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = s.Verifier.Verify(ctx, attest.Claim{Binding: s.binding, Payload: payload, From: s.From, Now: s.Now})
	if err == nil || errors.Is(err, context.Canceled) || fault.Is(err, fault.Unavailable) {
		return nil
	}
	return fmt.Errorf("good evidence on a cancelled call: %w", err)
}
