package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/writ-dev/writ/internal/crowd"
)

// health is what /healthz shows. Live is that it answers at all; ready, that the process can do its job now.
type health struct {
	Status string            `json:"status"` // ok, or degraded with the reasons below
	Parts  map[string]string `json:"parts"`  // "ok", or what is wrong
	Policy *policyHealth     `json:"policy,omitempty"`

	Policies map[string]policyHealth `json:"policies,omitempty"` // by set, where several are configured
}

type policyHealth struct {
	Revision  string `json:"revision"`
	LastError string `json:"last_error"`
}

// healthCheck finds the present health.
type healthCheck func() health

// mostAsking connections may be open: scrapers and probes are a handful, and each keeps a descriptor that workloads need too.
const mostAsking = 64

// serveHTTP serves /metrics, /healthz and /readyz on a loopback address until ctx ends. It only answers, and changes nothing.
func serveHTTP(ctx context.Context, l net.Listener, metrics prometheus.Gatherer, check healthCheck) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answerHealth(w, check(), http.StatusOK) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		h := check()
		code := http.StatusOK
		if h.Status != "ok" {
			code = http.StatusServiceUnavailable
		}
		answerHealth(w, h, code)
	})
	s := &http.Server{Handler: sameOrigin(l.Addr(), mux), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	return serveUntil(ctx, s, func() error { return s.Serve(crowd.Listen(l, mostAsking)) })
}

// serveUntil runs serve, which serves s, until ctx ends; calls under way have a second then.
func serveUntil(ctx context.Context, s *http.Server, serve func() error) error {
	done := make(chan error, 1)
	go func() { done <- serve() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := s.Shutdown(stop); err != nil {
		s.Close()
	}
	return ignoreStopped(<-done)
}

func answerHealth(w http.ResponseWriter, h health, code int) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.Encode(h)
}

// sameOrigin refuses a Host that is not the listener's own address (DNS rebinding) and whatever a page of another site asked for.
func sameOrigin(own net.Addr, next http.Handler) http.Handler {
	_, port, _ := net.SplitHostPort(own.String())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, p, err := net.SplitHostPort(r.Host)
		ip, notIP := netip.ParseAddr(host)
		if err != nil || p != port || (host != "localhost" && (notIP != nil || !ip.IsLoopback())) {
			http.Error(w, "this address answers under its own name only", http.StatusMisdirectedRequest)
			return
		}
		if site := r.Header.Get("Sec-Fetch-Site"); r.Header.Get("Origin") != "" || (site != "" && site != "same-origin" && site != "none") {
			http.Error(w, "no answer across sites", http.StatusForbidden)
			return
		}
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Content-Security-Policy", "default-src 'none'")
		next.ServeHTTP(w, r)
	})
}
