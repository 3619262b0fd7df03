package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/writ-dev/writ/internal/fault"
)

// tally counts what happens, and writes down a sample of the strangers who were refused: one line each would let them fill a disk.
type tally struct {
	attestations *prometheus.CounterVec
	refusals     *prometheus.CounterVec
	issuances    *prometheus.CounterVec
	sample       *rate.Limiter
}

func newTally(to prometheus.Registerer, r *registry) *tally {
	t := &tally{
		attestations: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "writ_server_attestations_total", Help: "Nodes admitted, by method; renewal is a method."}, []string{"method"}),
		refusals:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "writ_server_attestations_refused_total", Help: "Attestations refused, by kind of failure."}, []string{"kind"}),
		issuances:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "writ_server_issuances_total", Help: "Certificates and tokens asked for, by profile and outcome."}, []string{"profile", "outcome"}),
		sample:       rate.NewLimiter(1, 10),
	}
	if to == nil {
		return t
	}
	to.MustRegister(t.attestations, t.refusals, t.issuances,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "writ_server_agents", Help: "Agents with an open Sync stream."}, func() float64 {
			r.mu.RLock()
			defer r.mu.RUnlock()
			return float64(len(r.followers))
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "writ_server_revision", Help: "Revision of the registry that this server holds."}, func() float64 {
			r.mu.RLock()
			defer r.mu.RUnlock()
			return float64(r.revision.Number)
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "writ_server_entries", Help: "Registration entries."}, func() float64 {
			r.mu.RLock()
			defer r.mu.RUnlock()
			return float64(len(r.entries))
		}))
	return t
}

func (t *tally) attested(method string) { t.attestations.WithLabelValues(method).Inc() }
func (t *tally) issued(profile string)  { t.issuances.WithLabelValues(profile, "issued").Inc() }
func (t *tally) notIssued(profile string, kind fault.Kind) {
	t.issuances.WithLabelValues(profile, kind.String()).Inc()
}

// refused counts a stranger, and now and then says where it came from and why it was refused.
func (t *tally) refused(ctx context.Context, log *slog.Logger, from netip.Addr, err error) {
	t.refusals.WithLabelValues(fault.KindOf(err).String()).Inc()
	if t.sample.Allow() {
		level := slog.LevelWarn
		if fault.Is(err, fault.Unavailable) { // ours, not the stranger's
			level = slog.LevelError
		}
		log.Log(ctx, level, "attestation refused", "request_id", requestID(ctx), "err", fmt.Errorf("from %s: %w", from, err))
	}
}
