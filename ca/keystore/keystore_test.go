package keystore_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/writ-dev/writ/ca/keystore"
	"github.com/writ-dev/writ/internal/durable"
	"github.com/writ-dev/writ/internal/fault"
)

// TestStores is what every keystore owes; the next engine is one more row.
func TestStores(t *testing.T) {
	engines := map[string]func(*testing.T) keystore.Store{
		"memory": func(*testing.T) keystore.Store { return keystore.Memory() },
		"disk":   func(t *testing.T) keystore.Store { return onDisk(t, filepath.Join(t.TempDir(), "keys")) },
	}
	for name, open := range engines {
		t.Run(name, func(t *testing.T) {
			t.Run("a created key signs and is loaded again", func(t *testing.T) { createdKeySigns(t, open(t)) })
			t.Run("a name is given once, however many ask", func(t *testing.T) { nameGivenOnce(t, open(t)) })
			t.Run("a key that is not there is not found", func(t *testing.T) { missingKey(t, open(t)) })
			t.Run("a removed key is gone and its name free", func(t *testing.T) { removedKey(t, open(t)) })
			t.Run("a name cannot leave the store", func(t *testing.T) { badNames(t, open(t)) })
		})
	}
}

// A store of another kind makes what it is for, and loads what was there before it was for that.
func TestKinds(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "keys")
	must(onDisk(t, folder).Create(t.Context(), "old"))(t)
	for name, s := range map[string]keystore.Store{"memory": keystore.MemoryFor(keystore.RSA2048), "disk": must(keystore.DiskFor(keystore.RSA2048, folder))(t)} {
		created := must(s.Create(t.Context(), "jwt-1"))(t)
		public, ok := created.Public().(*rsa.PublicKey)
		if !ok || public.N.BitLen() != 2048 {
			t.Fatalf("%s: key is %T", name, created.Public())
		}
		if loaded := must(s.Load(t.Context(), "jwt-1"))(t); !public.Equal(loaded.Public()) {
			t.Errorf("%s: another key is loaded", name)
		}
		if old, err := s.Load(t.Context(), "old"); name == "disk" && (err != nil || public.Equal(old.Public())) {
			t.Errorf("the key from before is %v, %v", old, err)
		}
	}
}

func createdKeySigns(t *testing.T, s keystore.Store) {
	created := must(s.Create(t.Context(), "root-1"))(t)
	public, ok := created.Public().(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		t.Fatalf("key is %T, not ECDSA P-256", created.Public())
	}
	loaded := must(s.Load(t.Context(), "root-1"))(t)
	digest := sha256.Sum256([]byte("to be signed"))
	signature := must(loaded.Sign(rand.Reader, digest[:], crypto.SHA256))(t)
	if !ecdsa.VerifyASN1(public, digest[:], signature) {
		t.Error("the loaded key's signature is not the created key's")
	}
}

func nameGivenOnce(t *testing.T, s keystore.Store) {
	var wait sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wait.Go(func() { _, errs[i] = s.Create(t.Context(), "root-1") })
	}
	wait.Wait()
	made := 0
	for _, err := range errs {
		switch {
		case err == nil:
			made++
		case !fault.Is(err, fault.Conflict):
			t.Errorf("Create of a taken name: %v, want a conflict", err)
		}
	}
	if made != 1 {
		t.Errorf("%d keys were made under one name", made)
	}
}

func missingKey(t *testing.T, s keystore.Store) {
	if _, err := s.Load(t.Context(), "root-1"); !fault.Is(err, fault.NotFound) {
		t.Errorf("Load = %v, want not found", err)
	}
	if err := s.Remove(t.Context(), "root-1"); err != nil {
		t.Errorf("Remove = %v", err)
	}
}

func removedKey(t *testing.T, s keystore.Store) {
	first := must(s.Create(t.Context(), "root-1"))(t)
	if err := s.Remove(t.Context(), "root-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(t.Context(), "root-1"); !fault.Is(err, fault.NotFound) {
		t.Errorf("Load = %v, want not found", err)
	}
	second := must(s.Create(t.Context(), "root-1"))(t)
	if first.Public().(*ecdsa.PublicKey).Equal(second.Public()) {
		t.Error("the removed key came back")
	}
}

func badNames(t *testing.T, s keystore.Store) {
	for _, name := range []string{"", "..", "../root", "a/b", "Root", ".root", "root.pem", "-x", "a\x00b", strings.Repeat("a", 65)} {
		if _, err := s.Create(t.Context(), name); err == nil {
			t.Errorf("Create(%q) made a key", name)
		}
		if _, err := s.Load(t.Context(), name); err == nil || fault.Is(err, fault.NotFound) {
			t.Errorf("Load(%q) = %v, want the name to be refused", name, err)
		}
		if err := s.Remove(t.Context(), name); err == nil {
			t.Errorf("Remove(%q) went on", name)
		}
	}
}

func TestDiskKeysOutliveTheStore(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "keys")
	created := must(onDisk(t, folder).Create(t.Context(), "root-1"))(t)
	info := must(os.Stat(filepath.Join(folder, "root-1.pem")))(t)
	if info.Mode() != 0o600 {
		t.Errorf("key file has mode %04o", info.Mode())
	}
	text := must(os.ReadFile(filepath.Join(folder, "root-1.pem")))(t)
	if !strings.HasPrefix(string(text), "-----BEGIN PRIVATE KEY-----\n") {
		t.Error("key file is not PKCS#8 PEM")
	}
	loaded := must(onDisk(t, folder).Load(t.Context(), "root-1"))(t)
	if !loaded.Public().(*ecdsa.PublicKey).Equal(created.Public()) {
		t.Error("another store loads another key")
	}
}

func TestDiskRefusesWideModes(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "keys")
	s := onDisk(t, folder)
	must(s.Create(t.Context(), "root-1"))(t)
	path := filepath.Join(folder, "root-1.pem")
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o660, 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := s.Load(t.Context(), "root-1")
		wantWide(t, err, path)
	}
	if err := os.Chmod(folder, 0o750); err != nil {
		t.Fatal(err)
	}
	_, err := keystore.Disk(folder)
	wantWide(t, err, folder)
}

func wantWide(t *testing.T, err error, path string) {
	t.Helper()
	var f *fault.Error
	var wide *durable.WideModeError
	if !errors.As(err, &f) || f.Code != fault.WideMode || !errors.As(err, &wide) || wide.Path != path {
		t.Errorf("error = %v, want %s naming %s", err, fault.WideMode, path)
	}
}

func TestDiskRefusesWhatIsNoKey(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "keys")
	s := onDisk(t, folder)
	for what, text := range map[string]string{
		"empty":     "",
		"noise":     "\x00\x01\x02",
		"a public":  "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----\n",
		"encrypted": "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n",
	} {
		if err := os.WriteFile(filepath.Join(folder, "root-1.pem"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Load(t.Context(), "root-1"); err == nil || fault.Is(err, fault.NotFound) {
			t.Errorf("%s: Load = %v, want the file to be refused", what, err)
		}
	}
}

func TestOpen(t *testing.T) {
	rows := []struct {
		name, uri string
		lasting   bool
		code      fault.Code
	}{
		{"files", "disk", true, ""},
		{"memory", "memory", false, ""},
		{"a token that this version does not serve", "pkcs11:module=/usr/lib/softhsm.so?pin-value=1234", false, fault.NotThereYet},
		{"a cloud that this version does not serve", "awskms:region=eu-west-1", false, fault.NotThereYet},
		{"a word that means nothing", "dsik", false, fault.BadConfig},
		{"a URI that means nothing", "ftp:keys", false, fault.BadConfig},
		{"nothing", "", false, fault.BadConfig},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			s, err := keystore.Open(row.uri, t.TempDir())
			var f *fault.Error
			switch {
			case row.code == "" && err != nil:
				t.Fatal(err)
			case row.code == "":
				if s.Lasting() != row.lasting {
					t.Errorf("Lasting = %t", s.Lasting())
				}
			case !errors.As(err, &f) || f.Code != row.code:
				t.Errorf("error = %v, want %s", err, row.code)
			case strings.Contains(err.Error(), "1234"):
				t.Error("the error tells the PIN")
			}
		})
	}
}

func onDisk(t *testing.T, folder string) keystore.Store {
	t.Helper()
	return must(keystore.Disk(folder))(t)
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
