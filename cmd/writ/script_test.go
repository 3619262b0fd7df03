package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/authz/policy"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"writ": main})
}

// TestCommands runs testdata/*.txtar: every command as a person types it. Beside testscript's own commands there is
// `ready FILE`, which waits for a ready file and sets WRIT_ADMIN, SPIFFE_ENDPOINT_SOCKET and the like from it, and
// `eventually COMMAND...`, which runs a writ command until it ends with 0, `check SOURCE METHOD PATH`, which asks ext_authz as Envoy
// does, waits for the record and sets ID, and `private FILE...`, which says that nobody but the owner may open them. `reflects [ADDRESS SERVICE...]`
// says that ext_authz lists its services, and `process VAR PROGRAM ARGS...` starts a process and sets VAR to its id.
func TestCommands(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("UID", fmt.Sprint(os.Getuid()))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"ready": ready, "eventually": eventually, "check": check, "private": private, "reflects": reflects,
			"process": process},
	})
}

// ready waits for a ready file that is whole, and lets the script's commands find the domain.
func ready(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: ready FILE")
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var r readyFile
		data, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil {
			err = json.Unmarshal(data, &r)
		}
		if err == nil {
			ts.Setenv(adminVariable, r.Admin)
			ts.Setenv(workloadVariable, r.WorkloadAPI)
			ts.Setenv(agentAdminVariable, r.AgentAdmin)
			ts.Setenv("AUTHZ", r.ExtAuthz[0])
			ts.Setenv("HEALTH", r.Health)
			ts.Setenv("METRICS", r.Metrics)
			ts.Setenv("SERVER", r.Server)
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("not ready: %v", err)
		}
	}
}

// eventually runs a command until it succeeds: for what is pushed, and so there within moments.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := ts.Exec(args[0], args[1:]...)
		if (err == nil) != neg {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%v never came to that: %v", args, err)
		}
	}
}

// check asks ext_authz once, and for the record until it is there.
func check(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: check SOURCE METHOD PATH [host=HOST] [to=DESTINATION] [set=NAME] [token=FILE]")
	}
	request := &authv3.AttributeContext{Source: &authv3.AttributeContext_Peer{Principal: args[0]}, ContextExtensions: map[string]string{},
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Method: args[1], Path: args[2], Host: "api"}}}
	for _, arg := range args[3:] {
		switch key, value, _ := strings.Cut(arg, "="); key {
		case "host":
			request.Request.Http.Host = value
		case "to":
			request.Destination = &authv3.AttributeContext_Peer{Principal: value}
		case "token":
			request.Request.Http.Headers = map[string]string{"authorization": "Bearer " + strings.TrimSpace(ts.ReadFile(value))}
		case "set":
			request.ContextExtensions[policy.ContextKey] = value
		default:
			ts.Fatalf("check: what is %s?", arg)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	id, err := decide(ctx, ts.Getenv("AUTHZ"), request)
	ts.Check(err)
	ts.Setenv("ID", id)
	eventually(ts, false, []string{"writ", "tail", "decisions", "--id", id})
}

// decide asks ext_authz once and gives the decision's id.
func decide(ctx context.Context, target string, request *authv3.AttributeContext) (id string, err error) {
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	answer, err := authv3.NewAuthorizationClient(conn).Check(ctx, &authv3.CheckRequest{Attributes: request})
	return answer.GetDynamicMetadata().GetFields()["decision_id"].GetStringValue(), err
}

// reflects asks ext_authz, or the address it is given, which services it has.
func reflects(ts *testscript.TestScript, neg bool, args []string) {
	address, services := ts.Getenv("AUTHZ"), []string{"envoy.service.auth.v3.Authorization"}
	if len(args) > 0 {
		address, services = args[0], args[1:]
	}
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	ts.Check(err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	stream, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	ts.Check(err)
	// A stream that the server has ended already fails with EOF here; Recv tells why.
	_ = stream.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}})
	answer, err := stream.Recv()
	if neg && status.Code(err) == codes.Unimplemented {
		return
	}
	ts.Check(err)
	for _, service := range services {
		if neg || !strings.Contains(answer.String(), strconv.Quote(service)) {
			ts.Fatalf("it answers %v", answer)
		}
	}
}

func process(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: process VAR PROGRAM ARGS...")
	}
	cmd := exec.Command(ts.MkAbs(args[1]), args[2:]...)
	ts.Check(cmd.Start())
	ts.Defer(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	ts.Setenv(args[0], fmt.Sprint(cmd.Process.Pid))
}

func private(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		info, err := os.Stat(ts.MkAbs(name))
		ts.Check(err)
		if info.Mode().Perm() != 0o600 {
			ts.Fatalf("%s has mode %04o", name, info.Mode().Perm())
		}
	}
}
