// Package peer says who is calling on a Unix socket, and whether it is still the same process. Start with Credentials: it pins each
// caller when the connection is accepted; From gives the pinned caller inside a call.
//
// What the caller of this package owes: ask Verify at each call and before each push, end a stream when Done is closed, and call
// Answered once a call has its first answer, so that the connection outlives idle ones of the same user.
//
// What cannot be seen from here: a program that was replaced (exec) between connect and accept, and a process that passes what it is
// told on to another. A connection belongs to the process that made it, whoever holds it later.
package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Config says how callers are pinned. The zero value works.
type Config struct {
	PerUser  int  // connections of one uid; 0: 1,000
	Fallback bool // pin as kernels before 6.5 make it necessary; the tests use it
	Log      *slog.Logger
}

// Info is the AuthInfo of a pinned connection.
type Info struct {
	credentials.CommonAuthInfo
	Peer attest.Peer
}

// AuthType names these credentials.
func (Info) AuthType() string { return "unix-peer" }

// Credentials gives transport credentials for a gRPC server on a Unix socket. A connection whose caller cannot be pinned is
// closed. One value serves one listener, or several that share the bounds.
func Credentials(c Config) credentials.TransportCredentials {
	if c.PerUser <= 0 {
		c.PerUser = 1000
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &pinning{
		fallback: c.Fallback,
		log:      c.Log,
		seldom:   &rate.Sometimes{Interval: time.Second},
		users:    &users{most: c.PerUser, open: map[uint32][]*caller{}},
	}
}

// From gives the caller of a gRPC call on a connection that Credentials pinned.
func From(ctx context.Context) (attest.Peer, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(Info); ok && info.Peer != nil {
			return info.Peer, nil
		}
	}
	return nil, errors.New("call did not come over a pinned connection")
}

// Answered marks the connection of a gRPC call as one that got an answer, until ctx ends: while it is so marked, no further
// connection of its user makes it give way. Surfaces call it once per call, with the call's context.
func Answered(ctx context.Context) {
	p, err := From(ctx)
	if err != nil {
		return
	}
	if c, ok := p.(*caller); ok {
		c.users.hold(c)
		context.AfterFunc(ctx, func() { c.users.release(c) })
	}
}

// pinning is the server's half of the credentials; there is no other.
type pinning struct {
	fallback bool
	log      *slog.Logger
	seldom   *rate.Sometimes // what any local user can cause fills no log
	users    *users
}

// ServerHandshake pins the process that made the connection.
func (p *pinning) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if a, ok := raw.(*arrival); ok {
		raw = a.Conn
		defer a.leave()
	}
	c, err := p.pin(raw)
	if err != nil {
		p.seldom.Do(func() { p.log.Warn("caller refused", "err", err) })
		return nil, nil, err
	}
	return c, Info{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, c}, nil
}

func (p *pinning) pin(raw net.Conn) (*caller, error) {
	unix, ok := raw.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("pin caller: a %T has no socket", raw)
	}
	sock, err := unix.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("pin caller: %w", err)
	}
	h, err := pin(sock, p.fallback)
	if err != nil {
		return nil, fault.New(fault.Unauthenticated, err, "caller could not be told apart from others")
	}
	c := &caller{Conn: raw, handle: h, users: p.users, done: make(chan struct{}), watched: make(chan struct{})}
	yields, err := p.users.admit(c)
	if err != nil {
		_ = h.close()
		return nil, err
	}
	go c.watch()
	if yields != nil {
		_ = yields.Close()
	}
	return c, nil
}

// ClientHandshake is refused: a client needs no credentials of this kind.
func (*pinning) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("unix-peer credentials are for servers")
}

// Info names the protocol.
func (*pinning) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: Info{}.AuthType()}
}

// Clone gives the same credentials: the bounds are shared.
func (p *pinning) Clone() credentials.TransportCredentials { return p }

// OverrideServerName does nothing; there is no name.
func (*pinning) OverrideServerName(string) error { return nil }

// A caller is one connection and the process that made it. It is what gRPC reads and writes, and what implements attest.Peer.
type caller struct {
	net.Conn
	handle  *handle
	users   *users
	done    chan struct{} // closed by watch alone
	watched chan struct{} // closed when watch has returned
	closing sync.Once

	answers  int  // calls under way that got an answer; guarded by users.mu
	answered bool // any call ever did; guarded by users.mu
}

// Process is the process as it was pinned.
func (c *caller) Process() attest.Process { return c.handle.process }

// Done is closed when the process ends or the connection is closed.
func (c *caller) Done() <-chan struct{} { return c.done }

// Verify is nil while the process lives and is what it was.
func (c *caller) Verify() error {
	if err := c.handle.verify(); err != nil {
		return fault.New(fault.Denied, err, "caller is not the process that connected any more")
	}
	return nil
}

// watch closes the connection when its process ends: whoever holds a copy of it then speaks for nobody.
func (c *caller) watch() {
	defer close(c.watched)
	c.handle.wait()
	close(c.done)
	_ = c.Conn.Close()
}

// Close closes the connection and lets go of the process.
func (c *caller) Close() error {
	var err error
	c.closing.Do(func() {
		c.users.remove(c)
		err = c.Conn.Close()
		if errors.Is(err, net.ErrClosed) {
			err = nil // watch was first
		}
		_ = c.handle.close()
		<-c.watched
	})
	return err
}
