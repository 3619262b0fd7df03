// Package keystore is where an authority's private keys live. Start with Store; Open makes the one that a configuration names.
//
// A key is a crypto.Signer and nothing here hands out more than that, so that a key in a token or a cloud service looks the same
// as one in a file.
package keystore

import (
	"context"
	"crypto"
	"errors"
	"path/filepath"
	"regexp"
	"strings"

	"go.step.sm/crypto/keyutil"

	"github.com/writ-dev/writ/internal/fault"
)

// Store keeps signing keys by name. A name is lower-case letters, digits and hyphens. A Store may be used by several goroutines.
type Store interface {
	// Create makes a key under a new name, ECDSA P-256 unless the Store is for another Kind; fault.Conflict if there is one of that
	// name. The key is as lasting as the Store is before Create returns.
	Create(ctx context.Context, name string) (crypto.Signer, error)
	// Load gives the key of that name; fault.NotFound if there is none.
	Load(ctx context.Context, name string) (crypto.Signer, error)
	// Remove destroys the key of that name. Removing one that is not there is no failure.
	Remove(ctx context.Context, name string) error
	// Lasting says that keys outlive the process, so that one which is missing is an accident and no restart.
	Lasting() bool
}

// Open makes the Store of a configuration's `ca.keys`: "disk" for files in the data directory, "memory" for keys that end with
// the process. URIs of hardware and cloud key services are known words that this version does not serve.
func Open(uri, dataDir string) (Store, error) { return OpenFor(P256, uri, dataDir) }

// OpenFor is Open of a Store that makes keys of a kind. What it loads may be of any.
func OpenFor(kind Kind, uri, dataDir string) (Store, error) {
	if err := Check(uri); err != nil {
		return nil, err
	}
	if uri == "memory" {
		return MemoryFor(kind), nil
	}
	return DiskFor(kind, filepath.Join(dataDir, "keys"))
}

// Check says whether Open knows a configuration's `ca.keys`. It opens nothing.
func Check(uri string) error {
	scheme, _, isURI := strings.Cut(uri, ":")
	switch {
	case uri == "disk" || uri == "memory":
		return nil
	case isURI && keyServices[scheme]:
		return fault.New(fault.Invalid, nil, "ca.keys: key service "+scheme+" is not there yet").
			With(fault.NotThereYet, "set ca.keys to disk or memory")
	}
	return fault.New(fault.Invalid, nil, "ca.keys: must be disk, memory or the URI of a key service").
		With(fault.BadConfig, "set ca.keys to disk or memory")
}

// keyServices are the schemes of go.step.sm/crypto/kms. The rest of such a URI may hold a PIN, so it never stands in an error.
var keyServices = map[string]bool{"pkcs11": true, "tpmkms": true, "awskms": true, "cloudkms": true, "azurekms": true,
	"sshagentkms": true, "yubikey": true, "softkms": true, "kms": true}

// Kind is what keys a Store makes.
type Kind uint8

// The kinds of keys. RSA is for tokens whose readers know nothing else.
const (
	P256    Kind = iota // ECDSA
	RSA2048             // RSA of 2048 bits
)

// generate is the one place that makes an authority's key.
func (k Kind) generate() (crypto.Signer, error) {
	if k == RSA2048 {
		return keyutil.GenerateSigner("RSA", "", 2048)
	}
	return keyutil.GenerateSigner("EC", "P-256", 0)
}

var goodName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)

// checkName keeps a name from reaching outside of the folder.
func checkName(name string) error {
	if !goodName.MatchString(name) {
		return errors.New("a key's name is up to 64 lower-case letters, digits and hyphens")
	}
	return nil
}

func noKey(cause error, name string) error {
	return fault.New(fault.NotFound, cause, "no key named "+name)
}

func taken(name string) error { return fault.New(fault.Conflict, nil, "a key named "+name+" exists") }
