package testdomain_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/internal/testdomain"
)

// grownBy is how much memory the process may take beyond what it took before any attack: what docs/security-model.md promises.
const grownBy = 768 << 20

// hostilePolicy has a rule for each way to spend time and memory, chosen by the path, and one that allows.
const hostilePolicy = `package envoy.authz

path := input.parsed_path[0]

allow if path == "fine"

allow if {
	path == "loop"
	count([1 | some a in numbers.range(1, 100000); some b in numbers.range(1, 100000); a + b < 0]) > 0
}

allow if {
	path == "range"
	count(numbers.range(1, 1000000000)) > 0
}

allow if {
	path == "walk"
	count([p | walk([numbers.range(1, n) | some n in numbers.range(1, 3000)], [p, _])]) > 0
}

allow if {
	path == "strings"
	count([s | some n in numbers.range(1, 1000000); s := sprintf("%0900000d", [n])]) > 0
}

allow if {
	path == "set"
	count({sprintf("%d-%d", [a, b]) | some a in numbers.range(1, 100000); some b in numbers.range(1, 100000)}) > 0
}

allow if {
	path == "shift"
	bits.lsh(1, 1000000000000) > 0
}

allow if {
	path == "body"
	input.parsed_body[0] == 2
}

allow if {
	path == "headers"
	some name, value in input.attributes.request.http.headers
	value == "none"
}
`

// A decider is the ext_authz door of a writ dev, with what its metrics counted.
type decider struct {
	*testdomain.Domain
	conn   *grpc.ClientConn
	policy string
}

func newDecider(t *testing.T) *decider {
	t.Helper()
	d := &decider{policy: t.TempDir()}
	writeFile(t, filepath.Join(d.policy, "authz.rego"), hostilePolicy)
	d.Domain = testdomain.New(t, testdomain.Built(t), "--policy", d.policy, "--entries", os.DevNull)
	conn, err := grpc.NewClient(d.ExtAuthz[0], grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	d.conn = conn
	return d
}

// to is a request for a path.
func to(path string) *authv3.CheckRequest {
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
		Http: &authv3.AttributeContext_HttpRequest{Method: "GET", Path: "/" + path}}}}
}

// ask gives the HTTP status that the proxy is told; 200 where the request may pass.
func (d *decider) ask(ctx context.Context, r *authv3.CheckRequest) (typev3.StatusCode, error) {
	answer, err := authv3.NewAuthorizationClient(d.conn).Check(ctx, r)
	if err != nil || answer.GetStatus().GetCode() == 0 && answer.GetOkResponse() != nil {
		return typev3.StatusCode_OK, err
	}
	return answer.GetDeniedResponse().GetStatus().GetCode(), nil
}

// raw sends bytes as a message and gives the gRPC code.
func (d *decider) raw(message []byte) codes.Code {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return status.Code(d.conn.Invoke(ctx, authv3.Authorization_Check_FullMethodName, &message, &[]byte{}, grpc.ForceCodec(raw{})))
}

// counted are the decisions by "outcome/reason".
func (d *decider) counted(t *testing.T) map[string]int {
	t.Helper()
	out := map[string]int{}
	for line := range strings.Lines(get(t, d.Metrics)) {
		labels, found := strings.CutPrefix(line, "writ_decisions_total{")
		if !found {
			continue
		}
		labels, value, _ := strings.Cut(labels, "} ")
		by := map[string]string{}
		for _, pair := range strings.Split(labels, ",") {
			name, text, _ := strings.Cut(pair, "=")
			by[name] = strings.Trim(text, `"`)
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil {
			t.Fatal(err)
		}
		out[by["outcome"]+"/"+by["reason"]] += int(n)
	}
	return out
}

func get(t *testing.T, url string) string {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// meanwhile runs an attack while one honest caller asks, and gives the most memory that the process had. Honest callers may wait
// longer while the machine is busy, and are answered rightly all along; the first one after the attack is answered soon.
func (d *decider) meanwhile(t *testing.T, attack func()) (most int64) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var caller sync.WaitGroup
	var slowest time.Duration
	caller.Go(func() {
		for tick := time.NewTicker(20 * time.Millisecond); ctx.Err() == nil; <-tick.C {
			began := time.Now()
			if err := d.honest(30 * time.Second); err != nil {
				t.Errorf("an honest call during the attack: %v", err)
				return
			}
			slowest = max(slowest, time.Since(began))
			most = max(most, rss(t, d.PID))
		}
	})
	attack()
	stop()
	caller.Wait()
	began := time.Now()
	if err := d.honest(5 * time.Second); err != nil {
		t.Errorf("the next honest call: %v", err)
	}
	t.Logf("%d MiB at most, slowest honest call %v, the next one %v", most>>20, slowest.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	return most
}

// honest asks until it is decided: what is shed under load may be asked again.
func (d *decider) honest(within time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	for {
		code, err := d.ask(ctx, to("fine"))
		if err != nil || code == typev3.StatusCode_OK {
			return err
		}
		if code != typev3.StatusCode_ServiceUnavailable {
			return fmt.Errorf("answered with %v", code)
		}
		select {
		case <-ctx.Done():
			return errors.New("shed all along")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// at once does a thing n times, so many beside each other.
func atOnce(n, beside int, do func(i int)) {
	var wg sync.WaitGroup
	turns := make(chan struct{}, beside)
	for i := range n {
		turns <- struct{}{}
		wg.Go(func() { do(i); <-turns })
	}
	wg.Wait()
}

// TestHostileRequests: each attack is refused or denied and counted under its reason, memory stays bounded, and honest callers are
// answered meanwhile and soon afterwards.
func TestHostileRequests(t *testing.T) {
	t.Parallel()
	d := newDecider(t)
	if err := d.honest(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	before := rss(t, d.PID)
	code := func(want codes.Code, message []byte) func(int) {
		return func(int) {
			if got := d.raw(message); got != want {
				t.Errorf("ended with %v, want %v", got, want)
			}
		}
	}
	answer := func(r *authv3.CheckRequest, want ...typev3.StatusCode) func(int) {
		return func(int) {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			if got, err := d.ask(ctx, r); err != nil || !slices.Contains(want, got) {
				t.Errorf("answered with %v and %v, want %v", got, err, want)
			}
		}
	}
	const failed, denied, refused = typev3.StatusCode_ServiceUnavailable, typev3.StatusCode_Forbidden, typev3.StatusCode_BadRequest
	rows := []struct {
		name      string
		n, beside int
		do        func(i int)
		counted   []string // under any of these, n in all; none: not decided at all
	}{
		{"bytes that are no message", 1000, 8, code(codes.InvalidArgument, []byte{0xff}), []string{"malformed/message"}},
		{"a message cut short", 1000, 8, code(codes.InvalidArgument, []byte{0x0a, 0x7f, 0x0a}), []string{"malformed/message"}},
		{"a path that is not UTF-8", 1000, 8, code(codes.InvalidArgument, badPath()), []string{"malformed/message"}},
		{"bodies of 10 MB", 20, 4, code(codes.ResourceExhausted, wireOf(t, withBody(5_000_000, "1"))), []string{"malformed/size"}},
		{"bodies of very many values", 20, 4, answer(withBody(2_000_000, "1"), refused, failed), []string{"refused/size", "failed/timeout", "failed/shed"}},
		{"bodies as large as they may be", 20, 4, answer(withBody(190_000, "12345678901234567890"), denied, failed), []string{"denied/undefined", "failed/timeout", "failed/memory", "failed/shed"}},
		{"100,000 headers in the message", 10, 2, answer(manyFields(), denied, failed), []string{"denied/undefined", "failed/timeout", "failed/memory", "failed/shed"}},
		{"ambiguous paths", 1000, 8, answer(to("a/..%2f"), refused), []string{"refused/target"}},
		{"deadlines of 1 ms", 2000, 32, d.hurried("fine", time.Millisecond), nil},
		{"evaluations whose callers leave", 500, 64, d.hurried("loop", 5*time.Millisecond), nil},
		{"evaluations that loop", 16, 8, answer(to("loop"), failed), []string{"failed/timeout", "failed/shed"}},
		{"evaluations that count far", 16, 8, answer(to("range"), failed), []string{"failed/timeout", "failed/memory", "failed/shed"}},
		{"evaluations that walk", 16, 8, answer(to("walk"), failed), []string{"failed/timeout", "failed/memory", "failed/shed"}},
		{"evaluations that make long strings", 16, 8, answer(to("strings"), failed), []string{"failed/timeout", "failed/memory", "failed/shed"}},
		{"evaluations that make large sets", 16, 8, answer(to("set"), failed), []string{"failed/timeout", "failed/memory", "failed/shed"}},
		{"evaluations that no memory holds", 16, 8, answer(to("shift"), failed), []string{"failed/evaluation"}},
		{"many streams that loop", 1500, 1500, answer(to("loop"), failed), []string{"failed/timeout", "failed/shed"}},
	}
	var most int64
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			counted := d.counted(t)
			most = max(most, d.meanwhile(t, func() { atOnce(row.n, row.beside, row.do) }))
			if len(row.counted) > 0 {
				d.counts(t, counted, row.n, row.counted)
			}
		})
		select {
		case <-d.Done:
			t.Fatal("the process ended")
		default:
		}
	}
	if grown := most - before; grown > grownBy {
		t.Errorf("it grew by %d MiB, from %d", grown>>20, before>>20)
	}
	t.Logf("it grew by %d MiB, from %d", (most-before)>>20, before>>20)
	for _, word := range []string{"panic", "fatal error"} {
		if strings.Contains(d.Tail(), word) {
			t.Errorf("the log has %q", word)
		}
	}
}

// counts waits until n more decisions are counted under these reasons; what honest callers add is not under them, but for what
// was shed of them.
func (d *decider) counts(t *testing.T, before map[string]int, n int, reasons []string) {
	t.Helper()
	testdomain.Until(t, 10*time.Second, "it is counted", func() error {
		now, sum := d.counted(t), 0
		for _, reason := range reasons {
			sum += now[reason] - before[reason]
		}
		if sum < n {
			return fmt.Errorf("%d of %d counted under %v: %v", sum, n, reasons, more(before, now))
		}
		return nil
	})
	t.Log(more(before, d.counted(t)))
}

func more(before, now map[string]int) map[string]int {
	out := maps.Clone(now)
	maps.DeleteFunc(out, func(k string, v int) bool { return v == before[k] })
	for k := range out {
		out[k] -= before[k]
	}
	return out
}

// hurried asks with a deadline that may pass before the answer: then no answer is right, and one that comes must be.
func (d *decider) hurried(path string, within time.Duration) func(int) {
	return func(int) {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		_, _ = d.ask(ctx, to(path))
	}
}

func wireOf(t *testing.T, r *authv3.CheckRequest) []byte {
	t.Helper()
	b, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// badPath is a request whose path is one byte that no text has.
func badPath() []byte { return []byte{0x0a, 0x07, 0x22, 0x05, 0x12, 0x03, 0x22, 0x01, 0xff} }

// withBody is a request with a JSON body, a list of n numbers.
func withBody(n int, number string) *authv3.CheckRequest {
	r := to("body")
	r.Attributes.Request.Http.Headers = map[string]string{"content-type": "application/json"}
	r.Attributes.Request.Http.Body = "[" + strings.Repeat(number+",", n-1) + number + "]"
	return r
}

// manyFields is a request with 100,000 headers.
func manyFields() *authv3.CheckRequest {
	r := to("headers")
	r.Attributes.Request.Http.Headers = map[string]string{}
	for i := range 100_000 {
		r.Attributes.Request.Http.Headers[fmt.Sprintf("x-%d", i)] = "canary"
	}
	return r
}

// TestHostileFolder: whatever stands in the folder, the set before it decides on, memory stays bounded, and health and metrics say
// what is wrong.
func TestHostileFolder(t *testing.T) {
	t.Parallel()
	d := newDecider(t)
	before, live := rss(t, d.PID), d.health(t).Revision
	if live == "" {
		t.Fatal("no revision is shown")
	}
	large := filepath.Join(d.policy, "data.json")
	file, err := os.Create(large)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(500_000_000); err != nil {
		t.Fatal(err)
	}
	refusals := 0
	refused := func(words string) func() {
		return func() {
			refusals++
			testdomain.Until(t, 30*time.Second, "it is refused", func() error {
				h := d.health(t)
				if !strings.Contains(h.LastError, words) || h.Revision != live {
					return fmt.Errorf("%+v", h)
				}
				return nil
			})
			want := fmt.Sprintf("writ_policy_reload_failures_total{set=\"default\"} %d", refusals)
			if text := get(t, d.Metrics); !strings.Contains(text, want) || !strings.Contains(text, `revision="`+live+`"`) {
				t.Errorf("metrics have no %q, or not the live revision", want)
			}
		}
	}
	most := d.meanwhile(t, refused("data.json has 500000000 bytes, more than the 16777216 (16 MiB) that such a file may have"))
	os.Remove(large)
	testdomain.Until(t, 10*time.Second, "it is mended", func() error {
		if h := d.health(t); h.LastError != "" || h.Revision != live {
			return fmt.Errorf("%+v", h)
		}
		return nil
	})
	for name, row := range map[string]struct{ file, text, says string }{
		"YAML whose aliases multiply":    {"data.yaml", "a: &a [x,x,x,x,x,x,x,x,x]\n" + aliases(), "data.yaml: yaml: document contains excessive aliasing"},
		"YAML that is nested too deep":   {"data.yaml", "a: " + strings.Repeat("[", 1<<20), "data.yaml: yaml: exceeded max depth"},
		"Rego that is nested too deep":   {"b.rego", "package b\na := " + strings.Repeat("[", 1<<19), "b.rego:2: max parsing recursion depth"},
		"two million and one values":     {"data.json", `{"a": [` + strings.Repeat("1,", 2_000_000) + `1]}`, "more than 2000000 values"},
		"a test that fails":              {"b_test.rego", "package b\ntest_a if false\n", "test_a failed"},
		"a case that no memory can hold": {"cases/a.yaml", "description: a\nwant: true\ninput: {parsed_path: [shift]}\n", "bits.lsh"},
	} {
		t.Run(name, func(t *testing.T) {
			at := filepath.Join(d.policy, row.file)
			os.MkdirAll(filepath.Dir(at), 0o755)
			writeFile(t, at, row.text)
			most = max(most, d.meanwhile(t, refused(row.says)))
			os.Remove(at)
			testdomain.Until(t, 10*time.Second, "it is mended", func() error {
				if h := d.health(t); h.LastError != "" {
					return fmt.Errorf("%+v", h)
				}
				return nil
			})
		})
	}
	if grown := most - before; grown > grownBy {
		t.Errorf("it grew by %d MiB, from %d", grown>>20, before>>20)
	}
	t.Logf("it grew by %d MiB, from %d", (most-before)>>20, before>>20)
}

func aliases() (text string) {
	for c := 'b'; c <= 'h'; c++ {
		text += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 9), ","))
	}
	return text
}

// shownPolicy is what /healthz says of the policy set.
type shownPolicy struct {
	Revision  string `json:"revision"`
	LastError string `json:"last_error"`
}

func (d *decider) health(t *testing.T) shownPolicy {
	t.Helper()
	var h struct{ Policy shownPolicy }
	if err := json.Unmarshal([]byte(get(t, d.Health)), &h); err != nil {
		t.Fatal(err)
	}
	return h.Policy
}
