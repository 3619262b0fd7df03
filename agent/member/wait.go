package member

import (
	"crypto/rand"
	"encoding/binary"
	"time"
)

// Backoff is a wait that doubles, with jitter of a half, so that nodes that lost one server do not come back together.
type Backoff struct {
	first, most time.Duration
	tries       int
}

// NewBackoff begins at first and stays at most.
func NewBackoff(first, most time.Duration) *Backoff { return &Backoff{first: first, most: most} }

// Next is how long to wait now.
func (b *Backoff) Next() time.Duration {
	wait := min(b.first<<min(b.tries, 16), b.most)
	b.tries++
	return time.Duration(float64(wait) * (0.5 + 0.5*Chance()))
}

// Reset begins anew.
func (b *Backoff) Reset() { b.tries = 0 }

// Chance is a random number from 0 to 1.
func Chance() float64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return float64(binary.BigEndian.Uint64(b[:])>>11) / (1 << 53)
}

// HalfLife is between 45 and 55 hundredths of a life, for a fraction from 0 to 1.
func HalfLife(life time.Duration, fraction float64) time.Duration {
	return time.Duration(float64(life) * (0.45 + 0.1*fraction))
}
