package peer

import (
	"net"
	"sync"
)

// mostArriving is how many connections may be between accept and pinned. The rest wait in the kernel, where they cost no descriptor:
// one user who connects faster than callers are pinned would else use them up before any bound of his counts.
const mostArriving = 64

// Paced gives a listener for a server with Credentials: it accepts as fast as callers are pinned.
func Paced(l net.Listener) net.Listener {
	return &paced{Listener: l, places: make(chan struct{}, mostArriving), closed: make(chan struct{})}
}

type paced struct {
	net.Listener
	places  chan struct{} // filled by arrivals
	closed  chan struct{}
	closing sync.Once
}

// Accept waits for a place, then for a connection.
func (l *paced) Accept() (net.Conn, error) {
	select {
	case l.places <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.places
		return nil, err
	}
	return &arrival{Conn: c, places: l.places}, nil
}

// Close stops listening, also for who waits for a place.
func (l *paced) Close() error {
	l.closing.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// arrival is a connection that is not pinned yet.
type arrival struct {
	net.Conn
	places chan struct{}
	once   sync.Once
}

func (a *arrival) leave() { a.once.Do(func() { <-a.places }) }

// Close closes a connection that never came to its handshake.
func (a *arrival) Close() error {
	a.leave()
	return a.Conn.Close()
}
