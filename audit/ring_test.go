package audit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/writ-dev/writ/audit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// keys are part of the product: contract.md, "Decision records".
func TestDecisionKeysStayAsDocumented(t *testing.T) {
	var out buffer
	ring := audit.NewRing(&out, audit.RingConfig{Size: 1})
	ring.Put(&audit.Decision{Input: map[string]any{"a": 1}})
	if err := ring.Close(); err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(strings.NewReader(out.String()))
	var keys []string
	for depth := 0; ; {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		switch token := token.(type) {
		case json.Delim:
			if token == '{' {
				depth++
			} else {
				depth--
			}
		case string:
			if depth == 1 && dec.More() && (len(keys) == 0 || keys[len(keys)-1] != "") {
				keys = append(keys, token)
				var value json.RawMessage
				if err := dec.Decode(&value); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	want := strings.Fields("time decision_id revision source destination method path host allow reason rule shadow elapsed_us input outcome")
	if diff := cmp.Diff(want, keys); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
}

// buffer is a writer that can be read meanwhile.
type buffer struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.String()
}

func (b *buffer) lines() int { return strings.Count(b.String(), "\n") }

func TestRecordIsReadableWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out buffer
		ring := audit.NewRing(&out, audit.RingConfig{Size: 1000})
		for i := range 5 { // the first after a pause, and those that come while it waits
			ring.Put(&audit.Decision{DecisionID: strconv.Itoa(i)})
			time.Sleep(30 * time.Millisecond) // the bubble's clock
		}
		time.Sleep(time.Second)
		if n := out.lines(); n != 5 {
			t.Errorf("a second after the last Put %d of 5 records are readable", n)
		}
		if err := ring.Close(); err != nil {
			t.Error(err)
		}
	})
}

// stuck is a disk that does not answer until it is let go.
type stuck struct {
	buffer
	entered, release chan struct{}
	once             sync.Once
}

func (s *stuck) Write(p []byte) (int, error) {
	s.once.Do(func() { close(s.entered) })
	<-s.release
	return s.buffer.Write(p)
}

func TestPutNeverWaitsForAStuckDisk(t *testing.T) {
	out := &stuck{entered: make(chan struct{}), release: make(chan struct{})}
	ring := audit.NewRing(out, audit.RingConfig{Size: 10})
	taken := 0
	put := func() {
		if ring.Put(&audit.Decision{}) {
			taken++
		}
	}
	put()
	<-out.entered
	for range 100 {
		put()
	}
	if taken != 6 || ring.Dropped() != 95 {
		t.Errorf("a stuck disk: %d taken, %d dropped; want 6 (one under way, half a ring) and 95", taken, ring.Dropped())
	}
	close(out.release)
	if err := ring.Close(); err != nil {
		t.Fatal(err)
	}
	if out.lines() != taken {
		t.Errorf("%d records were written, want the %d that were taken", out.lines(), taken)
	}
}

func TestCloseDrainsAndEveryRecordIsWrittenOrCounted(t *testing.T) {
	var out buffer
	ring := audit.NewRing(&out, audit.RingConfig{Size: 64})
	const writers, each = 8, 500
	var group sync.WaitGroup
	for range writers {
		group.Go(func() {
			for range each {
				ring.Put(&audit.Decision{Reason: "no rule matched"})
			}
		})
	}
	if err := errors.Join(ring.Close(), ring.Close()); err != nil { // while they put
		t.Fatal(err)
	}
	group.Wait()
	if got := out.lines() + int(ring.Dropped()); got != writers*each {
		t.Errorf("%d records were written or counted as dropped, want %d", got, writers*each)
	}
	if ring.Put(&audit.Decision{}) {
		t.Error("a closed ring took a record")
	}
}

// flaky is a disk that is full until it is mended.
type flaky struct {
	buffer
	mended bool
}

var errFull = errors.New("no space left")

func (f *flaky) Write(p []byte) (int, error) {
	f.mu.Lock()
	mended := f.mended
	f.mu.Unlock()
	if !mended {
		return 0, errFull
	}
	return f.buffer.Write(p)
}

func TestFailingFileIsCountedAndTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &flaky{}
		ring := audit.NewRing(out, audit.RingConfig{Size: 100})
		for range 3 {
			ring.Put(&audit.Decision{})
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if ring.Dropped() != 3 {
			t.Errorf("a full disk lost 3 records and %d are counted", ring.Dropped())
		}
		out.mu.Lock()
		out.mended = true
		out.mu.Unlock()
		ring.Put(&audit.Decision{})
		if err := ring.Close(); err != nil || out.lines() != 1 {
			t.Errorf("after the disk healed: %d lines, error %v; want 1 and none", out.lines(), err)
		}
	})
}

// broken is an input that does not turn to JSON.
type broken struct{}

func (broken) MarshalJSON() ([]byte, error) { return nil, errors.New("not today") }

func TestOneBadRecordSpoilsNoOther(t *testing.T) {
	var out buffer
	ring := audit.NewRing(&out, audit.RingConfig{Size: 10})
	for _, input := range []any{1, broken{}, 2, broken{}} {
		ring.Put(&audit.Decision{Input: input})
	}
	_ = ring.Close()
	if out.lines() != 2 || ring.Dropped() != 2 {
		t.Errorf("%d lines and %d dropped, want 2 and 2", out.lines(), ring.Dropped())
	}
}

func BenchmarkPut(b *testing.B) {
	ring := audit.NewRing(io.Discard, audit.RingConfig{Size: 1 << 16})
	d := &audit.Decision{Method: "GET", Path: "/orders/1", Allow: true, Rule: "envoy/authz/allow"}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			ring.Put(d)
		}
	})
	b.StopTimer()
	if err := ring.Close(); err != nil {
		b.Fatal(err)
	}
}

func TestNoSourceClosesTheDoorForAnother(t *testing.T) {
	out := &stuck{entered: make(chan struct{}), release: make(chan struct{})}
	ring := audit.NewRing(out, audit.RingConfig{Size: 100})
	defer func() { close(out.release); _ = ring.Close() }()
	ring.Put(&audit.Decision{})
	<-out.entered // from now on nothing leaves the ring
	flood := func(source string, weight int) (taken int) {
		for range 1000 {
			if ring.Put(&audit.Decision{Source: source, Weight: weight}) {
				taken++
			}
		}
		return taken
	}
	for _, step := range []struct {
		sentence, source string
		weight, want     int
	}{
		{"the first to flood has half the ring", "a", 1, 50},
		{"another that floods with heavy records has three fifths of the rest", "b", 10, 3},
		{"one with a record that outweighs what is left has none", "c", 1 << 20, 0},
		{"one with light records has", "c", 1, 10},
		{"a fourth has", "d", 1, 5},
		{"the first has no more", "a", 1, 0},
		{"nor has one without a name much", "", 1, 3},
		{"and still there is room", "e", 1, 1},
	} {
		if got := flood(step.source, step.weight); got != step.want {
			t.Errorf("%s: %d taken, want %d", step.sentence, got, step.want)
		}
	}
	if ring.Count(audit.Full) == 0 || ring.Count(audit.Crowded) == 0 {
		t.Errorf("dropped for want of room %d, over a share %d: want both", ring.Count(audit.Full), ring.Count(audit.Crowded))
	}
}

func TestSamplingLeavesOutWhatItIsToldTo(t *testing.T) {
	const n = 4000
	for name, test := range map[string]struct {
		config          audit.RingConfig
		allowed, denied [2]int // at least, at most
	}{
		"nothing by default":                       {audit.RingConfig{}, [2]int{n, n}, [2]int{n, n}},
		"most of the allowed, no denial":           {audit.RingConfig{SkipAllowed: 0.9}, [2]int{n / 20, n / 5}, [2]int{n, n}},
		"all of the allowed":                       {audit.RingConfig{SkipAllowed: 1}, [2]int{0, 0}, [2]int{n, n}},
		"half of the denials where it is so asked": {audit.RingConfig{SkipDenied: 0.5}, [2]int{n, n}, [2]int{n / 3, n * 2 / 3}},
	} {
		t.Run(name, func(t *testing.T) {
			var out buffer
			test.config.Size = 8 * n
			ring := audit.NewRing(&out, test.config)
			for range n {
				if !ring.Put(&audit.Decision{Allow: true}) || !ring.Put(&audit.Decision{}) {
					t.Error("a record is not taken care of")
				}
			}
			if err := ring.Close(); err != nil {
				t.Fatal(err)
			}
			allowed, denied := strings.Count(out.String(), `"allow":true`), strings.Count(out.String(), `"allow":false`)
			if allowed < test.allowed[0] || allowed > test.allowed[1] || denied < test.denied[0] || denied > test.denied[1] {
				t.Errorf("%d allowed and %d denied of %d each are written", allowed, denied, n)
			}
			if got := int(ring.Count(audit.Sampled)) + allowed + denied; got != 2*n || ring.Dropped() != 0 {
				t.Errorf("%d written or counted as left out, %d dropped; want %d and 0", got, ring.Dropped(), 2*n)
			}
		})
	}
}

func TestPatientRingLosesNothingToAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &flaky{}
		ring := audit.NewRing(out, audit.RingConfig{Size: 10, Patient: true})
		ring.Put(&audit.Decision{DecisionID: "0"})
		time.Sleep(time.Second) // the bubble's clock
		taken := 1
		for range 10 {
			if ring.Put(&audit.Decision{DecisionID: strconv.Itoa(taken)}) {
				taken++
			}
		}
		if taken != 6 || ring.Count(audit.Failed) != 0 {
			t.Errorf("%d taken and %d lost while the disk is full, want 6 and 0", taken, ring.Count(audit.Failed))
		}
		out.mu.Lock()
		out.mended = true
		out.mu.Unlock()
		time.Sleep(time.Second)
		if out.lines() != taken {
			t.Errorf("%d lines once there is space, want %d", out.lines(), taken)
		}
		if err := ring.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestPatientRingEndsWithTheDiskStillFull(t *testing.T) {
	ring := audit.NewRing(&flaky{}, audit.RingConfig{Size: 10, Patient: true})
	ring.Put(&audit.Decision{})
	if err := ring.Close(); !errors.Is(err, errFull) || ring.Count(audit.Failed) != 1 {
		t.Errorf("closing gives %v with %d lost, want the disk's error and 1", err, ring.Count(audit.Failed))
	}
}

// lazy is an input with masking rules of its own.
type lazy struct {
	rendered audit.Rendered
	err      error
}

func (l lazy) Render() (audit.Rendered, error) { return l.rendered, l.err }

func TestWhatMaskingHidesStandsNowhereInTheRecord(t *testing.T) {
	whole := audit.Decision{DecisionID: "1", Source: "SECRET", Destination: "to", Method: "GET", Path: "/SECRET", Host: "host", Reason: "why"}
	for name, test := range map[string]struct {
		input lazy
		want  audit.Decision
	}{
		"nothing is masked": {lazy{rendered: audit.Rendered{Input: json.RawMessage(`{}`)}},
			audit.Decision{Source: "SECRET", Destination: "to", Method: "GET", Path: "/SECRET", Host: "host", Reason: "why", Input: json.RawMessage(`{}`)}},
		"the path is erased": {lazy{rendered: audit.Rendered{Erased: []string{"/input/attributes/request/http/path"}}},
			audit.Decision{Source: "SECRET", Destination: "to", Method: "GET", Path: "[masked]", Host: "host", Reason: "why",
				Erased: []string{"/input/attributes/request/http/path"}}},
		"a name that only begins like it is": {lazy{rendered: audit.Rendered{Erased: []string{"/input/attributes/request/http/pat"}}},
			audit.Decision{Source: "SECRET", Destination: "to", Method: "GET", Path: "/SECRET", Host: "host", Reason: "why",
				Erased: []string{"/input/attributes/request/http/pat"}}},
		"the whole source has another value": {lazy{rendered: audit.Rendered{Masked: []string{"/input/attributes/source"}}},
			audit.Decision{Source: "[masked]", Destination: "to", Method: "GET", Path: "/SECRET", Host: "host", Reason: "why",
				Masked: []string{"/input/attributes/source"}}},
		"masking fails": {lazy{err: errors.New("no rule")},
			audit.Decision{Source: "[masked]", Destination: "[masked]", Method: "[masked]", Path: "[masked]", Host: "[masked]", Reason: "why",
				Erased: []string{"/input"}, MaskError: "no rule"}},
		"the reason is erased": {lazy{rendered: audit.Rendered{Erased: []string{"/result/reason"}}},
			audit.Decision{Source: "SECRET", Destination: "to", Method: "GET", Path: "/SECRET", Host: "host", Reason: "[masked]",
				Erased: []string{"/result/reason"}}},
	} {
		t.Run(name, func(t *testing.T) {
			var out buffer
			d := whole
			d.Input = test.input
			ring := audit.NewRing(&out, audit.RingConfig{Size: 2})
			ring.Put(&d)
			if err := ring.Close(); err != nil {
				t.Fatal(err)
			}
			got, err := audit.ParseDecision([]byte(out.String()))
			if err != nil {
				t.Fatal(err)
			}
			test.want.DecisionID = "1"
			if diff := cmp.Diff(test.want, *got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
