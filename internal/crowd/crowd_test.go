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
