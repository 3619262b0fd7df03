package policy_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/authz"
	"github.com/writ-dev/writ/authz/policy"
)

// visit is what became of one caller: when it came, how long until it was told, and what.
type visit struct {
	came, waited time.Duration
	err          error
}

// crowd sends callers to a gate, each with the same work to do inside, and keeps what became of them.
type crowd struct {
	gate  policy.Gate
	work  time.Duration
	start time.Time
	wg    sync.WaitGroup

	mu     sync.Mutex
	visits []visit
	inside int
	most   int // ever inside at once
}

func newCrowd(places int, work time.Duration) *crowd {
	return &crowd{gate: policy.NewGate(places), work: work, start: time.Now()}
}

func (c *crowd) send(ctx context.Context) {
	c.wg.Go(func() {
		came := time.Now()
		err := c.gate.Enter(ctx)
		c.count(visit{came: came.Sub(c.start), waited: time.Since(came), err: err})
		if err == nil {
			time.Sleep(c.work)
			c.mu.Lock()
			c.inside--
			c.mu.Unlock()
			c.gate.Leave()
		}
	})
}

func (c *crowd) count(v visit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.visits = append(c.visits, v)
	if v.err == nil {
		c.inside++
		c.most = max(c.most, c.inside)
	}
}

// flood sends callers at random moments, load times as many as can be served.
func (c *crowd) flood(t *testing.T, load float64, span time.Duration) {
	_, places, _ := c.gate.State()
	random := rand.New(rand.NewPCG(1, 2))
	for end := time.Now().Add(span); time.Now().Before(end); {
		time.Sleep(time.Duration(random.ExpFloat64() * float64(c.work) / float64(places) / load))
		c.send(t.Context())
	}
}

// since gives who came after a moment, apart by whether they were let in.
func (c *crowd) since(from time.Duration) (served, refused []visit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, v := range c.visits {
		switch {
		case v.came < from:
		case v.err == nil:
			served = append(served, v)
		default:
			refused = append(refused, v)
		}
	}
	return served, refused
}

// empty checks that nobody holds a place or stands in line.
func (c *crowd) empty(t *testing.T) {
	t.Helper()
	c.wg.Wait()
	inside, places, line := c.gate.State()
	if inside != 0 || line != 0 || c.most > places {
		t.Errorf("%d inside and %d in line at the end, %d at once of %d", inside, line, c.most, places)
	}
}

func TestGateServesABurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(2, time.Millisecond)
		for range 90 { // 45 ms of work
			c.send(t.Context())
		}
		c.empty(t)
		if _, refused := c.since(0); len(refused) > 0 {
			t.Errorf("%d are refused, the first with %v", len(refused), refused[0].err)
		}
	})
}

// TestGateShedsAFlood: with three times what can be served, places are in use, who is served was in line for a short time, and who
// is not is told at once.
func TestGateShedsAFlood(t *testing.T) {
	for name, places := range map[string]int{"one place": 1, "four places": 4} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCrowd(places, 500*time.Microsecond)
				c.flood(t, 3, 3*time.Second)
				c.empty(t)
				const settled = 200 * time.Millisecond
				served, refused := c.since(settled)
				possible := float64(places) * float64(3*time.Second-settled) / float64(c.work)
				if float64(len(served)) < 0.97*possible {
					t.Errorf("%d are served of %.0f", len(served), possible)
				}
				for _, v := range served {
					if v.waited > policy.Soon+time.Millisecond {
						t.Fatalf("one was in line for %v", v.waited)
					}
				}
				for _, v := range refused {
					if v.waited > time.Millisecond || !errors.Is(v.err, policy.ErrShed) {
						t.Fatalf("one was refused after %v: %v", v.waited, v.err)
					}
				}
			})
		})
	}
}

// TestGateRecovers: half the load is served whole soon after a flood, and so is a burst.
func TestGateRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(1, 500*time.Microsecond)
		c.flood(t, 3, time.Second)
		c.flood(t, 0.5, time.Second)
		c.wg.Wait()
		for range 80 {
			c.send(t.Context())
		}
		c.empty(t)
		if _, refused := c.since(time.Second + 4*policy.Patience); len(refused) > 0 {
			t.Errorf("%d are still refused", len(refused))
		}
	})
}

// TestGateLetsABusyHourPass: random arrivals at nine tenths of what can be served make long lines that go down again.
func TestGateLetsABusyHourPass(t *testing.T) {
	for name, work := range map[string]time.Duration{"fast": 200 * time.Microsecond, "slow": 3 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCrowd(1, work)
				c.flood(t, 0.9, 10000*work)
				c.empty(t)
				if served, refused := c.since(0); len(refused)*33 > len(served) {
					t.Errorf("%d are refused and %d served", len(refused), len(served))
				}
			})
		})
	}
}

// TestGateServesFewCallersForLong: callers who each wait for their answer before they ask again make a line that stands, and are
// served while it is short.
func TestGateServesFewCallersForLong(t *testing.T) {
	for name, work := range map[string]time.Duration{"fast": 200 * time.Microsecond, "slow": 5 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gate := policy.NewGate(1)
				var wg sync.WaitGroup
				for range policy.MinLine {
					wg.Go(func() {
						for range 100 {
							if err := gate.Enter(t.Context()); err != nil {
								t.Error(err)
								return
							}
							time.Sleep(work)
							gate.Leave()
						}
					})
				}
				wg.Wait()
			})
		})
	}
}

// TestGateServesACrowdThatWaits: as many callers as an agent may have, who each wait for their answer, are served for as long as what is
// before each of them is bearable.
func TestGateServesACrowdThatWaits(t *testing.T) {
	for name, row := range map[string]struct {
		callers int
		work    time.Duration
	}{"64 callers": {64, 100 * time.Microsecond}, "200 callers": {200, 80 * time.Microsecond}, "few, and slow": {15, time.Millisecond}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gate := policy.NewGate(1)
				var wg sync.WaitGroup
				for range row.callers {
					wg.Go(func() {
						for end := time.Now().Add(time.Second); time.Now().Before(end); {
							if err := gate.Enter(t.Context()); err != nil {
								t.Error(err)
								return
							}
							time.Sleep(row.work)
							gate.Leave()
						}
					})
				}
				wg.Wait()
			})
		})
	}
}

// TestGateWhosePlacesAreStuck: but for a few nobody waits longer than the line may stand, later callers are refused at once, and the first
// free place ends it.
func TestGateWhosePlacesAreStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(1, time.Millisecond)
		if err := c.gate.Enter(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range policy.MaxLine + 100 {
			c.send(t.Context())
		}
		synctest.Wait()
		if _, _, line := c.gate.State(); line != policy.MaxLine {
			t.Errorf("%d in line", line)
		}
		time.Sleep(2 * policy.Patience)
		c.send(t.Context())
		synctest.Wait()
		served, refused := c.since(0)
		if len(served) != 0 || len(refused) != policy.MaxLine+101-policy.MinLine || refused[len(refused)-1].waited != 0 {
			t.Errorf("%d served, %d refused, the last after %v", len(served), len(refused), refused[len(refused)-1].waited)
		}
		for _, v := range refused {
			if v.waited > policy.Patience || !errors.Is(v.err, policy.ErrShed) {
				t.Fatalf("refused after %v: %v", v.waited, v.err)
			}
		}
		c.gate.Leave()
		c.empty(t)
		if served, _ := c.since(0); len(served) != policy.MinLine {
			t.Errorf("%d served once there was a place", len(served))
		}
	})
}

// TestGateHoldsFewLargeRequests: requests in line are held whole, so their bytes are bounded too; few are let in whatever they have, and
// whoever left makes room.
func TestGateHoldsFewLargeRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := policy.NewGate(1)
		if err := gate.Enter(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		join := func(n, size int) {
			for range n {
				go gate.EnterWith(ctx, size)
			}
			synctest.Wait()
		}
		for range 2 {
			join(policy.MinLine, policy.MaxHeld) // few
			join(100, policy.MaxHeld/10)
			if _, _, line := gate.State(); line != policy.MinLine {
				t.Errorf("%d in line, want %d", line, policy.MinLine)
			}
			cancel()
			synctest.Wait()
			ctx, cancel = context.WithCancel(t.Context())
			join(100, policy.MaxHeld/10)
			if _, _, line := gate.State(); line != 10 {
				t.Errorf("%d in line, want 10", line)
			}
			cancel()
			synctest.Wait()
			ctx, cancel = context.WithCancel(t.Context())
		}
		cancel()
		gate.Leave()
	})
}

func TestGateCallerWhoLeavesTheLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(1, 10*time.Millisecond)
		c.send(t.Context())
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		c.send(ctx)
		synctest.Wait()
		c.send(t.Context())
		synctest.Wait()
		cancel()
		synctest.Wait()
		served, left := c.since(0)
		_, _, line := c.gate.State()
		if line != 1 || len(served) != 1 || len(left) != 1 || !errors.Is(left[0].err, context.Canceled) || left[0].waited != 0 {
			t.Errorf("%d in line, left: %v", line, left)
		}
		c.empty(t)
		if served, _ := c.since(0); len(served) != 2 || served[1].waited != 10*time.Millisecond {
			t.Error("who stood behind:", served)
		}
	})
}

// TestGateLosesNoPlace: callers give up in the very moment in which places become free, by their context or because their time in
// line is up.
func TestGateLosesNoPlace(t *testing.T) {
	for name, work := range map[string]time.Duration{"contexts end as places become free": time.Millisecond, "so does patience": policy.Patience} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCrowd(3, work)
				random := rand.New(rand.NewPCG(3, 4))
				for range 400 {
					for range random.IntN(7) {
						ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+random.IntN(4))*work)
						defer cancel()
						c.send(ctx)
					}
					time.Sleep(work)
				}
				c.empty(t)
				before, _ := c.since(0)
				for range 3 {
					c.send(t.Context())
				}
				synctest.Wait()
				if inside, _, _ := c.gate.State(); inside != 3 {
					t.Errorf("%d of 3 places are left after %d were served", inside, len(before))
				}
				c.empty(t)
			})
		})
	}
}

func TestGateGrowsAndShrinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(1, 10*time.Millisecond)
		for range 4 {
			c.send(t.Context())
			synctest.Wait()
		}
		c.gate.Resize(3)
		synctest.Wait()
		if inside, _, line := c.gate.State(); inside != 3 || line != 1 {
			t.Errorf("after it grew: %d inside, %d in line", inside, line)
		}
		c.gate.Resize(1)
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		if inside, _, line := c.gate.State(); inside != 1 || line != 0 {
			t.Errorf("after it shrank: %d inside, %d in line", inside, line)
		}
		c.wg.Wait()
	})
}

// TestGateOfASet: a set that waits for a network has more places than there are cores, and a reload takes over who is inside.
func TestGateOfASet(t *testing.T) {
	folder := t.TempDir()
	write(t, folder, "a.rego", allowAll)
	live, _ := follow(t, folder)
	gate := policy.LiveGate(live)
	if err := gate.Enter(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer gate.Leave()
	if _, places, _ := gate.State(); places != runtime.GOMAXPROCS(0) {
		t.Errorf("%d places", places)
	}
	before := live.Revision()
	write(t, folder, "policy.yaml", "network: [x]\n")
	wait(t, "the set with a network is live", func() bool { return live.Revision() != before })
	if inside, places, _ := policy.LiveGate(live).State(); inside != 1 || places != 256 {
		t.Errorf("%d inside, %d places", inside, places)
	}
}

// TestOverloadIsAnswered: over gRPC, with every place held, callers get a denial with 503, each counted and recorded as shed. The few that
// still stand in line are judged once there are places, and so is who comes then.
func TestOverloadIsAnswered(t *testing.T) {
	live, err := policy.NewLive(t.Context(), policy.LiveConfig{Files: mapFS(map[string]string{"a.rego": allowAll})})
	if err != nil {
		t.Fatal(err)
	}
	registry, kept := prometheus.NewRegistry(), &keep{}
	server, err := authz.New(authz.Config{Decider: live, Timeout: time.Minute, Registerer: registry, Records: kept})
	if err != nil {
		t.Fatal(err)
	}
	conn, stop := connect(t, server.GRPC())
	defer stop()
	request := message(t, fullRequest)
	check := func() int {
		r, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), request)
		if err != nil {
			t.Error(err)
		}
		if r.GetOkResponse() != nil {
			return 200
		}
		return int(r.GetDeniedResponse().GetStatus().GetCode())
	}
	gate := policy.LiveGate(live)
	_, places, _ := gate.State()
	for range places {
		if err := gate.Enter(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	const callers = policy.MaxLine + 200
	var wg sync.WaitGroup
	var refused atomic.Int64
	for range callers {
		wg.Go(func() {
			switch code := check(); code {
			case 503:
				refused.Add(1)
			case 200:
			default:
				t.Error("answered with", code)
			}
		})
	}
	const shed = callers - policy.MinLine
	wait(t, "all but a few are refused", func() bool { return refused.Load() == shed })
	for range places {
		gate.Leave()
	}
	wg.Wait()
	for range 2 * places {
		if code := check(); code != 200 {
			t.Error("afterwards:", code)
		}
	}
	const want = `# HELP writ_decisions_total Requests decided, by policy set, outcome and what led to it.
# TYPE writ_decisions_total counter
writ_decisions_total{outcome="allowed",reason="policy",set="default"} %d
writ_decisions_total{outcome="failed",reason="shed",set="default"} %d
`
	counted := strings.NewReader(fmt.Sprintf(want, policy.MinLine+2*places, shed))
	if err := testutil.GatherAndCompare(registry, counted, "writ_decisions_total"); err != nil {
		t.Error(err)
	}
	for _, d := range kept.list[:shed] {
		if d.Outcome != "failed" || !strings.HasPrefix(d.Reason, "overload: ") || d.Path == "" || d.Input != nil {
			t.Fatal("recorded:", d)
		}
	}
}

// keep is a recorder that keeps all.
type keep struct {
	mu   sync.Mutex
	list []*audit.Decision
}

func (k *keep) Put(d *audit.Decision) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.list = append(k.list, d)
	return true
}
