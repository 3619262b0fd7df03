package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// tracesConfig is authz.traces: a span of each decision, sent to an OpenTelemetry collector by OTLP over gRPC.
type tracesConfig struct {
	Endpoint  string `yaml:"endpoint"`   // https://HOST:PORT, or http on loopback; the port is 4317 where none is given
	Sample    string `yaml:"sample"`     // parent: what the proxy samples; always; or 0 to 1 of what comes without a trace, too; parent
	TokenFile string `yaml:"token_file"` // bearer token, read at each attempt; none
	Roots     string `yaml:"roots"`      // PEM file of the CAs that the collector is under; the system's
}

// otlpPort is what collectors listen on for OTLP over gRPC (OTLP specification, "OTLP/gRPC Default Port").
const otlpPort = "4317"

func (p *problems) traces(c *tracesConfig) {
	if c == nil {
		return
	}
	if u := p.receiver("authz.traces.endpoint", c.Endpoint); u != nil && (u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "") {
		p.add("authz.traces.endpoint", "%q has more than a host and a port: spans are sent by OTLP over gRPC", c.Endpoint)
	}
	if _, err := c.sampler(); err != nil {
		p.add("authz.traces.sample", "%v", err)
	}
}

// sampler says which decisions have a span. What the proxy gave no sampled trace is the agent's own to choose.
func (c *tracesConfig) sampler() (sdktrace.Sampler, error) {
	switch c.Sample {
	case "", "parent":
		return sdktrace.ParentBased(sdktrace.NeverSample()), nil
	case "always":
		return sdktrace.AlwaysSample(), nil
	}
	part, err := strconv.ParseFloat(c.Sample, 64)
	if err != nil || !(part >= 0 && part <= 1) {
		return nil, fmt.Errorf("%q is none of parent, always, and a number from 0 to 1", c.Sample)
	}
	return sdktrace.ParentBased(sdktrace.TraceIDRatioBased(part)), nil
}

// address gives where to connect to, and how.
func (c *tracesConfig) address() (string, credentials.TransportCredentials, error) {
	u, err := url.Parse(c.Endpoint)
	if err != nil {
		return "", nil, err
	}
	port := u.Port()
	orDefault(&port, otlpPort)
	address := net.JoinHostPort(u.Hostname(), port)
	if u.Scheme == "http" {
		return address, insecure.NewCredentials(), nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.Roots != "" {
		text, err := os.ReadFile(c.Roots)
		if err != nil {
			return "", nil, fmt.Errorf("read authz.traces.roots: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return "", nil, fmt.Errorf("read authz.traces.roots: no certificate in %s", c.Roots)
		}
	}
	return address, credentials.NewTLS(config), nil
}

// tracing is what takes the spans of decisions to their collector.
type tracing struct {
	spans    *spanQueue
	provider *sdktrace.TracerProvider
}

// newTracing gives nil where no traces are configured.
func newTracing(c *tracesConfig, domain string, log *slog.Logger, metrics prometheus.Registerer) (*tracing, error) {
	if c == nil {
		return nil, nil
	}
	sampler, err := c.sampler()
	if err != nil {
		return nil, err
	}
	address, secrecy, err := c.address()
	if err != nil {
		return nil, err
	}
	to, err := dialCollector(address, secrecy, c.TokenFile)
	if err != nil {
		return nil, err
	}
	t := &tracing{spans: newSpanQueue(otlptrace.NewUnstarted(to), to, log)}
	version, _ := build()
	host, _ := os.Hostname()
	t.provider = sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sampler),
		sdktrace.WithSpanProcessor(t.spans),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "writ"), attribute.String("service.version", version),
			attribute.String("host.name", host), attribute.String("writ.trust_domain", domain))),
		// A policy may name its rules as long as it likes.
		sdktrace.WithRawSpanLimits(sdktrace.SpanLimits{AttributeValueLengthLimit: 2048, AttributeCountLimit: 32}))
	if err := t.measure(metrics); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

// tracer is nil where nothing is traced.
func (t *tracing) tracer() trace.Tracer {
	if t == nil {
		return nil
	}
	version, _ := build()
	return t.provider.Tracer("github.com/writ-dev/writ/authz", trace.WithInstrumentationVersion(version))
}

// measure registers what became of the spans.
func (t *tracing) measure(metrics prometheus.Registerer) error {
	counter := func(name, help string, labels prometheus.Labels, count func() uint64) error {
		return metrics.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels},
			func() float64 { return float64(count()) }))
	}
	const dropped, droppedHelp = "writ_authz_spans_dropped_total", "Spans of decisions that were lost, by reason."
	return errors.Join(
		counter("writ_authz_spans_exported_total", "Spans of decisions that the collector took.", nil, t.spans.sent.Load),
		counter(dropped, droppedHelp, prometheus.Labels{"reason": "full"}, t.spans.full.Load),
		counter(dropped, droppedHelp, prometheus.Labels{"reason": "export"}, t.spans.lost.Load))
}

// health adds whether spans are taken.
func (t *tracing) health(h *health) {
	h.Parts["traces"] = "ok"
	if wrong := t.spans.sending.now(); wrong != "" {
		h.Parts["traces"] = "the collector does not take all spans, " + wrong
	}
}

// close sends what waits, for a moment.
func (t *tracing) close() {
	if t != nil {
		_ = t.provider.Shutdown(context.Background()) // what it could not send is counted
	}
}
