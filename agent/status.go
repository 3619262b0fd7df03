package agent

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-dev/writ/internal/fault"
)

// Status is what health and `writ status` show of an agent.
type Status struct {
	AgentID       string    `json:"agent_id,omitempty"`
	TrustDomain   string    `json:"trust_domain,omitempty"`
	Generation    uint64    `json:"generation"`
	Server        string    `json:"server,omitempty"` // the address it follows now; empty: none
	Connected     bool      `json:"connected"`
	Synced        bool      `json:"synced"`
	Revision      uint64    `json:"revision"`
	Entries       int       `json:"entries"`
	SVIDs         int       `json:"svids"`             // held
	JWTs          int       `json:"jwt_svids"`         // held
	JWTsPending   int       `json:"jwt_svids_pending"` // asked for of the server
	Pending       int       `json:"pending"`           // wanted and not held
	Ended         int       `json:"ended"`             // in use by workloads and past their end
	Subscriptions int       `json:"subscriptions"`
	NotAfter      time.Time `json:"agent_svid_not_after"`
	// SafeUntil is the outage budget: until then every workload that is served now (every entry, where none is) holds a valid
	// X.509-SVID even if no server answers any more. JWT-SVIDs live for minutes only.
	SafeUntil time.Time `json:"safe_without_server_until"`
	Degraded  string    `json:"degraded,omitempty"` // why, in a sentence
}

// Status is the agent as it is now.
func (a *Agent) Status() Status {
	var s Status
	a.cache.count(&s, a.now())
	if held, _ := a.node.Current(); held != nil {
		s.AgentID, s.Generation, s.NotAfter = held.ID.String(), held.Generation, held.NotAfter
	}
	s.TrustDomain = a.node.Domain().Name()
	if server := a.link.server(); server != nil {
		s.Server, s.Connected = server.Address, true
	}
	if err := a.troubled(); err != nil {
		s.Degraded = err.Error()
	}
	return s
}

func (c *cache) count(s *Status, now time.Time) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	s.Synced, s.Revision, s.Entries, s.SVIDs, s.Subscriptions = c.known, c.revision.Number, len(c.records), c.held, len(c.shares)
	s.JWTsPending = len(c.jwts.asks)
	for t := range c.jwts.all {
		if t.held(now) {
			s.JWTs++
		}
	}
	var served, all time.Time
	for r := range c.wanted {
		switch {
		case r.entry.Expired(now):
			continue
		case r.identity == nil:
			s.Pending++
			continue
		}
		end := r.identity.NotAfter
		all = earlier(all, end)
		if len(r.watchers) > 0 {
			served = earlier(served, end)
			if !now.Before(end) {
				s.Ended++
			}
		}
	}
	if s.SafeUntil = served; served.IsZero() {
		s.SafeUntil = all
	}
}

// earlier takes a zero time for none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// tally is the agent's metrics: counters, and the Status as gauges, read when somebody asks.
type tally struct {
	agent      *Agent
	proofs     *prometheus.CounterVec
	signed     *prometheus.CounterVec
	jwtSigned  *prometheus.CounterVec
	jwtFetches *prometheus.CounterVec
	breaks     prometheus.Counter
	mismatches prometheus.Counter
	gauges     []gauge
}

type gauge struct {
	desc  *prometheus.Desc
	value func(Status) float64
}

func newTally(a *Agent) *tally {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "writ", Subsystem: "agent", Name: name, Help: help})
	}
	outcomes := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "writ", Subsystem: "agent", Name: name, Help: help}, []string{"outcome"})
	}
	read := func(name, help string, value func(Status) float64) gauge {
		return gauge{prometheus.NewDesc("writ_agent_"+name, help, nil, nil), value}
	}
	return &tally{agent: a,
		proofs:     outcomes("proofs_total", "Attestations and renewals of this node."),
		signed:     outcomes("signed_total", "X.509-SVIDs asked for, by what came of it."),
		jwtSigned:  outcomes("jwt_signed_total", "JWT-SVIDs asked for of the server, by what came of it."),
		jwtFetches: outcomes("jwt_fetches_total", "JWT-SVIDs fetched by workloads, by what came of it: held already, signed while they waited, or a failure."),
		breaks:     counter("sync_breaks_total", "Ends of the Sync stream that were not a renewal."),
		mismatches: counter("sync_digest_mismatches_total", "Updates after which the entries held were not the server's."),
		gauges: []gauge{
			read("connected", "1 while a server is followed.", func(s Status) float64 { return one(s.Connected) }),
			read("synced", "1 once the entries are known.", func(s Status) float64 { return one(s.Synced) }),
			read("revision", "Revision of the registry that is held.", func(s Status) float64 { return float64(s.Revision) }),
			read("entries", "Entries held.", func(s Status) float64 { return float64(s.Entries) }),
			read("svids", "X.509-SVIDs held.", func(s Status) float64 { return float64(s.SVIDs) }),
			read("jwt_svids", "JWT-SVIDs held.", func(s Status) float64 { return float64(s.JWTs) }),
			read("jwt_svids_pending", "JWT-SVIDs asked for of the server and not there yet.", func(s Status) float64 { return float64(s.JWTsPending) }),
			read("svids_pending", "X.509-SVIDs wanted and not held.", func(s Status) float64 { return float64(s.Pending) }),
			read("subscriptions", "Streams of workloads.", func(s Status) float64 { return float64(s.Subscriptions) }),
			read("svid_not_after_seconds", "End of the agent SVID, Unix time.", func(s Status) float64 { return unix(s.NotAfter) }),
			read("safe_until_seconds", "Until when workloads hold valid X.509-SVIDs without a server, Unix time.", func(s Status) float64 { return unix(s.SafeUntil) }),
		}}
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func unix(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.Unix())
}

func (t *tally) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for _, c := range []prometheus.Collector{t.proofs, t.signed, t.jwtSigned, t.jwtFetches, t.breaks, t.mismatches, t} {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

func (t *tally) count(of *prometheus.CounterVec, err error) {
	outcome := "done"
	if err != nil {
		outcome = fault.KindOf(err).String()
	}
	of.WithLabelValues(outcome).Inc()
}

// Describe names the gauges; see prometheus.Collector.
func (t *tally) Describe(out chan<- *prometheus.Desc) {
	for _, g := range t.gauges {
		out <- g.desc
	}
}

// Collect reads the status once.
func (t *tally) Collect(out chan<- prometheus.Metric) {
	s := t.agent.Status()
	for _, g := range t.gauges {
		out <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value(s))
	}
}
