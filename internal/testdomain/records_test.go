package testdomain_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/writ-dev/writ/internal/testdomain"
)

// TestFullDiskOfRequiredRecordsIsNotReady: requests are denied, whoever asks whether the node is well hears why, and all goes on by
// itself once there is space.
func TestFullDiskOfRequiredRecordsIsNotReady(t *testing.T) {
	t.Parallel()
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(disk, syscall.MNT_DETACH) })
	config := filepath.Join(t.TempDir(), "dev.yaml")
	write(t, config, fmt.Sprintf("agent: {authz: {records: {file: %s/d.jsonl, required: true}}}\n", disk))
	d := testdomain.New(t, testdomain.Built(t), "--config", config)
	conn, err := grpc.NewClient(d.ExtAuthz[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ask := func(weight int) typev3.StatusCode {
		request := to("x")
		request.Attributes.Request.Http.Headers = map[string]string{"x-weight": strings.Repeat("x", weight)}
		answer, err := authv3.NewAuthorizationClient(conn).Check(context.Background(), request)
		if err != nil {
			t.Fatal(err)
		}
		return answer.GetDeniedResponse().GetStatus().GetCode()
	}
	ready := func() (code int) {
		answer, err := http.Get(strings.Replace(d.Health, "healthz", "readyz", 1))
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		return answer.StatusCode
	}
	if got := ready(); got != http.StatusOK {
		t.Fatalf("with room /readyz is %d", got)
	}

	filler := filepath.Join(disk, "filler")
	fill(t, filler)
	for weight := 3 << 20; ; weight /= 2 { // until even the lightest find no room
		denied := false
		for tries := 0; !denied && tries < 200; tries++ {
			denied = ask(weight) == typev3.StatusCode_ServiceUnavailable
		}
		if !denied {
			t.Fatalf("with a full disk 200 requests of %d bytes are answered by the policy", weight)
		}
		if weight == 0 {
			break
		}
	}
	if got := ready(); got != http.StatusServiceUnavailable {
		t.Errorf("with a full disk /readyz is %d", got)
	}
	for url, part := range map[string]string{d.Health: "no space left on device", d.Metrics: "\nwrit_authz_records_failing 1\n"} {
		if text := get(t, url); !strings.Contains(text, part) {
			t.Errorf("%s does not say %q:\n%s", url, part, text)
		}
	}
	if !strings.Contains(d.Tail(), "P5005") {
		t.Errorf("the log does not say P5005:\n%s", d.Tail())
	}

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	testdomain.Until(t, 10*time.Second, "requests are answered by the policy again, and the node is ready", func() error {
		if answer, code := ask(0), ready(); answer == typev3.StatusCode_ServiceUnavailable || code != http.StatusOK {
			return fmt.Errorf("a request is answered %v, /readyz %d", answer, code)
		}
		return nil
	})
}
