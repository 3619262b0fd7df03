package main

import (
	"errors"
	"net/netip"
	"net/url"
	"strings"
)

// checkEndpoint says whether a SPIFFE_ENDPOINT_SOCKET is one, SPIFFE_Workload_Endpoint section 4: unix with an absolute path, or tcp
// with an address and a port, and nothing else. go-spiffe, which dials it, takes a host before the path for a part of nothing.
func checkEndpoint(address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return errors.New("it is no URI")
	}
	switch {
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.HasSuffix(address, "#"):
		return errors.New("it has more than an address")
	case u.Scheme == "unix":
		return checkUnixEndpoint(u)
	case u.Scheme == "tcp":
		return checkTCPEndpoint(u)
	}
	return errors.New("its scheme is neither unix nor tcp")
}

func checkUnixEndpoint(u *url.URL) error {
	switch {
	case u.User != nil || u.Host != "": // unix://tmp/a.sock: the folder is taken for a host
		return errors.New("a Unix socket has no host: write unix:///PATH")
	case u.Opaque != "" || !strings.HasPrefix(u.Path, "/") || u.Path == "/":
		return errors.New("a Unix socket needs an absolute path: write unix:///PATH")
	}
	return nil
}

func checkTCPEndpoint(u *url.URL) error {
	if u.Opaque != "" || u.User != nil || u.Path != "" {
		return errors.New("a TCP endpoint is tcp://ADDRESS:PORT and no more")
	}
	if at, err := netip.ParseAddrPort(u.Host); err != nil || at.Port() == 0 {
		return errors.New("a TCP endpoint needs an IP address and a port: tcp://ADDRESS:PORT")
	}
	return nil
}
