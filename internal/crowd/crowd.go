// Package crowd bounds how many connections strangers may have open. Who comes is never turned away, since that would let whoever came
// first keep everybody else out: the one that has been quiet longest goes instead.
package crowd

import (
	"container/list"
	"net"
	"sync"
)

// Crowd is connections that nobody vouches for. Its methods, and those of its Members, are safe to call concurrently.
type Crowd struct {
	most int

	mu    sync.Mutex
	quiet list.List // of *Member, the longest quiet first; guarded by mu
}

// New gives a Crowd of at most so many connections, at least one.
func New(most int) *Crowd { return &Crowd{most: max(most, 1)} }

// Member is a connection of a Crowd, until it is closed or leaves.
type Member struct {
	net.Conn
	crowd *Crowd
	at    *list.Element // nil once it is none; guarded by crowd.mu
}

// Join counts a connection, and closes the one that has been quiet longest where there are too many.
func (c *Crowd) Join(conn net.Conn) *Member {
	m := &Member{Conn: conn, crowd: c}
	var goes *Member
	c.mu.Lock()
	if c.quiet.Len() >= c.most {
		goes = c.quiet.Front().Value.(*Member)
		goes.remove()
	}
	m.at = c.quiet.PushBack(m)
	c.mu.Unlock()
	if goes != nil {
		goes.Conn.Close()
	}
	return m
}

// Stir says that a member did what it is here for.
func (m *Member) Stir() {
	m.crowd.mu.Lock()
	defer m.crowd.mu.Unlock()
	if m.at != nil {
		m.crowd.quiet.MoveToBack(m.at)
	}
}

// Leave takes a member out of the crowd: somebody vouches for it.
func (m *Member) Leave() {
	m.crowd.mu.Lock()
	defer m.crowd.mu.Unlock()
	m.remove()
}

func (m *Member) remove() {
	if m.at != nil {
		m.crowd.quiet.Remove(m.at)
		m.at = nil
	}
}

// Close implements net.Conn.
func (m *Member) Close() error {
	m.Leave()
	return m.Conn.Close()
}

// Listen gives a listener whose connections are a Crowd of at most so many.
func Listen(l net.Listener, most int) net.Listener { return &listener{l, New(most)} }

type listener struct {
	net.Listener
	crowd *Crowd
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.crowd.Join(conn), nil
}
