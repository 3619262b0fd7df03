package server

import (
	"net/netip"
	"sync"

	"golang.org/x/time/rate"
)

// What strangers may cost: attestations a second and at once, from one address and in all.
const (
	perAddress, burstPerAddress = 50, 200
	inAll, burstInAll           = 500, 1000
	mostAddresses               = 10_000
)

// limits bounds attestation by strangers.
type limits struct {
	all *rate.Limiter

	mu    sync.Mutex
	known map[netip.Addr]*rate.Limiter // guarded by mu; begun anew when it is full
}

func newLimits() *limits {
	return &limits{all: rate.NewLimiter(inAll, burstInAll), known: map[netip.Addr]*rate.Limiter{}}
}

// allow says whether this address may attest now.
func (l *limits) allow(from netip.Addr) bool {
	l.mu.Lock()
	if len(l.known) >= mostAddresses {
		clear(l.known)
	}
	one := l.known[from]
	if one == nil {
		one = rate.NewLimiter(perAddress, burstPerAddress)
		l.known[from] = one
	}
	l.mu.Unlock()
	return one.Allow() && l.all.Allow()
}
