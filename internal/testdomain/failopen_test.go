package testdomain_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// callersAnswer is a policy that answers what the caller says: the worst that one can do who copies what a client sends.
const callersAnswer = `package envoy.authz

default allow := true

allow := json.unmarshal(input.attributes.request.http.headers["x-answer"])
`

// TestDenialsStayDenialsWhereTheProxyFailsOpen: nothing that a client feeds into a denial makes the Envoy take it for a failed call.
func TestDenialsStayDenialsWhereTheProxyFailsOpen(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.writePolicy(t, "authz.rego", callersAnswer)
	m.api.FailOpen = true
	m.up(t, "1h")
	lists := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	objects := func(n int) string { return strings.Repeat(`{"k":`, n) + "1" + strings.Repeat("}", n) }
	const none = "no decision could be made\n"
	type row struct {
		name, answer string
		code         int
		body         string
	}
	rows := []row{
		{"metadata of 30 lists", `"dynamic_metadata": {"k": ` + lists(30) + `}`, 403, ""},
		{"metadata of 49 lists", `"dynamic_metadata": {"k": ` + lists(49) + `}`, 503, none},
		{"metadata of 60 lists", `"dynamic_metadata": {"k": ` + lists(60) + `}`, 503, none},
		{"metadata of 5,000 lists", `"dynamic_metadata": {"k": ` + lists(5000) + `}`, 503, none},
		{"metadata of 20 objects", `"dynamic_metadata": ` + objects(20), 403, ""},
		{"metadata of 33 objects", `"dynamic_metadata": ` + objects(33), 503, none},
		{"metadata of 2,000 objects", `"dynamic_metadata": ` + objects(2000), 503, none},
		{"metadata of odd texts", `"dynamic_metadata": {"\ud800": "\udfff\u0000", "": "\ufffe"}`, 403, ""},
		{"a body of odd texts", `"body": "\ud800\u0000"`, 403, "\ufffd\x00"},
		{"a header of 40 KiB", `"headers": {"x-a": "` + strings.Repeat("a", 40<<10) + `"}`, 503, none},
		{"a header with a line break", `"headers": {"x-a": "a\nb"}`, 503, none},
		{"a number that no double holds", `"dynamic_metadata": {"k": 1e999}`, 503, none},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			m.denies(t, `{"allowed": false, `+row.answer+`}`, row.code, row.body)
		})
	}
	unusable := 0
	for _, row := range rows {
		if row.code == http.StatusServiceUnavailable {
			unusable++
		}
	}
	want := fmt.Sprintf("writ_decisions_total{outcome=\"failed\",reason=\"unusable\",set=\"default\"} %d", unusable)
	if text := get(t, m.Metrics); !strings.Contains(text, want) {
		t.Errorf("metrics have no %s", want)
	}

	// It proves nothing where the Envoy would have denied anyway.
	m.Stop(t)
	m.web.Reaches(t, 10*time.Second, http.StatusOK, "GET", "/orders")
}

// denies has api's policy give an answer, which must be this denial, and leave the connection fit for the next call.
func (m *mesh) denies(t *testing.T, answer string, code int, body string) {
	t.Helper()
	asked := m.api.Asked()
	a, err := m.web.Call("GET", "/orders", http.Header{"X-Answer": {answer}})
	if err != nil {
		t.Fatal(err)
	}
	if a.Code != code || a.Body != body || a.Got != nil || m.api.Asked() != asked {
		t.Errorf("answered %d %.100q, and %d calls reached api; want %d %q", a.Code, a.Body, m.api.Asked()-asked, code, body)
	}
	if a, err := m.web.Call("GET", "/orders", nil); err != nil || a.Code != http.StatusOK || a.Got == nil {
		t.Errorf("the next call: %d %.100q, %v", a.Code, a.Body, err)
	}
}

// TestStatusesOfDenialsThroughEnvoy: a denial has the status that its policy gives it, also one that Envoy's protos have no name for.
func TestStatusesOfDenialsThroughEnvoy(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.writePolicy(t, "authz.rego", callersAnswer)
	m.up(t, "1h")
	for _, code := range []int{200, 299, 304, 399, 400, 418, 425, 451, 499, 500, 520, 599} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			m.denies(t, fmt.Sprintf(`{"allowed": false, "http_status": %d}`, code), code, "")
		})
	}
	for _, code := range []int{204, 205, 304} {
		t.Run(fmt.Sprintf("%d with a body, which such an answer has not", code), func(t *testing.T) {
			m.denies(t, fmt.Sprintf(`{"allowed": false, "http_status": %d, "body": "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"}`, code), code, "")
		})
	}
	for _, code := range []int{100, 101, 103, 199, 600, 999} {
		t.Run(fmt.Sprintf("%d is no answer", code), func(t *testing.T) {
			m.denies(t, fmt.Sprintf(`{"allowed": false, "http_status": %d}`, code), 503, "no decision could be made\n")
		})
	}
}
