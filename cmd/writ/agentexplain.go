package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/agent"
	"github.com/writ-dev/writ/agent/peer"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/svid"
)

// What the agent's admin socket says of a process: `?pid=N`, with the PID namespace in which whoever asks means it.
const (
	explainPath = "/v1/explain"
	suggestPath = "/v1/suggest" // also id, or path in the agent's trust domain, and any
)

// explained is the answer of explainPath.
type explained struct {
	agent.Explanation
	Over bool `json:"ended"` // the process is gone; this is what it was when it last asked in vain
}

// suggested is the answer of suggestPath.
type suggested struct {
	YAML  string   `json:"yaml"`
	Holds []string `json:"holds"` // entries that the process matches already
	Over  bool     `json:"ended"`
}

func (d *agentDaemon) serveExplain(w http.ResponseWriter, r *http.Request) {
	s, over, err := d.sighting(r.Context(), r.URL.Query())
	if err != nil {
		d.refuse(w, r, err)
		return
	}
	answerJSON(w, explained{d.agent.Explain(s), over})
}

func (d *agentDaemon) serveSuggest(w http.ResponseWriter, r *http.Request) {
	values := r.URL.Query()
	s, over, err := d.sighting(r.Context(), values)
	if err != nil {
		d.refuse(w, r, err)
		return
	}
	e := d.agent.Explain(s)
	id, err := wantedID(values, e.TrustDomain)
	if err != nil {
		d.refuse(w, r, err)
		return
	}
	suggestion, err := d.agent.Suggest(s, id, values.Get("any") == "true")
	if err != nil {
		d.refuse(w, r, err)
		return
	}
	text, err := suggestion.YAML()
	if err != nil {
		d.refuse(w, r, err)
		return
	}
	answer := suggested{YAML: string(text), Over: over, Holds: []string{}}
	for _, m := range e.Matches {
		answer.Holds = append(answer.Holds, m.Entry)
	}
	answerJSON(w, answer)
}

func (d *agentDaemon) refuse(w http.ResponseWriter, r *http.Request, err error) {
	if fault.Is(err, fault.Internal) {
		d.log.ErrorContext(r.Context(), "process not explained", "err", err)
	}
	answerFault(w, err)
}

func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // who asked went away
}

// wantedID is zero where none is named.
func wantedID(values url.Values, domain string) (spiffeid.ID, error) {
	text := values.Get("id")
	if path := values.Get("path"); path != "" {
		text = "spiffe://" + domain + path
	}
	if text == "" {
		return spiffeid.ID{}, nil
	}
	id, err := svid.ParseID(text)
	if err != nil {
		return id, fault.New(fault.Invalid, nil, fmt.Sprintf("%q is no SPIFFE ID", text)).Because(err.Error()).With(fault.BadEntry, "name a path such as /orders")
	}
	return id, nil
}

// sighting looks at the process that a query names. Over means that it has ended and is known from when it last asked in vain.
func (d *agentDaemon) sighting(ctx context.Context, values url.Values) (s agent.Sighting, over bool, err error) {
	pid, err := strconv.ParseInt(values.Get("pid"), 10, 32)
	if err != nil {
		return s, false, fault.New(fault.Invalid, nil, fmt.Sprintf("pid %q is no number", values.Get("pid")))
	}
	if theirs, ours := values.Get("space"), pidSpace(); theirs != ours {
		return s, false, fault.New(fault.Invalid, nil, "process ids mean something else where the agent runs").
			Because("you are in PID namespace "+theirs, "the agent is in "+ours).
			With(fault.ProcessUnknown, "ask from the agent's PID namespace, by the id that the process has there")
	}
	p, err := peer.PinPID(int32(pid))
	if err != nil {
		if s, over = d.agent.Seen(int32(pid)); over && fault.Is(err, fault.NotFound) {
			return s, true, nil
		}
		return s, false, err
	}
	defer p.Close()
	s, err = d.agent.See(ctx, p)
	return s, false, err
}

// pidSpace names the PID namespace of this process, where the system has them.
func pidSpace() string {
	space, _ := os.Readlink("/proc/self/ns/pid")
	return space
}
