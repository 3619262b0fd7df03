package keystore

import (
	"context"
	"crypto"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"go.step.sm/crypto/pemutil"

	"github.com/writ-dev/writ/internal/durable"
	"github.com/writ-dev/writ/internal/fault"
)

// disk keeps each key as PKCS#8 PEM in NAME.pem.
type disk struct {
	kind   Kind
	folder string
	mu     sync.Mutex // keeps two Creates of one name apart
}

// Disk keeps keys as files that only their owner may read, in a folder that it makes where there is none. A folder or a file
// with a wider mode is refused: somebody may have read the key already.
func Disk(folder string) (Store, error) { return DiskFor(P256, folder) }

// DiskFor is Disk that makes keys of a kind.
func DiskFor(kind Kind, folder string) (Store, error) {
	if err := durable.MakeFolder(folder, 0o700); err != nil {
		return nil, wide(fmt.Errorf("open key folder: %w", err))
	}
	return &disk{kind: kind, folder: folder}, nil
}

func (d *disk) path(name string) string { return filepath.Join(d.folder, name+".pem") }

func (d *disk) Create(_ context.Context, name string) (crypto.Signer, error) {
	if err := checkName(name); err != nil {
		return nil, fmt.Errorf("make key %q: %w", name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := os.Lstat(d.path(name)); !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			return nil, fmt.Errorf("make key %s: %w", name, err)
		}
		return nil, taken(name)
	}
	key, err := d.kind.generate()
	if err != nil {
		return nil, fmt.Errorf("make key %s: %w", name, err)
	}
	block, err := pemutil.Serialize(key, pemutil.WithPKCS8(true))
	if err != nil {
		return nil, fmt.Errorf("encode key %s: %w", name, err)
	}
	if err := durable.WriteFile(d.path(name), pem.EncodeToMemory(block), 0o600); err != nil {
		return nil, fmt.Errorf("write key %s: %w", name, err)
	}
	return key, nil
}

func (d *disk) Load(_ context.Context, name string) (crypto.Signer, error) {
	if err := checkName(name); err != nil {
		return nil, fmt.Errorf("load key %q: %w", name, err)
	}
	text, err := durable.ReadSecret(d.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, noKey(err, name)
	}
	if err != nil {
		return nil, wide(fmt.Errorf("load key %s: %w", name, err))
	}
	parsed, err := pemutil.ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("load key %s: %w", name, err)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("load key %s: %s holds no private key", name, d.path(name))
	}
	return key, nil
}

func (d *disk) Remove(_ context.Context, name string) error {
	if err := checkName(name); err != nil {
		return fmt.Errorf("remove key %q: %w", name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := os.Remove(d.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove key: %w", err)
	}
	return nil
}

func (d *disk) Lasting() bool { return true }

// wide gives a mode that is too wide its code and its fix.
func wide(err error) error {
	var mode *durable.WideModeError
	if !errors.As(err, &mode) {
		return err
	}
	return fault.New(fault.Invalid, err, "others may read the authority's keys").Because(mode.Error()).
		With(fault.WideMode, fmt.Sprintf("chmod %04o %s, and replace the key if anybody else has used this machine", mode.Most.Perm(), mode.Path))
}
