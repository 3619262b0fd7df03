package server

import "net/netip"

// Each is each, whose panics no request can cause as far as is known.
func Each(list []int, do func(i int)) { each(list, do) }

// Allowed is how many of so many attestations, each from another of these addresses, a server would hear at once.
func Allowed(n int, from func(i int) netip.Addr) (heard int) {
	l := newLimits()
	for i := range n {
		if l.allow(from(i)) {
			heard++
		}
	}
	return heard
}
