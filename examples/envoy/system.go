package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
)

// socket is the path in a unix URI.
func socket(uri string) string { return strings.TrimPrefix(strings.TrimPrefix(uri, "unix:"), "//") }

// freePorts finds n loopback ports that nobody listens on, all different.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// linkOrCopy gives a binary a second name; over file systems it copies.
func linkOrCopy(from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copy envoy: %w", err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o700)
	if err != nil {
		return fmt.Errorf("copy envoy: %w", err)
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return fmt.Errorf("copy envoy: %w", err)
	}
	return out.Close()
}
