package x509pop_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"math/big"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/attest/attesttest"
	"github.com/writ-dev/writ/attest/x509pop"
	"github.com/writ-dev/writ/internal/durable"
	"github.com/writ-dev/writ/internal/fault"
)

func TestSuite(t *testing.T) {
	for _, kind := range []string{"RSA-2048", "P-256", "P-384", "Ed25519"} {
		t.Run(kind, func(t *testing.T) {
			root := issue(t, nil, keys["root"](), ca("root"))
			between := issue(t, root, keys["between"](), ca("between"))
			node := issue(t, between, keys[kind](), leaf)
			attestor, err := x509pop.NewAttestor(node.files(t))
			if err != nil {
				t.Fatal(err)
			}
			attesttest.Run(t, attesttest.Pair{Attestor: attestor, Verifier: verifier(t, root.cert), Now: now})
		})
	}
}

func binding() attest.Binding {
	return attest.Binding{Methods: []string{x509pop.Method}, TrustDomain: "example.org", Exporter: bytes.Repeat([]byte{1}, 32),
		Nonce: bytes.Repeat([]byte{2}, 32), NodeKey: []byte("node key"), SVIDKey: []byte("SVID key")}
}

// attested is what a verifier that trusts the holder's root says of its evidence.
func attested(t *testing.T, h *holder) (attest.Result, error) {
	t.Helper()
	attestor, err := x509pop.NewAttestor(h.files(t))
	if err != nil {
		t.Fatal(err)
	}
	payload, err := attestor.Attest(context.Background(), binding())
	if err != nil {
		t.Fatal(err)
	}
	return verifier(t, h.root()).Verify(context.Background(), attest.Claim{Binding: binding(), Payload: payload, Now: now})
}

// Each row breaks or bends one thing of a good chain: root, between, leaf.
func TestVerifyCertificates(t *testing.T) {
	as := func(use ...x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = use }
	}
	plain := func(*x509.Certificate) {}
	over := func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-2*time.Hour), now.Add(-time.Second) }
	early := func(c *x509.Certificate) { c.NotBefore = now.Add(time.Second) }
	for _, row := range []struct {
		name                string
		root, between, leaf func(*x509.Certificate)
		taken               bool
	}{
		{"all is well", plain, plain, plain, true},
		{"it says nothing of its use", plain, plain, both(as(), func(c *x509.Certificate) { c.KeyUsage = 0 }), true},
		{"it serves for anything", plain, plain, as(x509.ExtKeyUsageAny), true},
		{"it serves for clients and servers", plain, plain, as(x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth), true},
		{"it serves for servers", plain, plain, as(x509.ExtKeyUsageServerAuth), false},
		{"it signs code", plain, plain, as(x509.ExtKeyUsageCodeSigning), false},
		{"it serves for a use of its own", plain, plain, both(as(), func(c *x509.Certificate) {
			c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 2, 3}}
		}), false},
		{"the one between serves for servers only", plain, as(x509.ExtKeyUsageServerAuth), plain, false},
		{"its key may only encipher", plain, plain, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, false},
		{"it is a CA's", plain, plain, both(ca("web-1"), func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageDigitalSignature }), false},
		{"it expired", plain, plain, over, false},
		{"it ends now", plain, plain, func(c *x509.Certificate) { c.NotAfter = now }, true},
		{"it is not valid yet", plain, plain, early, false},
		{"the one between expired", plain, over, plain, false},
		{"the one between is not valid yet", plain, early, plain, false},
		{"the root expired", over, plain, plain, false},
		{"the root allows none between", func(c *x509.Certificate) { c.MaxPathLenZero = true }, plain, plain, false},
		{"the root allows one between", func(c *x509.Certificate) { c.MaxPathLen = 1 }, func(c *x509.Certificate) { c.MaxPathLenZero = true }, plain, true},
		{"the one between is no CA", plain, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, 0 }, plain, false},
		{"the one between may not sign certificates", plain, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }, plain, false},
		{"the one between allows other names only", plain, func(c *x509.Certificate) {
			c.PermittedDNSDomainsCritical, c.PermittedDNSDomains = true, []string{"other.example"}
		}, func(c *x509.Certificate) { c.DNSNames = []string{"web-1.example.org"} }, false},
		{"it has an extension that must be understood", plain, plain, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			root := issue(t, nil, keys["P-256"](), both(ca("root"), row.root))
			between := issue(t, root, keys["P-384"](), both(ca("between"), row.between))
			node := issue(t, between, keys["Ed25519"](), both(leaf, row.leaf))
			got, err := attested(t, node)
			if !row.taken {
				if !fault.Is(err, fault.Unauthenticated) {
					t.Errorf("not refused: %+v, %v", got, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !got.Until.Equal(node.cert.NotAfter) {
				t.Errorf("until %s, certificate ends %s", got.Until, node.cert.NotAfter)
			}
		})
	}
}

func TestVerifyRefusesOtherAuthorities(t *testing.T) {
	root := issue(t, nil, keys["P-256"](), ca("root"))
	twin := issue(t, nil, keys["P-384"](), ca("root")) // of the same name
	between := issue(t, root, keys["P-384"](), ca("between"))
	node := issue(t, between, keys["Ed25519"](), leaf)
	alone := issue(t, nil, keys["Ed25519"](), leaf)
	byNode := issue(t, node, keys["P-256"](), leaf) // a leaf that signs another
	for _, row := range []struct {
		name  string
		chain [][]byte
		key   crypto.Signer
		roots *x509.Certificate
		taken bool
	}{
		{"its own", node.sent(), node.key, root.cert, true},
		{"its own, the root sent too", append(node.sent(), root.cert.Raw), node.key, root.cert, true},
		{"its own, with strangers behind", append(node.sent(), twin.cert.Raw, alone.cert.Raw), node.key, root.cert, true},
		{"without what stands between", [][]byte{node.cert.Raw}, node.key, root.cert, false},
		{"another root", node.sent(), node.key, twin.cert, false},
		{"a root that the node brings", append(node.sent(), root.cert.Raw), node.key, twin.cert, false},
		{"signed by itself", [][]byte{alone.cert.Raw}, alone.key, root.cert, false},
		{"signed by a leaf", byNode.sent(), byNode.key, root.cert, false},
		{"the CA itself", [][]byte{between.cert.Raw}, between.key, root.cert, false},
		{"the root itself", [][]byte{root.cert.Raw}, root.key, root.cert, false},
		{"another's certificate", node.sent(), keys["P-256"](), root.cert, false},
		{"its own first, another's key", append([][]byte{node.cert.Raw}, byNode.cert.Raw, between.cert.Raw), byNode.key, root.cert, false},
		{"a certificate that does not read", append(node.sent(), []byte("noise")), node.key, root.cert, false},
		{"a certificate with a byte behind it", [][]byte{append(bytes.Clone(node.cert.Raw), 0), between.cert.Raw}, node.key, root.cert, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			payload := x509pop.Encode(row.chain, sign(t, row.key, binding().Bytes()))
			_, err := verifier(t, row.roots).Verify(context.Background(), attest.Claim{Binding: binding(), Payload: payload, Now: now})
			if row.taken != (err == nil) || err != nil && !fault.Is(err, fault.Unauthenticated) {
				t.Errorf("taken should be %t: %v", row.taken, err)
			}
		})
	}
}

// sign signs as an attestor does, with a key on P-256 or P-384 or an Ed25519 one.
func sign(t *testing.T, key crypto.Signer, message []byte) []byte {
	t.Helper()
	var opts crypto.SignerOpts = crypto.Hash(0)
	if public, ok := key.Public().(*ecdsa.PublicKey); ok {
		opts = map[elliptic.Curve]crypto.Hash{elliptic.P256(): crypto.SHA256, elliptic.P384(): crypto.SHA384}[public.Curve]
		hash := opts.HashFunc().New()
		hash.Write(message)
		message = hash.Sum(nil)
	}
	signature, err := key.Sign(rand.Reader, message, opts)
	if err != nil {
		t.Fatal(err)
	}
	return signature
}

// A weak key proves nothing, and a huge one costs too much, wherever in the chain it stands.
func TestVerifyRefusesKeys(t *testing.T) {
	huge := &rsa.PublicKey{N: new(big.Int).SetBit(new(big.Int).Lsh(big.NewInt(1), 8192), 0, 1), E: 65537} // 8193 bits; nobody has its key
	for name, do := range map[string]func(t *testing.T, root *holder) [][]byte{
		"an RSA key of 1024 bits": func(t *testing.T, root *holder) [][]byte { return issue(t, root, keys["RSA-1024"](), leaf).sent() },
		"curve P-224":             func(t *testing.T, root *holder) [][]byte { return issue(t, root, keys["P-224"](), leaf).sent() },
		"curve P-521":             func(t *testing.T, root *holder) [][]byte { return issue(t, root, keys["P-521"](), leaf).sent() },
		"an RSA key of 8193 bits": func(t *testing.T, root *holder) [][]byte { return [][]byte{certify(t, root, huge)} },
		"a small key between": func(t *testing.T, root *holder) [][]byte {
			return issue(t, issue(t, root, keys["RSA-1024"](), ca("between")), keys["P-256"](), leaf).sent()
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := issue(t, nil, keys["P-384"](), ca("root"))
			payload := x509pop.Encode(do(t, root), bytes.Repeat([]byte{1}, 64))
			_, err := verifier(t, root.cert).Verify(context.Background(), attest.Claim{Binding: binding(), Payload: payload, Now: now})
			if cause := errors.Unwrap(err); !fault.Is(err, fault.Unauthenticated) || cause == nil ||
				!strings.Contains(cause.Error(), "key in the chain has") && !strings.Contains(cause.Error(), "on curve") {
				t.Errorf("not refused for its key: %v", err)
			}
		})
	}
}

func certify(t *testing.T, by *holder, key crypto.PublicKey) []byte {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}
	leaf(template)
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, key, by.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// An RSA key signs in one way.
func TestVerifyRefusesOtherSignatures(t *testing.T) {
	root := issue(t, nil, keys["P-256"](), ca("root"))
	node := issue(t, root, keys["RSA-2048"](), leaf)
	sum256, sum512 := sha256.Sum256(binding().Bytes()), sha512.Sum512(binding().Bytes())
	for name, row := range map[string]struct {
		sum   []byte
		opts  crypto.SignerOpts
		taken bool
	}{
		"PSS, SHA-256, a salt of 32 bytes": {sum256[:], &rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA256}, true},
		"PSS with a salt of 20 bytes":      {sum256[:], &rsa.PSSOptions{SaltLength: 20, Hash: crypto.SHA256}, false},
		"PSS with SHA-512":                 {sum512[:], &rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA512}, false},
		"PKCS #1 v1.5":                     {sum256[:], crypto.SHA256, false},
	} {
		t.Run(name, func(t *testing.T) {
			signature, err := node.key.Sign(rand.Reader, row.sum, row.opts)
			if err != nil {
				t.Fatal(err)
			}
			payload := x509pop.Encode(node.sent(), signature)
			_, err = verifier(t, root.cert).Verify(context.Background(), attest.Claim{Binding: binding(), Payload: payload, Now: now})
			if row.taken != (err == nil) {
				t.Errorf("taken should be %t: %v", row.taken, err)
			}
		})
	}
}

func TestSelectors(t *testing.T) {
	root := issue(t, nil, keys["P-256"](), ca("root"))
	between := issue(t, root, keys["P-384"](), ca("between"))
	fingerprint := func(h *holder) string { sum := sha256.Sum256(h.cert.Raw); return hex.EncodeToString(sum[:]) }
	uri := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	names := func(names ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.Subject = pkix.Name{}
			for _, name := range names {
				c.Subject.ExtraNames = append(c.Subject.ExtraNames, pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: name})
			}
		}
	}
	for _, row := range []struct {
		name   string
		change func(*x509.Certificate)
		want   []attest.KeyValue
	}{
		{"a name", func(*x509.Certificate) {}, []attest.KeyValue{{Key: "subject", Value: "web-1"}}},
		{"no name", names(), nil},
		{"two names, of which readers would take either", names("web-1", "db-1"), nil},
		{"a name with a line end", names("web-1\nx509pop:subject:db-1"), nil},
		{"a name with colons", names("a:b:c"), []attest.KeyValue{{Key: "subject", Value: "a:b:c"}}},
		{"two URIs", func(c *x509.Certificate) { c.URIs = []*url.URL{uri("spiffe://old.org/web"), uri("urn:uuid:7")} },
			[]attest.KeyValue{{Key: "subject", Value: "web-1"}, {Key: "san", Value: "spiffe://old.org/web"}, {Key: "san", Value: "urn:uuid:7"}}},
		{"DNS names, which it says nothing of", func(c *x509.Certificate) { c.DNSNames = []string{"web-1.example.org"} },
			[]attest.KeyValue{{Key: "subject", Value: "web-1"}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			node := issue(t, between, keys["Ed25519"](), both(both(leaf, row.change), func(c *x509.Certificate) { c.SerialNumber = big.NewInt(0xabc) }))
			got, err := attested(t, node)
			if err != nil {
				t.Fatal(err)
			}
			want := append([]attest.KeyValue{{Key: "serial", Value: "abc"}}, row.want...)
			want = append(want, attest.KeyValue{Key: "ca", Value: fingerprint(between)}, attest.KeyValue{Key: "ca", Value: fingerprint(root)})
			if diff := cmp.Diff(want, got.Selectors); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A renewed certificate is the same node, another key is another.
func TestNodeIsItsKey(t *testing.T) {
	root := issue(t, nil, keys["P-256"](), ca("root"))
	other := issue(t, nil, keys["P-384"](), ca("other root"))
	first, err := attested(t, issue(t, root, keys["Ed25519"](), leaf))
	if err != nil {
		t.Fatal(err)
	}
	renewed, err := attested(t, issue(t, other, keys["Ed25519"](), leaf))
	if err != nil {
		t.Fatal(err)
	}
	another, err := attested(t, issue(t, root, keys["RSA-2048"](), leaf))
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(keys["Ed25519"]().Public())
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(der); first.Key != hex.EncodeToString(sum[:]) || !bytes.Equal(first.EvidenceKey, der) {
		t.Errorf("key %s is not the public key's digest", first.Key)
	}
	if renewed.Key != first.Key || !bytes.Equal(renewed.EvidenceKey, first.EvidenceKey) || another.Key == first.Key {
		t.Errorf("keys %s, renewed %s, another's %s", first.Key, renewed.Key, another.Key)
	}
	if first.Assurance != attest.KeyFile || !first.Reattestable || len(first.Consumed) != 0 {
		t.Errorf("result %+v", first)
	}
}

func TestNewVerifierRefuses(t *testing.T) {
	root := issue(t, nil, keys["P-256"](), ca("root"))
	node := issue(t, root, keys["Ed25519"](), leaf)
	for name, roots := range map[string][]byte{
		"nothing":                  nil,
		"text":                     []byte("roots"),
		"a leaf":                   certificates(node.cert.Raw),
		"a leaf behind a root":     certificates(root.cert.Raw, node.cert.Raw),
		"a certificate cut off":    certificates(root.cert.Raw[:100]),
		"a key":                    bytes.ReplaceAll(certificates(root.cert.Raw), []byte("CERTIFICATE"), []byte("PRIVATE KEY")),
		"a trusted certificate":    bytes.ReplaceAll(certificates(root.cert.Raw), []byte("CERTIFICATE"), []byte("TRUSTED CERTIFICATE")),
		"a root that says no CA":   certificates(issue(t, nil, keys["P-384"](), func(c *x509.Certificate) { c.BasicConstraintsValid = true }).cert.Raw),
		"a root that says nothing": certificates(issue(t, nil, keys["P-384"](), func(*x509.Certificate) {}).cert.Raw),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := x509pop.NewVerifier(x509pop.VerifierConfig{Roots: roots}); err == nil {
				t.Error("taken")
			}
		})
	}
}

// What no verifier would take is said when the agent starts.
func TestNewAttestorRefuses(t *testing.T) {
	root := issue(t, nil, keys["P-256"](), ca("root"))
	node := issue(t, root, keys["Ed25519"](), leaf)
	for name, change := range map[string]func(t *testing.T, c *x509pop.AttestorConfig){
		"no certificate": func(t *testing.T, c *x509pop.AttestorConfig) { c.CertFile += ".gone" },
		"no key":         func(t *testing.T, c *x509pop.AttestorConfig) { c.KeyFile += ".gone" },
		"another's key": func(t *testing.T, c *x509pop.AttestorConfig) {
			c.KeyFile = issue(t, root, keys["P-256"](), leaf).files(t).KeyFile
		},
		"a certificate for key": func(t *testing.T, c *x509pop.AttestorConfig) { c.KeyFile = c.CertFile },
		"an empty certificate":  func(t *testing.T, c *x509pop.AttestorConfig) { write(t, c.CertFile, nil) },
		"nine certificates": func(t *testing.T, c *x509pop.AttestorConfig) {
			write(t, c.CertFile, bytes.Repeat(certificates(node.cert.Raw), 9))
		},
		"a key on curve P-521":   func(t *testing.T, c *x509pop.AttestorConfig) { *c = issue(t, root, keys["P-521"](), leaf).files(t) },
		"an RSA key of 1024 bit": func(t *testing.T, c *x509pop.AttestorConfig) { *c = issue(t, root, keys["RSA-1024"](), leaf).files(t) },
	} {
		t.Run(name, func(t *testing.T) {
			c := node.files(t)
			change(t, &c)
			if _, err := x509pop.NewAttestor(c); err == nil {
				t.Error("taken")
			} else if strings.Contains(err.Error(), "PRIVATE KEY") {
				t.Errorf("shows the key: %v", err)
			}
		})
	}
	t.Run("a key that others may read", func(t *testing.T) {
		c := node.files(t)
		if err := os.Chmod(c.KeyFile, 0o640); err != nil {
			t.Fatal(err)
		}
		_, err := x509pop.NewAttestor(c)
		var wide *durable.WideModeError
		if !errors.As(err, &wide) || wide.Path != c.KeyFile {
			t.Errorf("taken, or for another reason: %v", err)
		}
	})
}

func TestAttestorTakesRenewedCertificate(t *testing.T) {
	root := issue(t, nil, keys["P-256"](), ca("root"))
	old := issue(t, root, keys["Ed25519"](), both(leaf, func(c *x509.Certificate) { c.NotAfter = now.Add(20 * time.Minute) }))
	renewed := issue(t, root, keys["Ed25519"](), both(leaf, func(c *x509.Certificate) {
		c.NotAfter = now.Add(50 * time.Minute)
	}))
	c := old.files(t)
	attestor, err := x509pop.NewAttestor(c)
	if err != nil {
		t.Fatal(err)
	}
	write(t, c.CertFile, certificates(renewed.sent()...))
	payload, err := attestor.Attest(context.Background(), binding())
	if err != nil {
		t.Fatal(err)
	}
	got, err := verifier(t, root.cert).Verify(context.Background(), attest.Claim{Binding: binding(), Payload: payload, Now: now.Add(30 * time.Minute)})
	if err != nil || !got.Until.Equal(renewed.cert.NotAfter) {
		t.Errorf("until %s: %v", got.Until, err)
	}
	if err := os.Remove(c.CertFile); err != nil {
		t.Fatal(err)
	}
	if _, err := attestor.Attest(context.Background(), binding()); err == nil {
		t.Error("attests without a certificate")
	}
}

// The refused caller hears one sentence, whatever was wrong.
func TestRefusalsLookAlike(t *testing.T) {
	root := issue(t, nil, keys["P-256"](), ca("root"))
	node := issue(t, root, keys["Ed25519"](), leaf)
	said := map[string]bool{}
	for _, payload := range [][]byte{nil, []byte("noise"), x509pop.Encode(node.sent(), []byte("no signature")), x509pop.Encode([][]byte{[]byte("noise")}, []byte("x"))} {
		_, err := verifier(t, root.cert).Verify(context.Background(), attest.Claim{Binding: binding(), Payload: payload, Now: now})
		said[fault.Status(err).Error()] = true
	}
	if len(said) != 1 {
		t.Errorf("answers differ: %v", said)
	}
}

// seeds are the same in every process: fuzzing has several.
func seeds(t testing.TB) (payloads [][]byte, v *x509pop.Verifier, keyDigest string) {
	key := func(n byte) crypto.Signer { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize)) }
	serial := func(n int64) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.SerialNumber = big.NewInt(n) }
	}
	root := issue(t, nil, key(1), both(ca("root"), serial(1)))
	node := issue(t, issue(t, root, key(2), both(ca("between"), serial(2))), key(3), both(leaf, serial(3)))
	signature, err := node.key.Sign(rand.Reader, binding().Bytes(), crypto.Hash(0))
	if err != nil {
		t.Fatal(err)
	}
	good := x509pop.Encode(node.sent(), signature)
	der, err := x509.MarshalPKIXPublicKey(node.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	return [][]byte{good, good[:len(good)-1], append(bytes.Clone(good), 0), {0}, {1, 0, 0, 0, 0}, {9}, {1, 0xff, 0xff, 0xff, 0xff},
		x509pop.Encode(node.sent()[:1], signature)}, verifier(t, root.cert), hex.EncodeToString(sum[:])
}

// A payload has one form.
func FuzzPayload(f *testing.F) {
	payloads, _, _ := seeds(f)
	for _, payload := range payloads {
		f.Add(payload)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if again, ok := x509pop.Reencode(data); ok && !bytes.Equal(again, data) {
			t.Errorf("%x is written as %x", data, again)
		}
	})
}

// Nobody signs the binding without the key: what is taken names the one node that did.
func FuzzVerify(f *testing.F) {
	payloads, v, key := seeds(f)
	for _, payload := range payloads {
		f.Add(payload)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := v.Verify(context.Background(), attest.Claim{Binding: binding(), Payload: data, Now: now})
		switch {
		case err == nil && got.Key != key:
			t.Errorf("%x is taken as %s", data, got.Key)
		case err != nil && !fault.Is(err, fault.Unauthenticated):
			t.Errorf("%x: %v is %s", data, err, fault.KindOf(err))
		}
	})
}
