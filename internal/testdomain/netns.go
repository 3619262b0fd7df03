package testdomain

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// Host is a network namespace with an address of its own: another machine, as far as the network goes.
type Host struct {
	Name    string
	Address string
}

// Hosts makes n hosts on one private bridge; they go with the test. It needs root and iproute2.
func Hosts(t testing.TB, n int) []Host {
	t.Helper()
	tag := fmt.Sprintf("w%d", os.Getpid()%100000)
	ip(t, "netns", "add", tag+"br")
	t.Cleanup(func() { exec.Command("ip", "netns", "del", tag+"br").Run() })
	ip(t, "-n", tag+"br", "link", "add", "br0", "type", "bridge")
	ip(t, "-n", tag+"br", "link", "set", "br0", "up")
	var hosts []Host
	for i := range n {
		h := Host{Name: fmt.Sprintf("%sh%d", tag, i), Address: fmt.Sprintf("10.231.7.%d", i+1)}
		port := fmt.Sprintf("%sp%d", tag, i)
		ip(t, "netns", "add", h.Name)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", h.Name).Run() })
		ip(t, "-n", h.Name, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", tag+"br")
		ip(t, "-n", tag+"br", "link", "set", port, "master", "br0", "up")
		ip(t, "-n", h.Name, "addr", "add", h.Address+"/24", "dev", "eth0")
		ip(t, "-n", h.Name, "link", "set", "eth0", "up")
		ip(t, "-n", h.Name, "link", "set", "lo", "up")
		hosts = append(hosts, h)
	}
	return hosts
}

// Command is a command that runs on the host.
func (h Host) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=/run/netns/" + h.Name, name}, args...)...)
}

func ip(t testing.TB, args ...string) {
	t.Helper()
	if text, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v\n%s", args, err, text)
	}
}
