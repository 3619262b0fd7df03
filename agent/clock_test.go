package agent_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/writ-dev/writ/agent"
	"github.com/writ-dev/writ/agent/agenttest"
)

// askew gives the configuration of a node whose clock is off.
func askew(t *testing.T, server *agenttest.Authority, off time.Duration) agent.Config {
	c := config(t, server)
	c.Now = func() time.Time { return time.Now().Add(off) }
	return c
}

// A clock that is off by less than a minute changes nothing at lifetimes from ten minutes: an SVID is issued, held, and not asked for
// again and again.
func TestClocksMayDifferByAMinute(t *testing.T) {
	for _, off := range []time.Duration{-59 * time.Second, 59 * time.Second} {
		t.Run(off.String(), func(t *testing.T) {
			t.Parallel()
			server := agenttest.New(t, "example.org")
			server.TTL, server.AgentTTL = 10*time.Minute, 10*time.Minute
			server.Start()
			server.Apply(entry("web", "alice"))
			a, _ := agenttest.Run(t, askew(t, server, off))
			s := subscribe(t, a, newProcess(1))
			next(t, s, "the identity", holds("web"))
			agenttest.Await(t, "readiness", func() bool { return a.Ready() == nil })
			server.Apply(entry("db", "alice"))
			next(t, s, "a second one", holds("web", "db"))
			if n := server.Count(func() int { return server.Signed["web"] }); n != 1 {
				t.Errorf("web was signed %d times", n)
			}
		})
	}
}

// A day is too much: nothing is believed, and whoever asks why learns of the clock.
func TestClocksThatDifferByADay(t *testing.T) {
	for off, want := range map[time.Duration]string{
		-24 * time.Hour: "this node's clock is at least 2",
		24 * time.Hour:  "ago by this node's clock",
	} {
		t.Run(off.String(), func(t *testing.T) {
			t.Parallel()
			server := started(t)
			server.Apply(entry("web", "alice"))
			a, _ := agenttest.Run(t, askew(t, server, off))
			agenttest.Await(t, "an error that names the skew", func() bool {
				err := a.Ready()
				return err != nil && strings.Contains(err.Error(), want)
			})
			if n := server.Count(func() int { return server.Signed["web"] }); n != 0 {
				t.Errorf("web was signed %d times", n)
			}
		})
	}
}

// stepped gives the present of a machine whose clock was set, or that slept: its wall clock went on and its monotonic one, which does not
// run in a sleep, stood still. Nothing but a clock makes such a time; in time.Time the wall clock's seconds begin at bit 30.
func stepped(by time.Duration) time.Time {
	now := time.Now()
	*(*uint64)(unsafe.Pointer(&now)) += uint64(by/time.Second) << 30
	return now
}

// What is due by the wall clock is due after a sleep too, whatever timers and monotonic clocks say.
func TestSVIDsAreRenewedAfterASleep(t *testing.T) {
	t.Parallel()
	server := started(t)
	server.Apply(entry("web", "alice"))
	c := config(t, server)
	c.Now = func() time.Time { return stepped(time.Duration(server.Ahead.Load())) }
	a, _ := agenttest.Run(t, c)
	s := subscribe(t, a, newProcess(1))
	before := next(t, s, "the identity", holds("web"))
	server.Ahead.Store(int64(45 * time.Minute)) // of an hour
	if apart := c.Now().Round(0).Sub(time.Now().Round(0)); apart < 44*time.Minute {
		t.Fatalf("the wall clock went on by %s", apart)
	}
	next(t, s, "another SVID", func(v agent.View) bool {
		return holds("web")(v) && v.Identities[0].NotAfter.After(before.Identities[0].NotAfter)
	})
}

func TestJWTThatEndedInASleepIsNotHandedOut(t *testing.T) {
	t.Parallel()
	server := started(t)
	server.Apply(entry("web", "alice"))
	c := config(t, server)
	c.Now = func() time.Time { return stepped(time.Duration(server.Ahead.Load())) }
	a, _ := agenttest.Run(t, c)
	p := newProcess(1)
	jwt(t, a, p, "db")
	server.Ahead.Store(int64(10 * time.Minute)) // it lives for five
	if got := jwt(t, a, p, "db"); !got.Expires.After(c.Now()) {
		t.Errorf("it ended %s ago", c.Now().Sub(got.Expires))
	}
}

// An agent that started while its clock was ahead follows the server once the clock is right, though nothing has to be renewed.
func TestAgentFollowsOnceItsClockIsRight(t *testing.T) {
	t.Parallel()
	server := started(t)
	c := config(t, server)
	first, stop := agenttest.Run(t, c)
	agenttest.Await(t, "the first sync", func() bool { return first.Status().Connected })
	stop()
	var ahead atomic.Int64
	ahead.Store(int64(2 * time.Hour))
	c.Now = func() time.Time { return stepped(time.Duration(ahead.Load())) }
	a, _ := agenttest.Run(t, c)
	agenttest.Await(t, "a try in vain", func() bool { err := a.Ready(); return err != nil && strings.Contains(err.Error(), "clock") })
	ahead.Store(0)
	agenttest.Await(t, "the stream", func() bool { return a.Status().Connected })
}
