package crowd_test

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/writ-dev/writ/internal/crowd"
)

// ends is one end of a connection whose other end is in the crowd.
type ends struct {
	far net.Conn
	in  *crowd.Member
}

func joins(t *testing.T, c *crowd.Crowd) ends {
	t.Helper()
	far, near := net.Pipe()
	t.Cleanup(func() { far.Close(); near.Close() })
	return ends{far, c.Join(near)}
}

// open says whether the crowd's end is.
func (e ends) open(t *testing.T) bool {
	t.Helper()
	answered := make(chan error, 1)
	go func() { _, err := e.far.Write([]byte{1}); answered <- err }()
	if _, err := e.in.Read(make([]byte, 1)); err != nil {
		if !errors.Is(err, io.ErrClosedPipe) {
			t.Fatal(err)
		}
		return false
	}
	return <-answered == nil
}

func TestWhoIsQuietLongestGoes(t *testing.T) {
	c := crowd.New(3)
	first, second, third := joins(t, c), joins(t, c), joins(t, c)
	first.in.Stir()
	fourth := joins(t, c)
	if second.open(t) {
		t.Error("the one that was quiet longest stays")
	}
	third.in.Leave()
	fifth := joins(t, c) // there is room for it
	for name, e := range map[string]ends{"first": first, "third": third, "fourth": fourth, "fifth": fifth} {
		if !e.open(t) {
			t.Errorf("the %s is closed", name)
		}
	}
	second.in.Stir() // says nothing any more
	fourth.in.Close()
	fifth.in.Close()
	sixth, seventh := joins(t, c), joins(t, c)
	if !first.open(t) || !sixth.open(t) || !seventh.open(t) {
		t.Error("who was closed still counts")
	}
	joins(t, c)
	if first.open(t) {
		t.Error("there are more than may be")
	}
	if !third.open(t) {
		t.Error("who left was closed")
	}
}

func TestCrowdsMembersComeAndGoAtOnce(t *testing.T) {
	c := crowd.New(8)
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			for range 200 {
				far, near := net.Pipe()
				m := c.Join(near)
				m.Stir()
				m.Close()
				far.Close()
			}
		})
	}
	all.Wait()
	first := joins(t, c)
	for range 7 {
		joins(t, c)
	}
	if !first.open(t) {
		t.Error("places were lost")
	}
}

func TestListenersConnectionsAreACrowd(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := crowd.Listen(inner, 2)
	defer l.Close()
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Accept(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	first := dial()
	dial()
	dial()
	if _, err := first.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the oldest of three connections reads %v", err)
	}
	l.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed listener accepts with %v", err)
	}
}
