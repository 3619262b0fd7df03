package authz

import (
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// NoSetName stands where a metric names the policy set and none decided.
const NoSetName = "none"

// metrics counts decisions.
type metrics struct {
	decisions *prometheus.CounterVec
	duration  *prometheus.HistogramVec

	mu   sync.RWMutex          // guards sets
	sets map[string]*setMetric // by name: few, since they are those of the configuration
}

// setMetric keeps the children of one set: they are looked up once each, not on every request.
type setMetric struct {
	took  prometheus.Observer
	count [Malformed + 1][causes]func() prometheus.Counter
}

// register makes the metrics; a nil registerer leaves them unseen.
func (m *metrics) register(r prometheus.Registerer) error {
	m.sets = map[string]*setMetric{}
	m.decisions = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "writ_decisions_total",
		Help: "Requests decided, by policy set, outcome and what led to it."}, []string{"set", "outcome", "reason"})
	m.duration = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "writ_decision_duration_seconds",
		Help: "From the request's bytes to the answer's.", Buckets: prometheus.ExponentialBuckets(10e-6, 2.5, 12)}, []string{"set"})
	if r == nil {
		return nil
	}
	return errors.Join(r.Register(m.decisions), r.Register(m.duration))
}

// add counts one decision.
func (m *metrics) add(d Decision, elapsed time.Duration) {
	s := m.set(d.Set)
	if d.Outcome > Malformed || d.Cause >= causes {
		d.Outcome, d.Cause = Failed, Internal
	}
	s.count[d.Outcome][d.Cause]().Inc()
	s.took.Observe(elapsed.Seconds())
}

func (m *metrics) set(name string) *setMetric {
	m.mu.RLock()
	s := m.sets[name]
	m.mu.RUnlock()
	if s != nil {
		return s
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sets[name] == nil {
		m.sets[name] = m.newSet(name)
	}
	return m.sets[name]
}

func (m *metrics) newSet(name string) *setMetric {
	label := name
	if name == "" {
		label = NoSetName
	}
	s := &setMetric{took: m.duration.WithLabelValues(label)}
	for o := range s.count {
		for c := range s.count[o] {
			s.count[o][c] = sync.OnceValue(func() prometheus.Counter {
				return m.decisions.WithLabelValues(label, Outcome(o).String(), Cause(c).String())
			})
		}
	}
	return s
}
