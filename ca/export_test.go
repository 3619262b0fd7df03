package ca

import (
	"crypto"
	"crypto/ecdsa"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/zmap/zlint/v3/lint"
)

// LintRules are what drafts are judged by.
func LintRules() (lint.Registry, error) { return lintRules() }

// CheckAnyCSR is the way of requests that are not plain.
func CheckAnyCSR(der []byte, id spiffeid.ID) (crypto.PublicKey, error) { return checkAnyCSR(der, id) }

// ReadPlain gives the parts of a plain request.
func ReadPlain(der []byte) (key *ecdsa.PublicKey, signed, signature []byte, ok bool) {
	plain, ok := readPlain(der)
	return plain.key, plain.signed, plain.signature, ok
}

// Known is how many records the authority goes through for each Bundle.
func (a *Authority) Known() int {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return len(a.known)
}
