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
	ring := audit.NewRing(&out, 1)
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
	want := strings.Fields("time decision_id revision source destination method path host allow reason rule shadow elapsed_us input")
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
		ring := audit.NewRing(&out, 1000)
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
	ring := audit.NewRing(out, 10)
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
	if taken != 11 || ring.Dropped() != 90 {
		t.Errorf("a stuck disk: %d taken, %d dropped; want 11 (one under way, a full ring) and 90", taken, ring.Dropped())
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
	ring := audit.NewRing(&out, 64)
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
	if !f.mended {
		return 0, errFull
	}
	return f.buffer.Write(p)
}

func TestFailingFileIsCountedAndTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &flaky{}
		ring := audit.NewRing(out, 100)
		for range 3 {
			ring.Put(&audit.Decision{})
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if ring.Dropped() != 3 {
			t.Errorf("a full disk lost 3 records and %d are counted", ring.Dropped())
		}
		out.mended = true
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
	ring := audit.NewRing(&out, 10)
	for _, input := range []any{1, broken{}, 2, broken{}} {
		ring.Put(&audit.Decision{Input: input})
	}
	_ = ring.Close()
	if out.lines() != 2 || ring.Dropped() != 2 {
		t.Errorf("%d lines and %d dropped, want 2 and 2", out.lines(), ring.Dropped())
	}
}

func BenchmarkPut(b *testing.B) {
	ring := audit.NewRing(io.Discard, 1<<16)
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
