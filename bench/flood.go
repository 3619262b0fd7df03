package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
)

const (
	// connections of the generator, as many as an Envoy with so many workers has.
	connections = 4
	// maxInFlight bounds the generator: what is due while so many are unanswered is counted and not sent.
	maxInFlight = 4096
)

// flooded is what one phase of the generator found, durations in microseconds. Latency is counted from the moment that a request was
// due, also when the generator itself was late.
type flooded struct {
	Seconds     float64 `json:"seconds"`
	Sent        int     `json:"sent"`
	Unsent      int     `json:"unsent"`
	Accepted    int     `json:"accepted"`
	Refused     int     `json:"refused"`
	Errors      int     `json:"errors"`
	AcceptedP50 float64 `json:"accepted_p50"`
	AcceptedP99 float64 `json:"accepted_p99"`
	RefusedP50  float64 `json:"refused_p50"`
	RefusedP99  float64 `json:"refused_p99"`
	LateP99     float64 `json:"late_p99"`     // of the generator
	LastRefused float64 `json:"last_refused"` // when it was due, from the start of the phase
}

// rate is how many were accepted a second.
func (f flooded) rate() float64 { return float64(f.Accepted) / f.Seconds }

// flood runs the phases one after the other, and prints what they found as a JSON list: SOCKET, then for each phase closed
// CALLERS SECONDS or open RATE SECONDS. It is a process of its own.
func flood(ctx context.Context, args []string) error {
	g := &generator{requests: requests()}
	for range connections {
		conn, err := dial(args[0])
		if err != nil {
			return err
		}
		defer conn.Close()
		g.clients = append(g.clients, authv3.NewAuthorizationClient(conn))
	}
	var out []flooded
	for phase := args[1:]; len(phase) > 0; phase = phase[3:] {
		n, err1 := strconv.ParseFloat(phase[1], 64)
		span, err2 := time.ParseDuration(phase[2])
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		switch phase[0] {
		case "closed":
			out = append(out, g.closed(ctx, int(n), span))
		case "open":
			out = append(out, g.open(ctx, n, span))
		default:
			return fmt.Errorf("phase %q is neither open nor closed", phase[0])
		}
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

type generator struct {
	clients  []authv3.AuthorizationClient
	requests []*authv3.CheckRequest
}

// call is one request of a phase: when it was due, and how long after that it was sent and answered.
type call struct {
	due, late, took time.Duration
	fate            fate
}

type fate byte

const (
	unsent fate = iota
	accepted
	refused
	failed
)

// send sends the i-th request of a phase that began at begun.
func (g *generator) send(ctx context.Context, i int, begun time.Time, c *call) {
	c.late = time.Since(begun) - c.due
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	response, err := g.clients[i%len(g.clients)].Check(ctx, g.requests[i%len(g.requests)])
	c.took = time.Since(begun) - c.due
	switch {
	case err != nil:
		c.fate = failed
	case response.GetDeniedResponse().GetStatus().GetCode() == 503:
		c.fate = refused
	default:
		c.fate = accepted
	}
}

// open sends so many a second on average, at random moments, whatever comes back.
func (g *generator) open(ctx context.Context, rate float64, span time.Duration) flooded {
	calls := make([]call, int(rate*span.Seconds()))
	random := rand.New(rand.NewPCG(1, 2))
	var due time.Duration
	for i := range calls {
		due += time.Duration(random.ExpFloat64() / rate * float64(time.Second))
		calls[i].due = due
	}
	var inFlight atomic.Int64
	var wg sync.WaitGroup
	begun := time.Now()
	for i := range calls {
		time.Sleep(calls[i].due - time.Since(begun))
		if inFlight.Load() >= maxInFlight || ctx.Err() != nil {
			continue
		}
		inFlight.Add(1)
		wg.Go(func() {
			defer inFlight.Add(-1)
			g.send(ctx, i, begun, &calls[i])
		})
	}
	seconds := time.Since(begun).Seconds()
	wg.Wait()
	return sum(calls, seconds)
}

// closed keeps so many requests under way.
func (g *generator) closed(ctx context.Context, callers int, span time.Duration) flooded {
	all := make([][]call, callers)
	var wg sync.WaitGroup
	begun := time.Now()
	for k := range callers {
		wg.Go(func() {
			for i := k; time.Since(begun) < span && ctx.Err() == nil; i += callers {
				c := call{due: time.Since(begun)}
				g.send(ctx, i, begun, &c)
				all[k] = append(all[k], c)
			}
		})
	}
	wg.Wait()
	var calls []call
	for _, some := range all {
		calls = append(calls, some...)
	}
	return sum(calls, time.Since(begun).Seconds())
}

func sum(calls []call, seconds float64) flooded {
	f := flooded{Seconds: seconds}
	var took [failed + 1]samples
	var late samples
	for _, c := range calls {
		took[c.fate] = append(took[c.fate], c.took)
		if c.fate != unsent {
			late = append(late, c.late)
		}
		if c.fate == refused {
			f.LastRefused = float64(c.due.Microseconds())
		}
	}
	micro := func(s samples, q float64) float64 { return float64(s.at(q).Microseconds()) }
	f.Sent, f.Unsent, f.Accepted, f.Refused, f.Errors = len(late), len(took[unsent]), len(took[accepted]), len(took[refused]), len(took[failed])
	f.AcceptedP50, f.AcceptedP99 = micro(took[accepted], 0.5), micro(took[accepted], 0.99)
	f.RefusedP50, f.RefusedP99 = micro(took[refused], 0.5), micro(took[refused], 0.99)
	f.LateP99 = micro(late, 0.99)
	return f
}
