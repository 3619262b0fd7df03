package attest_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/writ-dev/writ/attest"
)

func binding() attest.Binding {
	return attest.Binding{Methods: []string{"tpm", "k8s"}, TrustDomain: "example.org", Exporter: bytes.Repeat([]byte{1}, 32),
		Nonce: bytes.Repeat([]byte{2}, 32), NodeKey: []byte("node key"), SVIDKey: []byte("SVID key")}
}

// The signed form is spoken between versions: it is these bytes and no others.
func TestBindingBytes(t *testing.T) {
	want := "" +
		"0000000e" + hex.EncodeToString([]byte("writ/attest/v1")) +
		"00000007" + hex.EncodeToString([]byte("tpm+k8s")) +
		"0000000b" + hex.EncodeToString([]byte("example.org")) +
		"00000020" + strings.Repeat("01", 32) +
		"00000020" + strings.Repeat("02", 32) +
		"00000008" + hex.EncodeToString([]byte("node key")) +
		"00000008" + hex.EncodeToString([]byte("SVID key"))
	if got := hex.EncodeToString(binding().Bytes()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if binding().Digest() != sha256.Sum256(binding().Bytes()) || binding().Holder() != sha256.Sum256([]byte("node key")) {
		t.Error("digest or holder is not the SHA-256 of its bytes")
	}
}

func TestEachPartChangesTheBinding(t *testing.T) {
	for name, change := range map[string]func(*attest.Binding){
		"methods":               func(b *attest.Binding) { b.Methods = []string{"tpm"} },
		"the order of methods":  func(b *attest.Binding) { b.Methods = []string{"k8s", "tpm"} },
		"renewal":               func(b *attest.Binding) { b.Methods = []string{attest.Renewal} },
		"trust domain":          func(b *attest.Binding) { b.TrustDomain = "example.com" },
		"connection":            func(b *attest.Binding) { b.Exporter = bytes.Repeat([]byte{3}, 32) },
		"nonce":                 func(b *attest.Binding) { b.Nonce = bytes.Repeat([]byte{3}, 32) },
		"node key":              func(b *attest.Binding) { b.NodeKey = []byte("mode key") },
		"SVID key":              func(b *attest.Binding) { b.SVIDKey = []byte("TVID key") },
		"keys exchanged":        func(b *attest.Binding) { b.NodeKey, b.SVIDKey = b.SVIDKey, b.NodeKey },
		"nonce and connection":  func(b *attest.Binding) { b.Nonce, b.Exporter = b.Exporter, b.Nonce },
		"a byte moved from key": func(b *attest.Binding) { b.NodeKey, b.SVIDKey = []byte("node ke"), []byte("ySVID key") },
		"a part left out":       func(b *attest.Binding) { b.Nonce = nil },
	} {
		t.Run(name, func(t *testing.T) {
			b := binding()
			change(&b)
			if bytes.Equal(b.Bytes(), binding().Bytes()) || b.Digest() == binding().Digest() {
				t.Error("signs the same bytes")
			}
		})
	}
}

// Whatever the parts hold, each is read back from the signed form as it was: no two bindings sign the same bytes.
func TestBindingLengthsDelimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		part := rapid.OneOf(rapid.SliceOfN(rapid.Byte(), 0, 40), rapid.SampledFrom([][]byte{{}, {0}, {0, 0, 0, 4}, {0, 0, 0, 0, 0, 0, 0, 0}}))
		b := attest.Binding{Methods: []string{rapid.String().Draw(t, "method")}, TrustDomain: rapid.String().Draw(t, "trust domain"),
			Exporter: part.Draw(t, "exporter"), Nonce: part.Draw(t, "nonce"), NodeKey: part.Draw(t, "node key"), SVIDKey: part.Draw(t, "SVID key")}
		want := [][]byte{[]byte("writ/attest/v1"), []byte(b.Methods[0]), []byte(b.TrustDomain), b.Exporter, b.Nonce, b.NodeKey, b.SVIDKey}
		rest := b.Bytes()
		for i, part := range want {
			if len(rest) < 4 || uint32(len(rest)-4) < binary.BigEndian.Uint32(rest) {
				t.Fatalf("cut off before part %d", i)
			}
			n := 4 + binary.BigEndian.Uint32(rest)
			if !bytes.Equal(rest[4:n], part) {
				t.Fatalf("part %d is %q, want %q", i, rest[4:n], part)
			}
			rest = rest[n:]
		}
		if len(rest) > 0 {
			t.Fatalf("%q is left over", rest)
		}
	})
}

func TestParseSelector(t *testing.T) {
	for text, want := range map[string]attest.Selector{
		"unix:uid:1000":                          {Method: "unix", Key: "uid", Value: "1000"},
		"x509pop:san:spiffe://example.org:1/a:b": {Method: "x509pop", Key: "san", Value: "spiffe://example.org:1/a:b"},
		"unix:path:/opt/größe und so":            {Method: "unix", Key: "path", Value: "/opt/größe und so"},
		"a:b::":                                  {Method: "a", Key: "b", Value: ":"},
	} {
		got, err := attest.ParseSelector(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "unix", "unix:uid", "unix:uid:", ":uid:1000", "unix::1000", "::", ":::", "unix:uid:1\n", "unix:uid:\x00", "unix:u\tid:1",
		"unix:path:/a\x1b[31m", "unix:path:/a\x7f", "un\rix:uid:1"} {
		if got, err := attest.ParseSelector(text); err == nil {
			t.Errorf("%q is taken as %+v", text, got)
		}
	}
}

func FuzzParseSelector(f *testing.F) {
	for _, text := range []string{"unix:uid:1000", "a:b::", "a::b", "a:b:c\n", "x509pop:san:spiffe://a/b", "\xff:\xff:\xff"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := attest.ParseSelector(text)
		if err != nil {
			if s != (attest.Selector{}) {
				t.Errorf("refused and given: %+v", s)
			}
			return
		}
		if s.String() != text || s.Method == "" || s.Key == "" || s.Value == "" || strings.Contains(s.Method+s.Key, ":") || strings.ContainsAny(text, "\x00\n\r\x1b\x7f") {
			t.Errorf("%q is taken as %+v", text, s)
		}
	})
}

func TestSelectorsOfAMethod(t *testing.T) {
	found := []attest.KeyValue{{Key: "uid", Value: "2"}, {Key: "gid", Value: "10"}, {Key: "uid", Value: "2"}, {Key: "gid", Value: "1"}}
	want := []attest.Selector{{Method: "unix", Key: "gid", Value: "1"}, {Method: "unix", Key: "gid", Value: "10"}, {Method: "unix", Key: "uid", Value: "2"}}
	got := attest.Of("unix", found)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if !slices.IsSortedFunc(got, attest.Selector.Compare) {
		t.Error("not sorted as Compare says")
	}
	if got := attest.Of("unix", nil); len(got) != 0 {
		t.Errorf("of nothing: %v", got)
	}
}
