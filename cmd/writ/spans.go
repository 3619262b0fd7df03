package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
)

const (
	spansWaiting = 4096            // for their turn; more are dropped and counted
	spanBatch    = 512             // sent at once
	spanDelay    = time.Second     // for which a batch waits to be full
	spanTimeout  = 5 * time.Second // of one attempt; a collector that restarts is waited for meanwhile
	lastSpans    = time.Second     // for what is sent while closing
	complainEach = time.Minute     // about a collector that takes nothing
)

// spanQueue takes ended spans off the requests' path: it is a sdktrace.SpanProcessor that never waits. One goroutine sends them;
// each span is counted once, as sent, as one that found the queue full, or as lost on its way.
type spanQueue struct {
	exporter sdktrace.SpanExporter
	conn     io.Closer // of the exporter
	log      *slog.Logger
	waiting  chan sdktrace.ReadOnlySpan
	closing  chan struct{}
	done     chan struct{}
	once     sync.Once

	sent, full, lost atomic.Uint64

	complained time.Time // of the goroutine
	sending    *trouble
}

// newSpanQueue starts sending. Shutdown ends it and closes conn.
func newSpanQueue(exporter sdktrace.SpanExporter, conn io.Closer, log *slog.Logger) *spanQueue {
	q := &spanQueue{exporter: exporter, conn: conn, log: log, waiting: make(chan sdktrace.ReadOnlySpan, spansWaiting),
		closing: make(chan struct{}), done: make(chan struct{}), sending: &trouble{log: log, works: "spans are taken by their collector again"}}
	go q.run()
	return q
}

// OnStart has nothing to do.
func (q *spanQueue) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// OnEnd takes a span if there is room.
func (q *spanQueue) OnEnd(s sdktrace.ReadOnlySpan) {
	select {
	case q.waiting <- s:
	default:
		q.full.Add(1)
	}
}

// ForceFlush has nothing to do: no span waits for longer than a second.
func (q *spanQueue) ForceFlush(context.Context) error { return nil }

// Shutdown sends what waits, for a second at most, and ends. No span may end afterwards.
func (q *spanQueue) Shutdown(context.Context) error {
	q.once.Do(func() { close(q.closing) })
	<-q.done
	return q.conn.Close()
}

func (q *spanQueue) run() {
	defer close(q.done)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		<-q.closing
		time.AfterFunc(lastSpans, stop)
	}()
	for more := true; more; {
		var batch []sdktrace.ReadOnlySpan
		if batch, more = q.batch(); len(batch) > 0 {
			q.send(ctx, batch)
		}
	}
}

// batch waits for a span and then a while for more. More is false once the queue is closing and empty.
func (q *spanQueue) batch() (batch []sdktrace.ReadOnlySpan, more bool) {
	var late <-chan time.Time
	for len(batch) < spanBatch {
		select {
		case s := <-q.waiting:
			if batch = append(batch, s); late == nil {
				late = time.After(spanDelay)
			}
		case <-late:
			return batch, true
		case <-q.closing:
			select {
			case s := <-q.waiting:
				batch = append(batch, s)
			default:
				return batch, false
			}
		}
	}
	return batch, true
}

// send is one attempt. A failure is told of once in a while, not for each batch.
func (q *spanQueue) send(ctx context.Context, batch []sdktrace.ReadOnlySpan) {
	attempt, cancel := context.WithTimeout(ctx, spanTimeout)
	defer cancel()
	err := q.exporter.ExportSpans(attempt, batch)
	lost := len(batch)
	var some refusedSpans
	switch {
	case err == nil:
		lost = 0
	case errors.As(err, &some):
		lost = min(some.count, lost)
	}
	q.sent.Add(uint64(len(batch) - lost))
	q.lost.Add(uint64(lost))
	q.sending.note(err)
	if err != nil && time.Since(q.complained) > complainEach {
		q.complained = time.Now()
		q.log.WarnContext(ctx, "spans not taken by their collector", "err", err)
	}
}

// refusedSpans says that the collector did not take all of a batch.
type refusedSpans struct {
	count int
	why   string
}

func (r refusedSpans) Error() string { return fmt.Sprintf("%d spans refused: %s", r.count, r.why) }

// collector is an otlptrace.Client: the way to one OpenTelemetry collector. It is configured by what it is given alone, not by the
// environment, and makes no compression known to the rest of the process, as the exporters that come with OpenTelemetry do.
type collector struct {
	conn      *grpc.ClientConn
	tokenFile string
}

// dialCollector connects in the background.
func dialCollector(address string, secrecy credentials.TransportCredentials, tokenFile string) (*collector, error) {
	conn, err := grpc.NewClient("dns:///"+address, grpc.WithTransportCredentials(secrecy), grpc.WithDisableServiceConfig(),
		grpc.WithUserAgent("writ"), grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: spanTimeout,
			Backoff: backoff.Config{BaseDelay: time.Second, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 10 * time.Second}}))
	if err != nil {
		return nil, fmt.Errorf("traces to %s: %w", address, err)
	}
	return &collector{conn, tokenFile}, nil
}

// Start and Stop have nothing to do: the connection is there from the beginning and closed by Close.
func (c *collector) Start(context.Context) error { return nil }

// Stop has nothing to do.
func (c *collector) Stop(context.Context) error { return nil }

// Close ends the connection.
func (c *collector) Close() error { return c.conn.Close() }

// UploadTraces sends spans once there is a connection. The error is refusedSpans where the collector took the others.
func (c *collector) UploadTraces(ctx context.Context, spans []*tracev1.ResourceSpans) error {
	if c.tokenFile != "" {
		token, err := os.ReadFile(c.tokenFile)
		if err != nil {
			return fmt.Errorf("read token: %w", err)
		}
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	answer, err := collectorv1.NewTraceServiceClient(c.conn).Export(ctx, &collectorv1.ExportTraceServiceRequest{ResourceSpans: spans},
		grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	if refused := answer.GetPartialSuccess().GetRejectedSpans(); refused > 0 {
		return refusedSpans{int(refused), answer.GetPartialSuccess().GetErrorMessage()}
	}
	return nil
}
