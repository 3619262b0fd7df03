package ca_test

import (
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"testing"

	"github.com/writ-dev/writ/ca"
)

// The yardstick stands beside what is measured: one bare signature of the same kind, in the same run.
func BenchmarkOneSignature(b *testing.B) {
	key := newKey(b, elliptic.P256())
	digest := sha256.Sum256([]byte("to be signed"))
	for b.Loop() {
		must(key.Sign(rand.Reader, digest[:], crypto.SHA256))(b)
	}
}

func BenchmarkDraftAndIssue(b *testing.B) {
	a, r := start(b, config()), request(b)
	for b.Loop() {
		must(a.Issue(must(a.Draft(ca.WorkloadSVID(), r))(b)))(b)
	}
}

func BenchmarkDraft(b *testing.B) {
	a, r := start(b, config()), request(b)
	for b.Loop() {
		must(a.Draft(ca.WorkloadSVID(), r))(b)
	}
}
