package keystore

import (
	"context"
	"crypto"
	"fmt"
	"sync"
)

type memory struct {
	kind Kind

	mu   sync.Mutex
	keys map[string]crypto.Signer
}

// Memory keeps keys until the process ends.
func Memory() Store { return MemoryFor(P256) }

// MemoryFor is Memory that makes keys of a kind.
func MemoryFor(kind Kind) Store { return &memory{kind: kind, keys: make(map[string]crypto.Signer)} }

func (m *memory) Create(_ context.Context, name string) (crypto.Signer, error) {
	if err := checkName(name); err != nil {
		return nil, fmt.Errorf("make key %q: %w", name, err)
	}
	key, err := m.kind.generate()
	if err != nil {
		return nil, fmt.Errorf("make key %s: %w", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.keys[name]; ok {
		return nil, taken(name)
	}
	m.keys[name] = key
	return key, nil
}

func (m *memory) Load(_ context.Context, name string) (crypto.Signer, error) {
	if err := checkName(name); err != nil {
		return nil, fmt.Errorf("load key %q: %w", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	key, ok := m.keys[name]
	if !ok {
		return nil, noKey(nil, name)
	}
	return key, nil
}

func (m *memory) Remove(_ context.Context, name string) error {
	if err := checkName(name); err != nil {
		return fmt.Errorf("remove key %q: %w", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.keys, name)
	return nil
}

func (m *memory) Lasting() bool { return false }
