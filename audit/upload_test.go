package audit_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/audit"
)

// opaEvent has the names of OPA's EventV1; others are an error.
type opaEvent struct {
	Labels      map[string]string `json:"labels"`
	DecisionID  string            `json:"decision_id"`
	TraceID     string            `json:"trace_id,omitempty"`
	Revision    string            `json:"revision"`
	Path        string            `json:"path"`
	Input       any               `json:"input"`
	Result      any               `json:"result"`
	Erased      []string          `json:"erased"`
	Masked      []string          `json:"masked"`
	RequestedBy string            `json:"requested_by"`
	Timestamp   time.Time         `json:"timestamp"`
	Metrics     map[string]any    `json:"metrics"`
	Custom      map[string]any    `json:"custom"`
}

// receiver takes OPA's decision logs as a collector does, and answers as it is told to.
type receiver struct {
	mu      sync.Mutex
	answers []int // of the coming requests; then 200
	tokens  []string
	chunks  [][]opaEvent
	faults  []string
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tokens = append(r.tokens, q.Header.Get("Authorization"))
	if len(r.answers) > 0 {
		code := r.answers[0]
		r.answers = r.answers[1:]
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(code)
		return
	}
	var events []opaEvent
	z, err := gzip.NewReader(q.Body)
	if err == nil {
		d := json.NewDecoder(z)
		d.DisallowUnknownFields()
		err = d.Decode(&events)
	}
	if err != nil || q.Method != http.MethodPost || q.URL.Path != "/logs" || q.Header.Get("Content-Encoding") != "gzip" ||
		q.Header.Get("Content-Type") != "application/json" {
		r.faults = append(r.faults, fmt.Sprint(q.Method, " ", q.URL, " ", q.Header, " ", err))
	}
	r.chunks = append(r.chunks, events)
}

func (r *receiver) ids() (out []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, chunk := range r.chunks {
		for _, e := range chunk {
			out = append(out, e.DecisionID)
		}
	}
	return out
}

func (r *receiver) start(t *testing.T) (url string) {
	t.Helper()
	s := httptest.NewServer(r)
	t.Cleanup(func() {
		s.Close()
		for _, fault := range r.faults {
			t.Error("the receiver could not read", fault)
		}
	})
	return s.URL + "/logs"
}

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never came to it: ", what)
		}
	}
}

func put(u *audit.Upload, lines ...string) {
	_, _ = u.Write([]byte(strings.Join(lines, "")))
}

func TestUploadIsOPAsDecisionLog(t *testing.T) {
	r := &receiver{}
	u := audit.NewUpload(audit.UploadConfig{URL: r.start(t), Labels: map[string]string{"app": "writ"}})
	ring := audit.NewRing(u, audit.RingConfig{Size: 10})
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	ring.Put(&audit.Decision{Time: at, DecisionID: "1", Revision: "r", Source: "s", Destination: "d", Method: "GET", Path: "/p", Host: "h",
		Reason: "no", Rule: "envoy/authz/allow", ElapsedUS: 7, Outcome: "denied", TraceID: "4bf92f",
		Input: lazy{rendered: audit.Rendered{Input: json.RawMessage(`{"a":1}`), Erased: []string{"/input/b"}}}})
	if err := ring.Close(); err != nil {
		t.Fatal(err)
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	want := [][]opaEvent{{{Labels: map[string]string{"app": "writ"}, DecisionID: "1", TraceID: "4bf92f", Revision: "r", Path: "envoy/authz/allow",
		Input: map[string]any{"a": 1.0}, Result: map[string]any{"allowed": false, "reason": "no"}, Erased: []string{"/input/b"},
		RequestedBy: "s", Timestamp: at, Metrics: map[string]any{"timer_server_handler_ns": 7000.0},
		Custom: map[string]any{"source": "s", "destination": "d", "method": "GET", "path": "/p", "host": "h", "outcome": "denied", "shadow": false}}}}
	if diff := cmp.Diff(want, r.chunks); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if u.Sent() != 1 || u.Dropped() != 0 {
		t.Errorf("%d sent and %d dropped, want 1 and 0", u.Sent(), u.Dropped())
	}
}

func TestUploadTriesAgainUntilItIsTaken(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("first\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := &receiver{answers: []int{503, 401, 302, 429}}
	u := audit.NewUpload(audit.UploadConfig{URL: r.start(t), TokenFile: token, Backoff: time.Millisecond})
	defer u.Close()
	put(u, decisionLine(t, audit.Decision{DecisionID: "1"}))
	until(t, "the record is taken", func() bool { return u.Sent() == 1 })
	if err := os.WriteFile(token, []byte("second"), 0o600); err != nil {
		t.Fatal(err)
	}
	put(u, decisionLine(t, audit.Decision{DecisionID: "2"}))
	until(t, "the second record is taken", func() bool { return u.Sent() == 2 })
	if diff := cmp.Diff([]string{"1", "2"}, r.ids()); diff != "" {
		t.Errorf("taken (-want +got):\n%s", diff)
	}
	want := []string{"Bearer first", "Bearer first", "Bearer first", "Bearer first", "Bearer first", "Bearer second"}
	if diff := cmp.Diff(want, r.tokens); diff != "" {
		t.Errorf("tokens (-want +got):\n%s", diff)
	}
}

func TestRefusedChunkHoldsUpNoOther(t *testing.T) {
	for _, code := range []int{400, 413, 422} {
		t.Run(strconv.Itoa(code), func(t *testing.T) {
			r := &receiver{answers: []int{code}}
			u := audit.NewUpload(audit.UploadConfig{URL: r.start(t), Backoff: time.Hour})
			defer u.Close()
			put(u, decisionLine(t, audit.Decision{DecisionID: "1"}))
			until(t, "the first is counted as dropped", func() bool { return u.Dropped() == 1 })
			put(u, decisionLine(t, audit.Decision{DecisionID: "2"}))
			until(t, "the second is taken", func() bool { return u.Sent() == 1 })
		})
	}
}

func TestUploadBufferIsBounded(t *testing.T) {
	r := &receiver{answers: []int{503}}
	line := decisionLine(t, audit.Decision{DecisionID: "1"})
	u := audit.NewUpload(audit.UploadConfig{URL: r.start(t), Buffer: 10 * len(line), Backoff: time.Hour})
	put(u, strings.Repeat(line, 25))
	if u.Dropped() != 15 {
		t.Errorf("%d of 25 records dropped, want 15: ten find room", u.Dropped())
	}
	until(t, "it was tried once", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.tokens) == 1 })
	if err := u.Close(); err != nil || u.Sent() != 10 { // tries once more
		t.Errorf("after Close %d are sent (%v), want 10", u.Sent(), err)
	}
}

func TestChunksStayUnderTheirSize(t *testing.T) {
	r := &receiver{}
	u := audit.NewUpload(audit.UploadConfig{URL: r.start(t), Chunk: 2000})
	var all bytes.Buffer
	for i := 1; i <= 50; i++ {
		path := ""
		if i == 25 {
			path = strings.Repeat("x", 5000) // alone over the limit
		}
		all.WriteString(decisionLine(t, audit.Decision{DecisionID: strconv.Itoa(i), Path: path}))
	}
	put(u, all.String())
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(numbers(1, 50), r.ids()); diff != "" {
		t.Errorf("taken (-want +got):\n%s", diff)
	}
	for _, chunk := range r.chunks {
		text, err := json.Marshal(chunk)
		if err != nil || len(chunk) > 1 && len(text) > 2600 { // the test's own encoding names what is empty too
			t.Errorf("a chunk of %d events has %d bytes", len(chunk), len(text))
		}
	}
	if len(r.chunks) < 8 {
		t.Errorf("%d chunks, want many", len(r.chunks))
	}
}

func TestUploadTalksToNobodyButItsReceiver(t *testing.T) {
	r := &receiver{}
	s := httptest.NewTLSServer(r)
	defer s.Close()
	u := audit.NewUpload(audit.UploadConfig{URL: s.URL + "/logs", Backoff: time.Millisecond}) // does not trust the server's root
	put(u, decisionLine(t, audit.Decision{DecisionID: "1"}))
	if err := u.Close(); err != nil || u.Sent() != 0 || u.Dropped() != 1 {
		t.Errorf("%d sent and %d dropped (%v), want 0 and 1", u.Sent(), u.Dropped(), err)
	}
	roots := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := audit.UploadClient(roots)
	if err != nil {
		t.Fatal(err)
	}
	u = audit.NewUpload(audit.UploadConfig{URL: s.URL + "/logs", Client: client})
	put(u, decisionLine(t, audit.Decision{DecisionID: "2"}))
	if err := u.Close(); err != nil || u.Sent() != 1 {
		t.Errorf("with the server's root %d are sent (%v), want 1", u.Sent(), err)
	}
	client.CloseIdleConnections()
}
