package testdomain

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// Host is a network namespace with an address of its own: another machine, as far as the network goes. The zero Host is this one.
type Host struct {
	Name    string
	Address string
	bridge  string // namespace of the bridge
	port    string // its end of the cable
}

// networks counts the bridges of this process.
var networks atomic.Int32

// Hosts makes n hosts on one private bridge; they go with the test. It needs root and iproute2.
func Hosts(t testing.TB, n int) []Host {
	t.Helper()
	tag := fmt.Sprintf("w%dn%d", os.Getpid()%100000, networks.Add(1))
	ip(t, "netns", "add", tag+"br")
	t.Cleanup(func() { exec.Command("ip", "netns", "del", tag+"br").Run() })
	ip(t, "-n", tag+"br", "link", "add", "br0", "type", "bridge")
	ip(t, "-n", tag+"br", "link", "set", "br0", "up")
	var hosts []Host
	for i := range n {
		h := Host{Name: fmt.Sprintf("%sh%d", tag, i), Address: fmt.Sprintf("10.231.7.%d", i+1), bridge: tag + "br", port: fmt.Sprintf("p%d", i)}
		ip(t, "netns", "add", h.Name)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", h.Name).Run() })
		ip(t, "-n", h.Name, "link", "add", "eth0", "type", "veth", "peer", "name", h.port, "netns", h.bridge)
		ip(t, "-n", h.bridge, "link", "set", h.port, "master", "br0", "up")
		ip(t, "-n", h.Name, "addr", "add", h.Address+"/24", "dev", "eth0")
		ip(t, "-n", h.Name, "link", "set", "eth0", "up")
		ip(t, "-n", h.Name, "link", "set", "lo", "up")
		hosts = append(hosts, h)
	}
	return hosts
}

// Command is a command that runs on the host.
func (h Host) Command(name string, args ...string) *exec.Cmd {
	if h.Name == "" {
		return exec.Command(name, args...)
	}
	return exec.Command("nsenter", append([]string{"--net=/run/netns/" + h.Name, name}, args...)...)
}

// Cut takes the host off the network: packets are lost, and nobody is told. Mend puts it back.
func (h Host) Cut(t testing.TB) { t.Helper(); ip(t, "-n", h.bridge, "link", "set", h.port, "nomaster") }

// Mend ends Cut.
func (h Host) Mend(t testing.TB) {
	t.Helper()
	ip(t, "-n", h.bridge, "link", "set", h.port, "master", "br0")
}

// Dial connects from the host, as a program there would.
func (h Host) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	if h.Name == "" {
		return dialHere(ctx, network, address)
	}
	onThread(func() { // which is in the host's namespace from then on
		var space *os.File
		if space, err = os.Open("/run/netns/" + h.Name); err != nil {
			return
		}
		defer space.Close()
		if err = unix.Setns(int(space.Fd()), unix.CLONE_NEWNET); err != nil {
			return
		}
		conn, err = dialHere(ctx, network, address)
	})
	return conn, err
}

// onThread runs do on a thread that ends with it. It is never the first one: that one's namespaces are the process's to others.
func onThread(do func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			defer runtime.UnlockOSThread()
			onThread(do) // elsewhere, as this one is taken
			return
		}
		do()
	}()
	<-done
}

// dialHere makes the socket on the calling thread, which net.Dialer promises only for a single numeric address.
func dialHere(ctx context.Context, network, address string) (net.Conn, error) {
	return (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, address)
}

func ip(t testing.TB, args ...string) {
	t.Helper()
	if text, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v\n%s", args, err, text)
	}
}
