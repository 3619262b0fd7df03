package authz

import (
	"context"
	"slices"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"
)

// spanName is what every span of a decision is called.
const spanName = "authz.check"

// span follows one decision for the traces; nil follows nothing.
type span struct {
	trace.Span
	trace string // the id of the trace that the decision belongs to; empty: none
}

// startSpan begins the span of a decision, as a child of the one that ctx brings.
func (s *Server) startSpan(ctx context.Context) *span {
	if s.config.Tracer == nil {
		return nil
	}
	parent := trace.SpanContextFromContext(ctx)
	_, started := s.config.Tracer.Start(ctx, spanName, trace.WithSpanKind(trace.SpanKindServer))
	f := &span{Span: started}
	if parent.IsValid() || started.IsRecording() {
		f.trace = started.SpanContext().TraceID().String()
	}
	return f
}

// traceID is what the decision's record says.
func (f *span) traceID() string {
	if f == nil {
		return ""
	}
	return f.trace
}

// end says what became of the request; id is the decision's. Nothing that the client wrote goes with it: no header, no path, no
// query, no body and no method that is not known.
func (f *span) end(d *Decision, id string) {
	if f == nil {
		return
	}
	defer f.End()
	if !f.IsRecording() {
		return
	}
	f.SetAttributes(spanAttributes(d, id)...)
	if d.Outcome == Failed {
		f.SetStatus(codes.Error, d.Cause.String())
	}
}

func spanAttributes(d *Decision, id string) []attribute.KeyValue {
	out := []attribute.KeyValue{attribute.String("writ.outcome", d.Outcome.String()), attribute.String("writ.reason", d.Cause.String())}
	add := func(key, value string) {
		if value != "" {
			// One text that is not UTF-8 would cost the whole batch that it is exported in.
			out = append(out, attribute.String(key, strings.ToValidUTF8(value, "\uFFFD")))
		}
	}
	add("writ.decision_id", id)
	add("writ.set", d.Set)
	add("writ.revision", d.Revision)
	add("writ.rule", d.Rule)
	if !d.Masked {
		add("writ.source", d.Request.Source)
		add("writ.destination", d.Request.Destination)
		add("http.request.method", knownMethod(d.Request.Method))
	}
	return out
}

// knownMethod is the method where it is one of RFC 9110's or PATCH, as OpenTelemetry's conventions have it.
func knownMethod(method string) string {
	known := []string{"", "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}
	if slices.Contains(known, method) {
		return method
	}
	return "_OTHER"
}

// joinTrace puts the trace context of a call into ctx (W3C Trace Context, section 3.2). It is the proxy's word, of the call to us;
// the traceparent among the headers that it asks about is the client's, who shall neither choose what is traced nor where it shows.
func (s *Server) joinTrace(ctx context.Context) context.Context {
	if s.config.Tracer == nil {
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx, call{ctx})
}

// call reads the metadata of a call.
type call struct{ ctx context.Context }

// Get gives traceparent if it is there once. Of tracestate, which proxies hand on as the client wrote it, nothing is needed.
func (c call) Get(key string) string {
	if key != "traceparent" {
		return ""
	}
	values := metadata.ValueFromIncomingContext(c.ctx, key)
	if len(values) != 1 {
		return ""
	}
	return values[0]
}

// Set and Keys are for those who write.
func (call) Set(string, string) {}

// Keys are not asked for.
func (call) Keys() []string { return nil }
