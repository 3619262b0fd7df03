package workloadapi_test

import (
	"crypto/rand"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/agent/agenttest"
)

// preface begins every HTTP/2 connection; the empty settings frame follows.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"

func random(t *testing.T, n int) string {
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// What comes over one connection costs that connection, and no other's stream an update.
func TestHostileBytesHurtNobodyElse(t *testing.T) {
	n := newNode(t)
	n.server.Apply(entry("web"))
	n.start()
	conn := agenttest.Dial(t, n.path)
	w := svids(t, conn)
	w.next()
	for _, row := range []struct {
		name, sent string
		hungUp     bool // upon, by the server
	}{
		{"nothing", "", false},
		{"random bytes", random(t, 1<<20), true},
		{"HTTP/1", "GET / HTTP/1.1\r\nHost: localhost\r\nworkload.spiffe.io: true\r\n\r\n", true},
		{"random bytes after a preface", preface + random(t, 1<<20), true},
		{"a frame over the largest size", preface + "\xff\xff\xff\x00\x00\x00\x00\x00\x01" + random(t, 1<<20), true},
		{"headers that never end", preface + "\x00\x00\x01\x01\x00\x00\x00\x00\x01\x82" +
			strings.Repeat("\x00\x00\x04\x09\x00\x00\x00\x00\x01\x00\x01a\x00", 10_000), true},
		{"a reset of streams that are not there", preface + strings.Repeat("\x00\x00\x04\x03\x00\x00\x00\x00\x07\x00\x00\x00\x08", 1000), false},
		{"half a preface", preface[:10], false},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, err := net.Dial("unix", n.path)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			if err := c.SetDeadline(time.Now().Add(within)); err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(c, row.sent) // the other end may have had enough before the last byte
			if row.hungUp {
				_, err := io.Copy(io.Discard, c)
				if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
					t.Error("nobody hung up")
				}
			}
			n.server.Apply(hinted("web", row.name))
			if got := w.next().GetSvids()[0].GetHint(); got != row.name {
				t.Errorf("the other stream got %q", got)
			}
		})
	}
	for name, request := range map[string][]byte{"over 1 MiB": make([]byte, 2<<20), "no message": {0xff, 0xff, 0xff}} {
		err := call(withHeader(t.Context(), "true"), conn, "/SpiffeWorkloadAPI/FetchX509SVID", request)
		if code := status.Code(err); code != codes.ResourceExhausted && code != codes.Internal {
			t.Errorf("a request that is %s: %v", name, err)
		}
	}
	n.server.Apply(hinted("web", "last"))
	if got := w.next().GetSvids()[0].GetHint(); got != "last" {
		t.Errorf("the stream beside them on one connection got %q", got)
	}
}
