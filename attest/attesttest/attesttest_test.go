package attesttest_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/attest/attesttest"
	"github.com/writ-dev/writ/internal/fault"
)

// A method is the smallest that passes: one key signs the binding.
type method struct {
	name    string
	key     ed25519.PrivateKey
	verify  func(context.Context, attest.Claim) (attest.Result, error)
	attests func(attest.Binding) ([]byte, error)
}

// Method is its name.
func (m *method) Method() string { return m.name }

// Attest makes evidence.
func (m *method) Attest(_ context.Context, b attest.Binding) ([]byte, error) { return m.attests(b) }

// Verify judges it.
func (m *method) Verify(ctx context.Context, c attest.Claim) (attest.Result, error) {
	return m.verify(ctx, c)
}

func sound() *method {
	m := &method{name: "sound", key: ed25519.NewKeyFromSeed(make([]byte, 32))}
	m.attests = func(b attest.Binding) ([]byte, error) { return ed25519.Sign(m.key, b.Bytes()), nil }
	m.verify = func(_ context.Context, c attest.Claim) (attest.Result, error) {
		if !ed25519.Verify(m.public(), c.Binding.Bytes(), c.Payload) {
			return attest.Result{}, refused()
		}
		return m.result(c), nil
	}
	return m
}

func (m *method) public() ed25519.PublicKey { return m.key.Public().(ed25519.PublicKey) }

func (m *method) result(c attest.Claim) attest.Result {
	return attest.Result{Key: hex.EncodeToString(m.public()), Selectors: []attest.KeyValue{{Key: "a", Value: "b"}}, Assurance: attest.KeyFile,
		EvidenceKey: m.public(), Digest: sha256.Sum256(c.Payload),
		Consumed: []attest.Use{{Kind: m.name, Digest: sha256.Sum256(m.public()), Holder: c.Binding.Holder(), Expires: c.Now.Add(time.Minute)}}}
}

func refused() error { return fault.New(fault.Unauthenticated, nil, "does not verify") }

func TestSoundMethodPasses(t *testing.T) {
	m := sound()
	attesttest.Run(t, attesttest.Pair{Attestor: m, Verifier: m})
	if broken := attesttest.Broken(attesttest.Pair{Attestor: m, Verifier: m}); len(broken) > 0 {
		t.Errorf("a sound method breaks %q", broken)
	}
}

// Each row is one mistake of a verifier, and the rule that finds it.
func TestSuiteFindsMistakes(t *testing.T) {
	finds := func(rule string, breaks func(m *method)) {
		t.Run(rule, func(t *testing.T) {
			m := sound()
			breaks(m)
			if broken := attesttest.Broken(attesttest.Pair{Attestor: m, Verifier: m}); !slices.Contains(broken, rule) {
				t.Errorf("only %q are found", broken)
			}
		})
	}
	const whole = "the result says who it is, how surely, and what it used up"
	result := func(change func(*attest.Result)) func(*method) {
		return func(m *method) {
			good := m.verify
			m.verify = func(ctx context.Context, c attest.Claim) (attest.Result, error) {
				r, err := good(ctx, c)
				if err == nil {
					change(&r)
				}
				return r, err
			}
		}
	}
	for _, change := range []func(*attest.Result){
		func(r *attest.Result) { r.Key = "" },
		func(r *attest.Result) { r.Key = "a/b" },
		func(r *attest.Result) { r.Key = ".." },
		func(r *attest.Result) { r.Assurance = attest.None },
		func(r *attest.Result) { r.Assurance, r.Consumed = attest.Bearer, nil },
		func(r *attest.Result) { r.EvidenceKey = nil },
		func(r *attest.Result) { r.Digest = [32]byte{} },
		func(r *attest.Result) { r.Until = time.Unix(1, 0) },
		func(r *attest.Result) { r.Selectors[0].Value = "" },
		func(r *attest.Result) { r.Selectors[0].Key = "a:b" },
		func(r *attest.Result) { r.Consumed[0].Kind = "other" },
		func(r *attest.Result) { r.Consumed[0].Holder = [32]byte{} },
		func(r *attest.Result) { r.Consumed[0].Digest = [32]byte{} },
		func(r *attest.Result) { r.Consumed[0].Expires = time.Unix(1, 0) },
	} {
		finds(whole, result(change))
	}
	var count atomic.Int64
	next := func() string { return hex.EncodeToString([]byte{byte(count.Add(1))}) }
	finds("the same node has the same key over every connection", result(func(r *attest.Result) { r.Key = next() }))
	finds("judging changes nothing", result(func(r *attest.Result) { r.Selectors[0].Value = next() }))
	finds("what the attestor makes the verifier takes", func(m *method) {
		m.attests = func(attest.Binding) ([]byte, error) { return []byte("guess"), nil }
	})
	signs := func(of func(attest.Binding) []byte) func(*method) {
		return func(m *method) {
			m.attests = func(b attest.Binding) ([]byte, error) { return ed25519.Sign(m.key, of(b)), nil }
			m.verify = func(_ context.Context, c attest.Claim) (attest.Result, error) {
				if !ed25519.Verify(m.public(), of(c.Binding), c.Payload) {
					return attest.Result{}, refused()
				}
				return m.result(c), nil
			}
		}
	}
	const bound = "evidence serves for its own binding only"
	finds(bound, signs(func(b attest.Binding) []byte { return b.Nonce }))
	finds(bound, signs(func(b attest.Binding) []byte { b.SVIDKey = nil; return b.Bytes() }))
	finds(bound, signs(func(b attest.Binding) []byte { b.TrustDomain = ""; return b.Bytes() }))
	finds(bound, signs(func(b attest.Binding) []byte { b.Methods = nil; return b.Bytes() }))
	finds(bound, signs(func(b attest.Binding) []byte { return slices.Concat(b.Exporter, b.Nonce, b.NodeKey, b.SVIDKey) }))
	judges := func(judge func(m *method, c attest.Claim) error) func(*method) {
		return func(m *method) {
			m.verify = func(_ context.Context, c attest.Claim) (attest.Result, error) {
				if err := judge(m, c); err != nil {
					return attest.Result{}, err
				}
				return m.result(c), nil
			}
		}
	}
	verifies := func(m *method, c attest.Claim, signature []byte) error {
		if len(signature) != ed25519.SignatureSize || !ed25519.Verify(m.public(), c.Binding.Bytes(), signature) {
			return refused()
		}
		return nil
	}
	finds("evidence with more behind it is refused", judges(func(m *method, c attest.Claim) error {
		return verifies(m, c, c.Payload[:min(len(c.Payload), ed25519.SignatureSize)])
	}))
	finds("evidence cut off anywhere is refused", judges(func(m *method, c attest.Claim) error {
		if len(c.Payload) == 0 {
			return nil
		}
		return verifies(m, c, c.Payload)
	}))
	finds("noise, nothing and floods are refused", judges(func(m *method, c attest.Claim) error {
		if len(c.Payload) == 0 {
			return errors.New("no evidence") // of no kind: the caller would hear of an error of ours
		}
		return verifies(m, c, c.Payload)
	}))
	finds("a flipped bit is refused or changes nothing that was found", func(m *method) {
		plain := m.attests
		m.attests = func(b attest.Binding) ([]byte, error) {
			signature, err := plain(b)
			return append([]byte("web-1"), signature...), err // a name that nobody signed
		}
		m.verify = func(_ context.Context, c attest.Claim) (attest.Result, error) {
			name, signature := c.Payload[:min(5, len(c.Payload))], c.Payload[min(5, len(c.Payload)):]
			if err := verifies(m, c, signature); err != nil {
				return attest.Result{}, err
			}
			r := m.result(c)
			r.Selectors = []attest.KeyValue{{Key: "name", Value: hex.EncodeToString(name)}}
			return r, nil
		}
	})
	finds("judging changes nothing", func(m *method) {
		good := m.verify
		m.verify = func(ctx context.Context, c attest.Claim) (attest.Result, error) {
			r, err := good(ctx, c)
			if err == nil {
				c.Payload[0] ^= 1
			}
			return r, err
		}
	})
	finds("many may be judged at once", func(m *method) {
		good := m.verify
		var last atomic.Pointer[attest.Binding] // of whichever call was last
		m.verify = func(ctx context.Context, c attest.Claim) (attest.Result, error) {
			mine := c.Binding
			last.Store(&mine)
			for range 1000 { // let another call in
				if last.Load() != &mine {
					break
				}
				runtime.Gosched()
			}
			c.Binding = *last.Load()
			return good(ctx, c)
		}
	})
	finds("a cancelled call is no verdict", func(m *method) {
		good := m.verify
		m.verify = func(ctx context.Context, c attest.Claim) (attest.Result, error) {
			if ctx.Err() != nil {
				return attest.Result{}, refused()
			}
			return good(ctx, c)
		}
	})
}

// What a verifier keeps must not change by judging.
func TestSuiteComparesState(t *testing.T) {
	m := sound()
	var seen atomic.Int64
	good := m.verify
	m.verify = func(ctx context.Context, c attest.Claim) (attest.Result, error) {
		seen.Add(1)
		return good(ctx, c)
	}
	broken := attesttest.Broken(attesttest.Pair{Attestor: m, Verifier: m, State: func() any { return seen.Load() }})
	if !slices.Contains(broken, "judging changes nothing") {
		t.Errorf("only %q are found", broken)
	}
}
