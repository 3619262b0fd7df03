//go:build parity

package policy_test

import (
	"context"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/authz"
)

// pluginEnv names the program to compare with: opa with opa-envoy-plugin in it.
const pluginEnv = "OPA_ENVOY_PLUGIN"

// TestParity asks opa-envoy-plugin all cases. It must answer as writ does, or as the case declares, and a case must not declare
// what is no difference.
func TestParity(t *testing.T) {
	program := os.Getenv(pluginEnv)
	if program == "" {
		t.Fatalf("%s names no program", pluginEnv)
	}
	var conn *grpc.ClientConn
	var stop func()
	defer func() { stop() }()
	asked := 0
	cases(t, func(name string, line int, c testCase, files map[string]string) {
		if c.Files != nil {
			if stop != nil {
				stop()
			}
			conn, stop = plugin(t, program, files)
		}
		if c.Plugin != nil && c.Plugin.Unasked != "" {
			return
		}
		asked++
		t.Run(name, func(t *testing.T) {
			got, want := ask(t, conn, c.bytes(t)), comparable(c.Want)
			if c.Plugin == nil {
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("line %d: an undeclared difference (-writ +plugin):\n%s", line, diff)
				}
				return
			}
			if diff := cmp.Diff(comparable(*c.Plugin), got); diff != "" {
				t.Errorf("line %d (-declared +plugin):\n%s", line, diff)
			}
			if cmp.Equal(want, got) {
				t.Errorf("line %d: what it declares is no difference", line)
			}
		})
	})
	t.Logf("%d cases asked", asked)
}

// comparable is an answer without what always differs: the order and the append actions of headers, our texts of failures, what
// only writ adds, and that a failure is an answer here and an error there.
func comparable(s short) short {
	s.Writ = nil
	trim := func(lines []string) (out []string) {
		for _, line := range lines {
			if line = strings.TrimPrefix(line, "+"); !strings.HasPrefix(line, authz.ReasonHeader) {
				out = append(out, line)
			}
		}
		slices.Sort(out)
		return out
	}
	s.Headers, s.ResponseHeaders, s.SetQuery = trim(s.Headers), trim(s.ResponseHeaders), trim(s.SetQuery)
	switch {
	case s.HTTP == 400:
		s.Body = ""
	case s.HTTP == 503 && s.Body == "no decision could be made\n":
		s = short{Error: "any"}
	case s.Error != "":
		s = short{Error: "any"}
	}
	return s
}

func ask(t *testing.T, conn *grpc.ClientConn, request []byte) short {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var answer []byte
	err := conn.Invoke(ctx, authv3.Authorization_Check_FullMethodName, request, &answer, grpc.WaitForReady(true))
	if err != nil {
		return comparable(short{Error: status.Code(err).String()})
	}
	var r authv3.CheckResponse
	if err := proto.Unmarshal(answer, &r); err != nil {
		t.Fatal(err)
	}
	s := short{HTTP: 200, Body: r.GetDeniedResponse().GetBody()}
	headers := r.GetOkResponse().GetHeaders()
	if r.GetStatus().GetCode() != 0 {
		s.HTTP, headers = 403, r.GetDeniedResponse().GetHeaders()
		if code := r.GetDeniedResponse().GetStatus().GetCode(); code != 0 {
			s.HTTP = int(code)
		}
	}
	s.Headers, s.ResponseHeaders = lines(headers), lines(r.GetOkResponse().GetResponseHeadersToAdd())
	s.Remove, s.RemoveQuery = r.GetOkResponse().GetHeadersToRemove(), r.GetOkResponse().GetQueryParametersToRemove()
	for _, p := range r.GetOkResponse().GetQueryParametersToSet() {
		s.SetQuery = append(s.SetQuery, p.GetKey()+"="+p.GetValue())
	}
	metadata := r.GetDynamicMetadata().AsMap()
	delete(metadata, "decision_id")
	if len(metadata) > 0 {
		s.Metadata = normal(metadata)
	}
	return comparable(s)
}

// plugin runs the program with a policy set's files, as its own configuration has them.
func plugin(t *testing.T, program string, files map[string]string) (*grpc.ClientConn, func()) {
	t.Helper()
	var manifest struct {
		Decision, Rego, Paths, Reason string
		Descriptors                   []string
	}
	if err := yaml.Unmarshal([]byte(files["policy.yaml"]), &manifest); err != nil {
		t.Fatal(err)
	}
	folder, run := t.TempDir(), t.TempDir()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		at := filepath.Join(folder, name)
		if slices.Contains(manifest.Descriptors, name) {
			at = filepath.Join(run, name)
		}
		if name == "policy.yaml" {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(files[name]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const key = "plugins.envoy_ext_authz_grpc."
	socket := filepath.Join(run, "s")
	args := []string{"run", "--server", "--log-level=error", "--disable-telemetry", "--addr=unix://" + filepath.Join(run, "api"),
		"--set=" + key + "addr=unix://" + socket}
	if manifest.Decision != "" {
		args = append(args, "--set="+key+"path="+strings.Trim(manifest.Decision, "/"))
	}
	if manifest.Rego == "v0" {
		args = append(args, "--v0-compatible")
	}
	for _, name := range manifest.Descriptors {
		args = append(args, "--set="+key+"proto-descriptor="+filepath.Join(run, name))
	}
	command := exec.Command(program, append(args, folder)...)
	command.Stdout, command.Stderr = io.Discard, os.Stderr
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{encoding.GetCodecV2(grpcproto.Name)})))
	if err != nil {
		t.Fatal(err)
	}
	return conn, func() {
		conn.Close()
		_ = command.Process.Kill()
		_ = command.Wait()
	}
}
