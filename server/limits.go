package server

import (
	"net/netip"
	"sync"

	"golang.org/x/time/rate"
)

// What strangers may cost: attestations a second and at once, from one address, or one IPv6 network, and in all.
const (
	perAddress, burstPerAddress = 50, 200
	inAll, burstInAll           = 500, 1000
	mostAddresses               = 10_000
)

// limits bounds attestation by strangers.
type limits struct {
	all *rate.Limiter

	mu    sync.Mutex
	known map[netip.Prefix]*rate.Limiter // guarded by mu; begun anew when it is full
}

func newLimits() *limits {
	return &limits{all: rate.NewLimiter(inAll, burstInAll), known: map[netip.Prefix]*rate.Limiter{}}
}

// allow says whether this address may attest now.
func (l *limits) allow(address netip.Addr) bool {
	from := stranger(address)
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

// stranger is an IPv4 address, or the network of an IPv6 one: whoever has one address of a /64 has them all (RFC 4291 section 2.5.4).
func stranger(address netip.Addr) netip.Prefix {
	bits := address.BitLen()
	if address.Is6() {
		bits = 64
	}
	network, _ := address.Prefix(bits) // the zero Prefix for no address
	return network
}
