// Package peer says who is calling on a Unix socket, and whether it is still the same process. Start with Credentials: it pins each
// caller when the connection is accepted; From gives the pinned caller inside a call.
//
// What the caller of this package owes: ask Verify at each call and before each push, end a stream when Done is closed, and call
// Answered once a call has its first answer, so that the connection outlives idle ones of the same user.
package peer

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"

	"github.com/writ-dev/writ/attest"
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
func Credentials(c Config) credentials.TransportCredentials { return nil }

// From gives the caller of a gRPC call on a connection that Credentials pinned.
func From(ctx context.Context) (attest.Peer, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(Info); ok {
			return info.Peer, nil
		}
	}
	return nil, errors.New("call did not come over a pinned connection")
}

// Answered marks the connection of a gRPC call as one that got an answer, until ctx ends: while it is so marked, no further
// connection of its user makes it give way. Surfaces call it once per call, with the call's context.
func Answered(ctx context.Context) {}

// Listen opens a Unix socket at path with exactly this mode. A socket that another process serves is fault.Conflict, P1003; one
// that nobody serves any more is replaced. A path over 107 bytes is P1004. The folder must exist.
func Listen(path string, mode fs.FileMode) (net.Listener, error) { return nil, errors.New("not there") }
