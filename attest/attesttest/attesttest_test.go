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

// finds ends the test unless a mistake breaks the rule that is there to find it.
func finds(t *testing.T, rule string, breaks func(m *method)) {
	t.Helper()
	t.Run(rule, func(t *testing.T) {
		m := sound()
		breaks(m)
		if broken := attesttest.Broken(attesttest.Pair{Attestor: m, Verifier: m}); !slices.Contains(broken, rule) {
			t.Errorf("only %q are found", broken)
		}
	})
}

// result is a verifier that gives another result.
func result(change func(*attest.Result)) func(*method) {
	return judges(func(m *method, c attest.Claim) (attest.Result, error) {
		if !ed25519.Verify(m.public(), c.Binding.Bytes(), c.Payload) {
			return attest.Result{}, refused()
		}
		r := m.result(c)
		change(&r)
		return r, nil
	})
}

// judges is a verifier that judges so.
func judges(judge func(*method, attest.Claim) (attest.Result, error)) func(*method) {
	return func(m *method) {
		m.verify = func(_ context.Context, c attest.Claim) (attest.Result, error) { return judge(m, c) }
	}
}

// takes gives the sound result if a signature over the binding is what was found in the payload.
func (m *method) takes(c attest.Claim, signature []byte) (attest.Result, error) {
	if len(signature) != ed25519.SignatureSize || !ed25519.Verify(m.public(), c.Binding.Bytes(), signature) {
		return attest.Result{}, refused()
	}
	return m.result(c), nil
}

func TestSuiteFindsResultsThatLack(t *testing.T) {
	const whole = "the result says who it is, how surely, and what it used up"
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
		finds(t, whole, result(change))
	}
}

func TestSuiteFindsVerdictsThatVary(t *testing.T) {
	var count atomic.Int64
	next := func() string { return hex.EncodeToString([]byte{byte(count.Add(1))}) }
	finds(t, "the same node has the same key over every connection", result(func(r *attest.Result) { r.Key = next() }))
	finds(t, "judging changes nothing", result(func(r *attest.Result) { r.Selectors[0].Value = next() }))
}

func TestSuiteFindsEvidenceThatIsNotBound(t *testing.T) {
	finds(t, "what the attestor makes the verifier takes", func(m *method) {
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
	finds(t, bound, signs(func(b attest.Binding) []byte { return b.Nonce }))
	finds(t, bound, signs(func(b attest.Binding) []byte { b.SVIDKey = nil; return b.Bytes() }))
	finds(t, bound, signs(func(b attest.Binding) []byte { b.TrustDomain = ""; return b.Bytes() }))
	finds(t, bound, signs(func(b attest.Binding) []byte { b.Methods = nil; return b.Bytes() }))
	finds(t, bound, signs(func(b attest.Binding) []byte { return slices.Concat(b.Exporter, b.Nonce, b.NodeKey, b.SVIDKey) }))
}

func TestSuiteFindsLaxReaders(t *testing.T) {
	finds(t, "evidence with more behind it is refused", judges(func(m *method, c attest.Claim) (attest.Result, error) {
		return m.takes(c, c.Payload[:min(len(c.Payload), ed25519.SignatureSize)])
	}))
	finds(t, "evidence cut off anywhere is refused", judges(func(m *method, c attest.Claim) (attest.Result, error) {
		if len(c.Payload) == 0 {
			return m.result(c), nil
		}
		return m.takes(c, c.Payload)
	}))
	finds(t, "noise, nothing and floods are refused", judges(func(m *method, c attest.Claim) (attest.Result, error) {
		if len(c.Payload) == 0 {
			return attest.Result{}, errors.New("no evidence") // of no kind: the caller would hear of an error of ours
		}
		return m.takes(c, c.Payload)
	}))
	finds(t, "a flipped bit is refused or changes nothing that was found", func(m *method) {
		plain := m.attests
		m.attests = func(b attest.Binding) ([]byte, error) {
			signature, err := plain(b)
			return append([]byte("web-1"), signature...), err // a name that nobody signed
		}
		m.verify = func(_ context.Context, c attest.Claim) (attest.Result, error) {
			name, signature := c.Payload[:min(5, len(c.Payload))], c.Payload[min(5, len(c.Payload)):]
			r, err := m.takes(c, signature)
			if err == nil {
				r.Selectors = []attest.KeyValue{{Key: "name", Value: hex.EncodeToString(name)}}
			}
			return r, err
		}
	})
}

func TestSuiteFindsUntidyVerifiers(t *testing.T) {
	finds(t, "judging changes nothing", func(m *method) {
		good := m.verify
		m.verify = func(ctx context.Context, c attest.Claim) (attest.Result, error) {
			r, err := good(ctx, c)
			if err == nil {
				c.Payload[0] ^= 1
			}
			return r, err
		}
	})
	finds(t, "many may be judged at once", func(m *method) {
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
	finds(t, "a cancelled call is no verdict", func(m *method) {
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
