package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/audit"
)

// smallDisk is a volume of its own, of one MiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	if err := syscall.Mount("tmpfs", folder, "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		t.Fatalf("mount a small disk, which needs root: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(folder, syscall.MNT_DETACH) })
	return folder
}

// fillDisk leaves no room, and gives the file that takes it.
func fillDisk(t *testing.T, folder string) string {
	t.Helper()
	filler := filepath.Join(folder, "filler")
	if err := os.WriteFile(filler, make([]byte, 2<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
	return filler
}

func logTo(t *testing.T) (*slog.Logger, func() string) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	return logConfig{}.logger(file), func() string {
		text, err := os.ReadFile(file.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
}

// value is that of a metric.
func value(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.Metric[0].GetCounter().GetValue() + f.Metric[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no %s", name)
	return 0
}

// A full disk is told of where people look, once, and keeps the node from its job only where records are required.
func TestFullDiskOfDecisionRecordsIsTold(t *testing.T) {
	for _, required := range []bool{true, false} {
		t.Run(fmt.Sprintf("required %t", required), func(t *testing.T) {
			folder := smallDisk(t)
			log, said := logTo(t)
			metrics := prometheus.NewRegistry()
			k, err := newRecordKeeper(recordsConfig{File: filepath.Join(folder, "d.jsonl"), Required: required}, "", "example.org", log, metrics)
			if err != nil {
				t.Fatal(err)
			}
			asked := func() health {
				h := health{Status: "ok", Parts: map[string]string{}}
				k.health(&h)
				return h
			}
			taken := 0
			put := func() {
				if k.ring.Put(&audit.Decision{DecisionID: strconv.Itoa(taken), Path: "/" + strings.Repeat("x", 5000)}) {
					taken++
				}
			}
			put()
			eventuallyTrue(t, "the first record is written", func() bool { return k.ring.Count(audit.Written) == 1 })
			if h := asked(); h.Status != "ok" || h.Parts["records"] != "ok" {
				t.Errorf("with room health is %+v", h)
			}

			filler := fillDisk(t, folder)
			put()
			eventuallyTrue(t, "health tells of the full disk", func() bool { return asked().Parts["records"] != "ok" })
			h := asked()
			for _, part := range []string{"since 20", "no space left on device", "P5005", "d.jsonl"} {
				if !strings.Contains(h.Parts["records"], part) {
					t.Errorf("health does not say %q: %s", part, h.Parts["records"])
				}
			}
			if (h.Status == "degraded") != required {
				t.Errorf("the status is %s", h.Status)
			}
			for range 20 { // each of these fails, or waits behind what does
				put()
			}
			if required {
				eventuallyTrue(t, "the write is tried again", func() bool { return value(t, metrics, "writ_authz_records_write_failures_total") > 2 })
			}
			if value(t, metrics, "writ_authz_records_write_failures_total") < 1 || value(t, metrics, "writ_authz_records_failing") != 1 {
				t.Error("the metrics do not show the failing writes")
			}

			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			put()
			eventuallyTrue(t, "health is well again", func() bool { return asked().Parts["records"] == "ok" })
			if h := asked(); h.Status != "ok" || value(t, metrics, "writ_authz_records_failing") != 0 {
				t.Errorf("with room again health is %+v", h)
			}
			k.close()
			text, err := os.ReadFile(k.file)
			if err != nil {
				t.Fatal(err)
			}
			if lost := taken - strings.Count(string(text), "\n"); required && lost != 0 || lost != int(k.ring.Dropped()) {
				t.Errorf("%d of %d records are lost, %d are counted", lost, taken, k.ring.Dropped())
			}
			for _, line := range []string{`"decision records cannot be written"`, `"decision records are written again"`} {
				if n := strings.Count(said(), line); n != 1 {
					t.Errorf("%d lines of the log say %s", n, line)
				}
			}
			for _, part := range []string{`"code":"P5005"`, `"file":"` + k.file + `"`, `"fix":"make room`, `"elapsed":`} {
				if !strings.Contains(said(), part) {
					t.Errorf("the log does not say %s:\n%s", part, said())
				}
			}
		})
	}
}

// An error of a write that is late may not be taken for that of the disk's next answer.
func TestWriteThatHangsIsToldOfBeforeItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		wrong := fileTrouble(slog.New(slog.NewTextHandler(&out, nil)), "f", "fails", "works")
		end := wrong.begin()
		time.Sleep(hangs - time.Second)
		if got := wrong.now(); got != "" {
			t.Errorf("too early: %s", got)
		}
		time.Sleep(2 * time.Second)
		if got := wrong.now(); !strings.Contains(got, "a write has not ended after 5s") {
			t.Errorf("a write hangs and health says %q", got)
		}
		end(nil)
		time.Sleep(time.Minute)
		if wrong.now() != "" || strings.Count(out.String(), "\n") != 2 {
			t.Errorf("it ended; health says %q, the log\n%s", wrong.now(), out.String())
		}
	})
}

func TestFileThatCannotBeRotatedIsWrittenAndToldOf(t *testing.T) {
	folder := t.TempDir()
	file := filepath.Join(folder, "d.jsonl")
	if err := os.MkdirAll(filepath.Join(file+".1", "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	log, said := logTo(t)
	config := recordsConfig{File: file, Required: true, Rotate: rotateConfig{Megabytes: 1, Files: 1}}
	k, err := newRecordKeeper(config, "", "example.org", log, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	asked := func() health {
		h := health{Status: "ok", Parts: map[string]string{}}
		k.health(&h)
		return h
	}
	eventuallyTrue(t, "health tells of it", func() bool {
		k.ring.Put(&audit.Decision{Path: strings.Repeat("x", 100<<10)})
		return strings.HasPrefix(asked().Parts["records"], "written, but no new file can be begun since 20")
	})
	if h := asked(); h.Status != "ok" || k.ring.Dropped() != 0 {
		t.Errorf("records are written; health is %+v, %d are lost", h, k.ring.Dropped())
	}
	if strings.Count(said(), `"decision records cannot be rotated"`) != 1 {
		t.Errorf("the log says\n%s", said())
	}
}

func TestTroubleShowsNoAddressThatMayHoldAKey(t *testing.T) {
	wrong := &trouble{log: slog.New(slog.DiscardHandler)}
	wrong.note(fmt.Errorf("send: %w", &url.Error{Op: "Post", URL: "https://c.example/logs?key=SECRET", Err: errors.Join(errors.New("a"), errors.New("b"))}))
	if got := wrong.now(); strings.Contains(got, "SECRET") || !strings.HasSuffix(got, ": a; b") {
		t.Errorf("health says %q", got)
	}
}

// The rows are in the store: a full disk keeps them from the file, and the server from nothing.
func TestFullDiskOfTheAuditFileIsTold(t *testing.T) {
	folder, sockets := smallDisk(t), t.TempDir()
	log, said := logTo(t)
	file := filepath.Join(folder, "audit.jsonl")
	c := serverConfig{TrustDomain: "example.org", DataDir: filepath.Join(t.TempDir(), "data"), Listen: "127.0.0.1:0",
		AdminSocket: filepath.Join(sockets, "a.sock")}
	c.Audit.File = file
	ctx, stop := context.WithCancel(t.Context())
	metrics := prometheus.NewRegistry()
	d, err := newServerDaemon(ctx, c.withDefaults(), log, metrics)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- d.run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	eventuallyTrue(t, "the first rows are in the file", func() bool { info, err := os.Stat(file); return err == nil && info.Size() > 0 })
	if h := d.health(); h.Status != "ok" || h.Parts["audit"] != "ok" {
		t.Errorf("with room health is %+v", h)
	}

	filler := fillDisk(t, folder)
	tokens := 0
	eventuallyTrue(t, "health tells of the full disk", func() bool {
		err := callAdmin(ctx, c.AdminSocket, func(ctx context.Context, admin adminv1.AdminClient) error {
			_, err := admin.CreateToken(ctx, &adminv1.CreateTokenRequest{Ttl: durationpb.New(time.Minute)})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		tokens++
		return strings.Contains(d.health().Parts["audit"], "no space left on device")
	})
	if h := d.health(); h.Status != "ok" || value(t, metrics, "writ_server_audit_failing") != 1 {
		t.Errorf("the server can do its job; health is %+v", h)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	eventuallyTrue(t, "health is well again", func() bool { return d.health().Parts["audit"] == "ok" })
	eventuallyTrue(t, "every row is in the file", func() bool {
		text, err := os.ReadFile(file)
		return err == nil && strings.Count(string(text), `"token create"`) == tokens
	})
	for _, line := range []string{`"the audit file cannot be written"`, `"the audit file is written again"`} {
		if n := strings.Count(said(), line); n != 1 {
			t.Errorf("%d lines of the log say %s", n, line)
		}
	}
}

func TestReceiverThatTakesNothingIsToldOf(t *testing.T) {
	code := atomic.Int64{}
	code.Store(http.StatusServiceUnavailable)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(code.Load())) }))
	defer receiver.Close()
	log, said := logTo(t)
	config := recordsConfig{File: "off", Upload: &receiverConfig{URL: receiver.URL}}
	k, err := newRecordKeeper(config, "", "example.org", log, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	asked := func() health {
		h := health{Status: "ok", Parts: map[string]string{}}
		k.health(&h)
		return h
	}
	if h := asked(); h.Status != "ok" || len(h.Parts) != 1 || h.Parts["upload"] != "ok" {
		t.Errorf("before anything is sent health is %+v", h)
	}
	k.ring.Put(&audit.Decision{})
	eventuallyTrue(t, "health tells what the receiver answered", func() bool { return strings.HasSuffix(asked().Parts["upload"], "answered 503") })
	if h := asked(); h.Status != "ok" {
		t.Errorf("decisions go on; health is %+v", h)
	}
	code.Store(http.StatusOK)
	eventuallyTrue(t, "health is well again", func() bool { return asked().Parts["upload"] == "ok" })
	for _, line := range []string{`"decision records not sent yet"`, `"decision records are sent again"`} {
		if n := strings.Count(said(), line); n != 1 {
			t.Errorf("%d lines of the log say %s", n, line)
		}
	}
}

func TestCollectorThatTakesNothingIsToldOf(t *testing.T) {
	var refuses atomic.Bool
	refuses.Store(true)
	at := &otlp{answer: func(context.Context) (*collectorv1.ExportTraceServiceResponse, error) {
		if refuses.Load() {
			return nil, status.Error(codes.ResourceExhausted, "full up")
		}
		return &collectorv1.ExportTraceServiceResponse{}, nil
	}}
	log, said := logTo(t)
	traces := traceTo(t, tracesConfig{Endpoint: at.serve(t)}, log)
	defer traces.close()
	part := func() string {
		h := health{Status: "ok", Parts: map[string]string{}}
		if traces.health(&h); h.Status != "ok" {
			t.Errorf("decisions go on; health is %+v", h)
		}
		return h.Parts["traces"]
	}
	if part() != "ok" {
		t.Errorf("before anything is sent health says %s", part())
	}
	traces.end(1)
	eventuallyTrue(t, "health tells what the collector answered", func() bool { return strings.HasSuffix(part(), "full up") })
	refuses.Store(false)
	traces.end(1)
	eventuallyTrue(t, "health is well again", func() bool { return part() == "ok" })
	for _, line := range []string{`"spans not taken by their collector"`, `"spans are taken by their collector again"`} {
		if n := strings.Count(said(), line); n != 1 {
			t.Errorf("%d lines of the log say %s", n, line)
		}
	}
}
