package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/internal/fault"
)

const (
	agentAdminVariable = "WRIT_AGENT_ADMIN"
	defaultAgentAdmin  = "/run/writ/agent-admin.sock"
)

// agentAdminFlag lets a command name the agent's admin socket.
func agentAdminFlag(cmd *cobra.Command) {
	cmd.Flags().String("agent-admin", "", "the agent's admin socket (default $"+agentAdminVariable+", else "+defaultAgentAdmin+")")
}

// agentAdmin gives the path of the agent's admin socket.
func agentAdmin(cmd *cobra.Command) (string, error) {
	return askedSocket(cmd, "agent-admin", agentAdminVariable, defaultAgentAdmin)
}

// getAgent asks the agent over its admin socket. The answer is OK, and the caller closes its body; anything else is the error.
func getAgent(ctx context.Context, socket, path string, values url.Values) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path+"?"+values.Encode(), nil)
	if err != nil {
		return nil, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialSocket(ctx, socket)
	}}}
	answer, err := client.Do(r)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, mayNotConnect("agent", socket)
	case err != nil:
		return nil, fault.New(fault.Unreachable, nil, "nobody answers on the agent's admin socket "+socket).Because(err.Error()).
			With("", "start `writ dev` or `writ agent run`, or name its socket with --agent-admin or "+agentAdminVariable)
	case answer.StatusCode == http.StatusOK:
		return answer, nil
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	return nil, readFault(answer, text)
}

// faultDocument is an error as the agent's admin socket answers it, after RFC 9457.
type faultDocument struct {
	Title string     `json:"title"`
	Kind  string     `json:"kind"`
	Code  fault.Code `json:"code,omitempty"`
	Why   []string   `json:"why,omitempty"`
	Fix   string     `json:"fix,omitempty"`
}

const faultType = "application/problem+json"

// answerFault answers an error that has a kind; of others the text is for the log.
func answerFault(w http.ResponseWriter, err error) {
	p := faultDocument{Title: "internal error", Kind: fault.KindOf(err).String()}
	var f *fault.Error
	if errors.As(err, &f) && f.Kind != fault.Internal {
		p = faultDocument{Title: f.What, Kind: f.Kind.String(), Code: f.Code, Why: f.Why, Fix: f.Fix}
	}
	w.Header().Set("Content-Type", faultType)
	w.WriteHeader(httpStatus(fault.KindOf(err)))
	_ = json.NewEncoder(w).Encode(p) // who asked went away
}

func httpStatus(kind fault.Kind) int {
	switch kind {
	case fault.Invalid:
		return http.StatusBadRequest
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Conflict:
		return http.StatusConflict
	case fault.Denied:
		return http.StatusForbidden
	case fault.Unavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// readFault is the other end of answerFault.
func readFault(answer *http.Response, text []byte) error {
	var p faultDocument
	form, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	if form != faultType || json.Unmarshal(text, &p) != nil {
		return fault.New(fault.NotFound, nil, strings.TrimSpace(string(text)))
	}
	return fault.New(fault.KindNamed(p.Kind), nil, p.Title).With(p.Code, p.Fix).Because(p.Why...)
}
