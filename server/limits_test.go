package server_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/writ-dev/writ/server"
)

// Who has one IPv6 network has more addresses than anybody counts: they are one stranger, or it would use up what all have together.
func TestAddressesOfOneNetworkAreOneStranger(t *testing.T) {
	const burst = 200
	network := func(i int) netip.Addr {
		a := netip.MustParseAddr("2001:db8:1:2::").As16()
		binary.BigEndian.PutUint64(a[8:], uint64(i))
		return netip.AddrFrom16(a)
	}
	if n := server.Allowed(900, network); n < burst || n > burst+50 {
		t.Errorf("%d of 900 attestations from one network are heard, not about %d", n, burst)
	}
	hosts := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }
	if n := server.Allowed(900, hosts); n != 900 {
		t.Errorf("%d of 900 attestations from as many IPv4 addresses are heard", n)
	}
}
