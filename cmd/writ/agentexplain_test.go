package main

import (
	"errors"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/agent"
	"github.com/writ-dev/writ/internal/fault"
)

// What one end of the agent's admin socket means the other hears, and nothing of what is for the log.
func TestFaultsCrossTheAgentsSocket(t *testing.T) {
	for _, kind := range []fault.Kind{fault.Invalid, fault.NotFound, fault.Conflict, fault.Denied, fault.Unavailable, fault.Internal} {
		err := fault.New(kind, errors.New("secret"), "it did not work").With(fault.ProcessUnknown, "try so").Because("one", "two")
		w := httptest.NewRecorder()
		answerFault(w, err)
		if strings.Contains(w.Body.String(), "secret") || w.Code < 400 {
			t.Errorf("%s: %d %s", kind, w.Code, w.Body)
		}
		var got *fault.Error
		if !errors.As(readFault(w.Result(), w.Body.Bytes()), &got) || got.Kind != kind {
			t.Fatalf("%s is heard as %v", kind, got)
		}
		if kind == fault.Internal {
			if got.What != "internal error" || got.Why != nil {
				t.Errorf("internal is heard as %+v", got)
			}
		} else if got.What != err.What || got.Code != err.Code || got.Fix != err.Fix || !cmp.Equal(got.Why, err.Why) {
			t.Errorf("%s is heard as %+v", kind, got)
		}
	}
	w := httptest.NewRecorder()
	answerFault(w, errors.New("secret"))
	if strings.Contains(w.Body.String(), "secret") {
		t.Errorf("a plain error is answered: %s", w.Body)
	}
}

func TestAgentRefusesNumbersOfAnotherNamespace(t *testing.T) {
	socket := adminOver(t, filepath.Join(t.TempDir(), "none"))
	for _, path := range []string{explainPath, suggestPath} {
		_, err := getAgent(t.Context(), socket, path, url.Values{"pid": {"1"}, "space": {"pid:[1]"}})
		var f *fault.Error
		if !errors.As(err, &f) || f.Code != fault.ProcessUnknown || len(f.Why) != 2 || !strings.Contains(f.Why[0], "pid:[1]") || !strings.Contains(f.Why[1], pidSpace()) {
			t.Errorf("%s: got %v", path, err)
		}
		_, err = getAgent(t.Context(), socket, path, url.Values{"pid": {"99999999999"}, "space": {pidSpace()}})
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: got %v", path, err)
		}
	}
}

func TestExplanationReads(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	whole := func(bend func(*explained)) explained {
		e := explained{Explanation: agent.Explanation{PID: 7, UID: 1, GID: 2, Path: "/a\x1b[2J", AgentID: "spiffe://a/n", Selectors: []string{"unix:uid:1"}, Synced: true}}
		bend(&e)
		return e
	}
	match := func(state agent.SVIDState, code fault.Code) func(*explained) {
		return func(e *explained) {
			e.Code = code
			e.Matches = []agent.MatchedEntry{{Entry: "web", SPIFFEID: "spiffe://a/web", Revision: 3, State: state, Code: code, Reason: "it says so",
				NotAfter: now.Add(time.Minute), RetryAt: now.Add(time.Second)}}
		}
	}
	const elsewhere = "  entries for other nodes, and those that expired, are not known here: writ entry get shows them\n"
	const head = "process 7 (uid 1, gid 2, /a\\u001b[2J) on spiffe://a/n\nselectors\n  unix:uid:1\n"
	for _, row := range []struct {
		name string
		bend func(*explained)
		want string
	}{
		{"refused", match(agent.Refused, fault.NotEntitled), "identities\n  spiffe://a/web   (entry web, revision 3)   refused: it says so (P2003), asked again in 1s\n" +
			"no identity (P2003): the server gives no SVID\n  more: writ explain error P2003\n"},
		{"held, and not renewed", func(e *explained) { match(agent.Held, fault.NotEntitled)(e); e.Code = "" },
			"identities\n  spiffe://a/web   (entry web, revision 3)   held, valid for 1m0s; it is not renewed: it says so (P2003)\n"},
		{"pending", match(agent.Pending, ""), "identities\n  spiffe://a/web   (entry web, revision 3)   pending: it says so\n"},
		{"ended", func(e *explained) { match(agent.Ended, "")(e); e.Matches[0].NotAfter = now.Add(-time.Hour) },
			"identities\n  spiffe://a/web   (entry web, revision 3)   ended 1h0m0s ago: it says so\n"},
		{"expired", func(e *explained) {
			match(agent.Expired, fault.NoIdentity)(e)
			e.Remedy = &agent.Remedy{Fix: "apply it with a later `expires`, or without"}
		}, "identities\n  spiffe://a/web   (entry web, revision 3)   expired: it says so\n" +
			"no identity (P2004): every entry that matches has expired\n  fix:  apply it with a later `expires`, or without\n  more: writ explain error P2004\n"},
		{"an agent that starts", func(e *explained) { e.Code, e.Degraded = fault.AgentStarting, "banned" },
			"no identity (P2005): the agent does not know its entries yet\n  fix:  see what /healthz of the agent waits for; connected to a server: false; banned\n  more: writ explain error P2005\n"},
		{"a node without entries", func(e *explained) {
			e.Code, e.Revision, e.Node = fault.NoIdentity, 9, []string{"join_token:name:x"}
			e.Remedy = &agent.Remedy{Fix: "writ entry suggest --pid 7 | writ entry apply -f -"}
		},
			"no identity (P2004): no entry of this node matches (0 at revision 9)\n" +
				"  this node's selectors are: join_token:name:x\n" + elsewhere +
				"  fix:  writ entry suggest --pid 7 | writ entry apply -f -\n  more: writ explain error P2004\n"},
		{"what cannot be suggested", func(e *explained) {
			e.Code = fault.NoIdentity
			e.Nearest = []agent.NearEntry{{Entry: "web", SPIFFEID: "spiffe://a/web", Missing: []agent.MissingSelector{{Want: "unix:uid:9"}}}}
			e.Remedy = &agent.Remedy{Why: []string{"it has no user"}, Fix: "run it otherwise", Or: "or so"}
		},
			"no identity (P2004): no entry of this node matches (0 at revision 0)\nnearest entry: spiffe://a/web   (entry web, revision 0)\n" +
				"    missing  unix:uid:9   the process has nothing of that kind\n" + elsewhere + "  it has no user\n" +
				"  fix:  make the process what the entry says, change the entry, or run it otherwise\n  or:   or so\n  more: writ explain error P2004\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			var out strings.Builder
			printExplanation(&out, whole(row.bend), now)
			if diff := cmp.Diff(head+row.want, out.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
