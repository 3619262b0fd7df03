package authz

import (
	"log/slog"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"

	"github.com/writ-dev/writ/internal/crowd"
)

// What requests that are not whole yet may take, over all connections. Only a caller that stops in the middle comes near: proxies
// have a request whole before they ask about it.
const (
	maxArriving = 256 << 20
	streamCost  = 16 << 10 // of a request that began: a goroutine and its headers
	frameCost   = 256      // of a frame beside its bytes: a message may come in frames of one byte
)

// mostConnections may be open: of proxies there are a few for each core of a node, and each keeps a descriptor of the agent's, which
// workloads need too.
const mostConnections = 1024

// arrivals counts, over all connections of a server, what came of requests that are not whole yet. gRPC bounds one message and the
// streams of one connection; one connection may still leave a thousand messages of 4 MiB a byte short for as long as it likes. Once all
// hold too much, the connection that holds most is ended.
type arrivals struct {
	log   *slog.Logger
	crowd *crowd.Crowd // one that asks is not quiet

	mu    sync.Mutex // guards what follows, and all that its connections count
	total int
	conns map[*arriving]bool
}

func newArrivals(log *slog.Logger) *arrivals {
	return &arrivals{log: log, crowd: crowd.New(mostConnections), conns: map[*arriving]bool{}}
}

// watched gives connections to arrivals as they are accepted.
type watched struct {
	credentials.TransportCredentials
	arrivals *arrivals
}

// ServerHandshake implements credentials.TransportCredentials.
func (w watched) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	member := w.arrivals.crowd.Join(conn)
	conn, info, err := w.TransportCredentials.ServerHandshake(member)
	if err != nil {
		return conn, info, err
	}
	c := &arriving{Conn: conn, member: member, all: w.arrivals, in: frames{skip: prefaceSize}, streams: map[uint32]int{}}
	w.arrivals.mu.Lock()
	defer w.arrivals.mu.Unlock()
	w.arrivals.conns[c] = true
	return c, info, nil
}

// arriving is a connection whose frames are looked at on their way.
type arriving struct {
	net.Conn
	member  *crowd.Member
	all     *arrivals
	in, out frames
	streams map[uint32]int // that are not whole: what they hold
	holds   int            // all of them
}

// Read implements net.Conn.
func (c *arriving) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if most := c.all.count(func() { c.in.each(p[:n], c.came) }); most != nil {
		c.all.log.Warn("connection ended: its requests are not whole and hold too much")
		most.Conn.Close()
	}
	return n, err
}

// Write implements net.Conn.
func (c *arriving) Write(p []byte) (int, error) {
	c.all.count(func() { c.out.each(p, c.went) })
	return c.Conn.Write(p)
}

// Close implements net.Conn.
func (c *arriving) Close() error {
	c.all.count(func() { c.all.drop(c) })
	return c.Conn.Close()
}

// count runs what counts, and gives the connection that is to be ended, if any: it holds nothing from then on.
func (a *arrivals) count(do func()) (most *arriving) {
	a.mu.Lock()
	defer a.mu.Unlock()
	do()
	if a.total <= maxArriving {
		return nil
	}
	for c := range a.conns {
		if most == nil || c.holds > most.holds {
			most = c
		}
	}
	a.drop(most)
	return most
}

// drop forgets a connection.
func (a *arrivals) drop(c *arriving) {
	a.total -= c.holds
	c.holds, c.streams = 0, nil
	delete(a.conns, c)
}

// came counts a frame of the client's. A stream that is not known was answered already.
func (c *arriving) came(f frame) {
	held, known := c.streams[f.stream]
	switch {
	case c.streams == nil:
	case f.ends():
		c.whole(f)
		c.member.Stir()
	case f.kind == headersFrame && !known:
		c.hold(f.stream, streamCost)
	case f.kind == dataFrame && known:
		c.hold(f.stream, held+f.length+frameCost)
	}
}

// went takes a frame of ours: a stream that we end holds nothing, whole or not.
func (c *arriving) went(f frame) {
	if f.ends() {
		c.whole(f)
	}
}

func (c *arriving) whole(f frame) {
	c.hold(f.stream, 0)
	delete(c.streams, f.stream)
}

func (c *arriving) hold(stream uint32, n int) {
	if c.streams == nil {
		return
	}
	grown := n - c.streams[stream]
	c.streams[stream] = n
	c.holds += grown
	c.all.total += grown
}

// Of HTTP/2 (RFC 9113): the client connection preface of section 3.4, the header of a frame of section 4.1, and what it says of section 6.
const (
	prefaceSize  = 24
	frameHeader  = 9
	dataFrame    = 0
	headersFrame = 1
	resetFrame   = 3
	endStream    = 1
)

type frame struct {
	length      int
	kind, flags byte
	stream      uint32
}

// ends says whether nothing more comes on the frame's stream from that side.
func (f frame) ends() bool {
	return f.kind == resetFrame || (f.kind == headersFrame || f.kind == dataFrame) && f.flags&endStream != 0
}

// frames finds the frames in what comes piece by piece.
type frames struct {
	skip   int // bytes until the next frame
	header [frameHeader]byte
	have   int // of the header
}

func (f *frames) each(p []byte, visit func(frame)) {
	for len(p) > 0 {
		if f.skip > 0 {
			n := min(f.skip, len(p))
			f.skip -= n
			p = p[n:]
			continue
		}
		n := copy(f.header[f.have:], p)
		f.have += n
		p = p[n:]
		if f.have < frameHeader {
			return
		}
		h := f.header
		f.have, f.skip = 0, int(h[0])<<16|int(h[1])<<8|int(h[2])
		visit(frame{f.skip, h[3], h[4], uint32(h[5]&0x7f)<<24 | uint32(h[6])<<16 | uint32(h[7])<<8 | uint32(h[8])})
	}
}
