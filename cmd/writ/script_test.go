package main

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"writ": main})
}

// TestCommands runs testdata/*.txtar: every command as a person types it. Beside testscript's own commands there is
// `ready FILE`, which waits for a ready file and sets WRIT_ADMIN, SPIFFE_ENDPOINT_SOCKET and the like from it, and
// `eventually COMMAND...`, which runs a writ command until it ends with 0.
func TestCommands(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("UID", fmt.Sprint(os.Getuid()))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"ready": ready, "eventually": eventually},
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
			ts.Setenv("HEALTH", r.Health)
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
