package audit

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// UploadConfig says where decisions are sent. Only URL must be there.
type UploadConfig struct {
	URL       string
	TokenFile string            // holds a bearer token, read before each attempt; none
	Labels    map[string]string // of every event
	Client    *http.Client      // what it trusts is its own; redirects are never followed
	Chunk     int               // bytes of events, before compression, in one request; 1 MiB
	Buffer    int               // bytes of records that may wait; 32 MiB
	Log       *slog.Logger
	Backoff   time.Duration // after the first failure, doubled up to a hundredfold; 500 ms
	Tried     func(error)   // told what came of each attempt, one after the other; nobody
}

// Upload sends records to a receiver of OPA's decision logs: POST of a gzipped JSON array of events. It is a writer of JSON lines
// that never waits and never fails; what finds no room is dropped and counted.
type Upload struct {
	config  UploadConfig
	dropped atomic.Uint64
	sent    atomic.Uint64
	wake    chan struct{}
	closing chan struct{}
	done    chan struct{}
	once    sync.Once

	mu      sync.Mutex // guards what waits, never across I/O
	waiting [][]byte
	size    int
}

const (
	uploadTimeout = 10 * time.Second // of one attempt
	lastUpload    = 2 * time.Second  // of what is sent while closing
)

// NewUpload starts sending. Close ends it.
func NewUpload(c UploadConfig) *Upload {
	c.Chunk, c.Buffer = orElse(c.Chunk, 1<<20), orElse(c.Buffer, 32<<20)
	c.Backoff = orElse(c.Backoff, 500*time.Millisecond)
	if c.Tried == nil {
		c.Tried = func(error) {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	client := http.Client{}
	if c.Client != nil {
		client = *c.Client
	}
	// A redirect would carry the token to another place.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.Client = &client
	u := &Upload{config: c, wake: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{})}
	go u.run()
	return u
}

func orElse[T comparable](v, other T) T {
	var zero T
	if v == zero {
		return other
	}
	return v
}

// Write takes whole lines.
func (u *Upload) Write(p []byte) (int, error) {
	u.mu.Lock()
	for line := range bytes.Lines(p) {
		if u.size+len(line) > u.config.Buffer {
			u.dropped.Add(1)
			continue
		}
		u.waiting = append(u.waiting, bytes.Clone(line))
		u.size += len(line)
	}
	u.mu.Unlock()
	signal(u.wake)
	return len(p), nil
}

// Dropped counts the records that no receiver took.
func (u *Upload) Dropped() uint64 { return u.dropped.Load() }

// Sent counts the records that the receiver took.
func (u *Upload) Sent() uint64 { return u.sent.Load() }

// Close sends what waits, for two seconds at most, and ends. Nothing may be written afterwards.
func (u *Upload) Close() error {
	u.once.Do(func() { close(u.closing) })
	<-u.done
	return nil
}

func (u *Upload) run() {
	defer close(u.done)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		<-u.closing
		time.AfterFunc(lastUpload, stop)
	}()
	for {
		events, records, taken := u.chunk()
		if records == 0 && taken == 0 {
			select {
			case <-u.wake:
				continue
			case <-u.closing:
				if u.idle() {
					return
				}
				continue
			}
		}
		if records == 0 || u.send(ctx, events) {
			u.sent.Add(uint64(records))
		} else {
			u.dropped.Add(uint64(records))
		}
		u.free(taken)
	}
}

func (u *Upload) idle() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.waiting) == 0
}

// chunk makes events of the oldest records, up to a chunk's size and one in any case, and says how many lines they were.
func (u *Upload) chunk() (events [][]byte, records, taken int) {
	u.mu.Lock()
	lines := u.waiting
	u.mu.Unlock()
	size := 0
	for _, line := range lines {
		event, err := u.event(line)
		if err == nil && records > 0 && size+len(event) > u.config.Chunk {
			break
		}
		taken++
		if err != nil {
			u.dropped.Add(1)
			continue
		}
		events = append(events, event)
		size += len(event) + 1
		records++
	}
	return events, records, taken
}

func (u *Upload) free(taken int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, line := range u.waiting[:taken] {
		u.size -= len(line)
	}
	u.waiting = append([][]byte(nil), u.waiting[taken:]...)
}

// event is a decision as OPA's decision log has it.
type event struct {
	Labels      map[string]string `json:"labels"`
	DecisionID  string            `json:"decision_id"`
	TraceID     string            `json:"trace_id,omitempty"`
	Revision    string            `json:"revision,omitempty"`
	Path        string            `json:"path,omitempty"`
	Input       any               `json:"input,omitempty"`
	Result      map[string]any    `json:"result"`
	Erased      []string          `json:"erased,omitempty"`
	Masked      []string          `json:"masked,omitempty"`
	RequestedBy string            `json:"requested_by,omitempty"`
	Timestamp   time.Time         `json:"timestamp"`
	Metrics     map[string]int64  `json:"metrics"`
	Custom      map[string]any    `json:"custom"`
}

func (u *Upload) event(line []byte) ([]byte, error) {
	d, err := ParseDecision(line)
	if err != nil {
		return nil, err
	}
	e := event{Labels: u.config.Labels, DecisionID: d.DecisionID, TraceID: d.TraceID, Revision: d.Revision, Path: d.Rule, Input: d.Input,
		Result: map[string]any{"allowed": d.Allow}, Erased: d.Erased, Masked: d.Masked, RequestedBy: d.Source, Timestamp: d.Time,
		Metrics: map[string]int64{"timer_server_handler_ns": d.ElapsedUS * 1000},
		Custom: map[string]any{"source": d.Source, "destination": d.Destination, "method": d.Method, "path": d.Path, "host": d.Host,
			"outcome": d.Outcome, "shadow": d.Shadow}}
	if d.Reason != "" {
		e.Result["reason"] = d.Reason
	}
	if d.MaskError != "" {
		e.Custom["mask_error"] = d.MaskError
	}
	if e.Labels == nil {
		e.Labels = map[string]string{}
	}
	return json.Marshal(e)
}

// send posts a chunk until the receiver takes it, or refuses it for what it is; false says that it took nothing.
func (u *Upload) send(ctx context.Context, events [][]byte) bool {
	body, err := compress(events)
	if err != nil {
		return false
	}
	for wait, said := u.config.Backoff, false; ; wait = min(2*wait, 100*u.config.Backoff) {
		final, err := u.post(ctx, body)
		u.config.Tried(err)
		if err == nil {
			return true
		}
		if final {
			u.config.Log.ErrorContext(ctx, "decision records refused by their receiver", "err", err)
			return false
		}
		if !said {
			u.config.Log.WarnContext(ctx, "decision records not sent yet", "err", err)
			said = true
		}
		select {
		case <-time.After(wait/2 + rand.N(wait/2+1)):
		case <-u.closing: // once more, at once
			_, err := u.post(ctx, body)
			return err == nil
		case <-ctx.Done():
			return false
		}
	}
}

func compress(events [][]byte) ([]byte, error) {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, err := z.Write(append(append([]byte("["), bytes.Join(events, []byte(","))...), ']'))
	err = errors.Join(err, z.Close())
	return out.Bytes(), err
}

// post is one attempt. Final says that the same again would be refused again.
func (u *Upload) post(ctx context.Context, body []byte) (final bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, uploadTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, u.config.URL, bytes.NewReader(body))
	if err != nil {
		return true, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Content-Encoding", "gzip")
	if u.config.TokenFile != "" {
		token, err := os.ReadFile(u.config.TokenFile)
		if err != nil {
			return false, fmt.Errorf("read token: %w", err)
		}
		r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	answer, err := u.config.Client.Do(r)
	if err != nil {
		return false, err
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, 64<<10))
	switch code := answer.StatusCode; {
	case code >= 200 && code < 300:
		return false, nil
	default:
		final = code == http.StatusBadRequest || code == http.StatusRequestEntityTooLarge || code == http.StatusUnprocessableEntity
		return final, fmt.Errorf("upload records: the receiver answered %d", code)
	}
}

// UploadClient gives a client that trusts the roots of a PEM file, or the system's where none is named.
func UploadClient(roots string) (*http.Client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if roots != "" {
		text, err := os.ReadFile(roots)
		if err != nil {
			return nil, fmt.Errorf("read roots: %w", err)
		}
		transport.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !transport.TLSClientConfig.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("read roots %s: no certificate in it", roots)
		}
	}
	return &http.Client{Transport: transport}, nil
}
