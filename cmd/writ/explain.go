package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/agent"
	"github.com/writ-dev/writ/internal/fault"
)

func newExplainCommand() *cobra.Command {
	return group("explain", "Say why: a process's identity, an error code", newExplainWorkloadCommand(), newExplainErrorCommand())
}

// explainTimeout is longer than an agent takes to look at an executable.
const explainTimeout = 20 * time.Second

// processFlags name a process of this node and whom to ask about it.
type processFlags struct {
	pid int32
}

func (f *processFlags) flag(cmd *cobra.Command) {
	cmd.Flags().Int32Var(&f.pid, "pid", 0, "the process")
	agentAdminFlag(cmd)
}

// ask gets what the agent says of the process.
func (f *processFlags) ask(cmd *cobra.Command, path string, values url.Values, into any) error {
	if !cmd.Flags().Changed("pid") {
		return usageError{cmd, errors.New("--pid N is missing")}
	}
	socket, err := agentAdmin(cmd)
	if err != nil {
		return err
	}
	values.Set("pid", strconv.FormatInt(int64(f.pid), 10))
	values.Set("space", pidSpace())
	ctx, cancel := context.WithTimeout(cmd.Context(), explainTimeout)
	defer cancel()
	answer, err := getAgent(ctx, socket, path, values)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if err := json.NewDecoder(io.LimitReader(answer.Body, largestAnswer)).Decode(into); err != nil {
		return fmt.Errorf("read the agent's answer: %w", err)
	}
	return nil
}

func newExplainWorkloadCommand() *cobra.Command {
	var f processFlags
	var p printed
	cmd := &cobra.Command{
		Use:   "workload --pid N",
		Short: "Say which identities a process of this node has, and why not others",
		Long: `Asks the agent of this node, over its admin socket, what it finds of a process and which entries that matches. Where it has no
identity, the nearest entries are shown with what is missing. A process that asked for an identity in vain and ended is still known
for a while. Ends with 0 whenever there is an answer; -o json has it as "code".`,
		Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if p.form != "text" {
				fields := map[string]any{}
				if err := f.ask(cmd, explainPath, url.Values{}, &fields); err != nil {
					return err
				}
				return p.document(cmd.OutOrStdout(), "Explanation", fields)
			}
			var e explained
			if err := f.ask(cmd, explainPath, url.Values{}, &e); err != nil {
				return err
			}
			printExplanation(cmd.OutOrStdout(), e, time.Now())
			return nil
		},
	}
	f.flag(cmd)
	p.flag(cmd, "text", "json", "yaml")
	return cmd
}

// lines writes lines in which nothing steers a terminal.
type lines struct{ w io.Writer }

func (l lines) add(format string, args ...any) {
	fmt.Fprintln(l.w, visible(fmt.Sprintf(format, args...)))
}

func printExplanation(w io.Writer, e explained, now time.Time) {
	out := lines{w}
	out.add("process %d (uid %d, gid %d, %s) on %s", e.PID, e.UID, e.GID, firstOf(e.Path, "no path"), firstOf(e.AgentID, "a node that has not joined"))
	if e.Over {
		out.add("  it has ended; this is what it was when it last asked, %s ago", now.Sub(e.SeenAt).Round(time.Second))
	}
	out.add("selectors")
	for _, s := range e.Selectors {
		out.add("  %s", s)
	}
	if len(e.Matches) > 0 {
		out.add("identities")
		for _, m := range e.Matches {
			out.add("  %s   (entry %s, revision %d)   %s", m.SPIFFEID, m.Entry, m.Revision, stateText(m, now))
		}
	}
	switch e.Code {
	case "":
		return
	case fault.NoIdentity:
		printNearest(out, e)
	case fault.AgentStarting:
		out.add("no identity (%s): the agent does not know its entries yet", e.Code)
		out.add("  fix:  see what /healthz of the agent waits for; connected to a server: %t%s", e.Connected, after("; ", e.Degraded))
	default:
		out.add("no identity (%s): the server gives no SVID", e.Code)
	}
	out.add("  more: writ explain error %s", e.Code)
}

func printNearest(out lines, e explained) {
	if len(e.Matches) > 0 {
		out.add("no identity (%s): every entry that matches has expired", fault.NoIdentity)
		printRemedy(out, "", e.Remedy)
		return
	}
	out.add("no identity (%s): no entry of this node matches (%d at revision %d)", fault.NoIdentity, e.Entries, e.Revision)
	for _, near := range e.Nearest {
		out.add("nearest entry: %s   (entry %s, revision %d)", near.SPIFFEID, near.Entry, near.Revision)
		for _, s := range near.Has {
			out.add("    ok       %s", s)
		}
		for _, m := range near.Missing {
			instead := "nothing of that kind"
			if len(m.Instead) > 0 {
				instead = strings.Join(m.Instead, ", ")
			}
			out.add("    missing  %s   the process has %s", m.Want, instead)
		}
	}
	if len(e.Nearest) == 0 {
		out.add("  this node's selectors are: %s", firstOf(strings.Join(e.Node, ", "), "none"))
	}
	out.add("  entries for other nodes, and those that expired, are not known here: writ entry get shows them")
	first := ""
	if len(e.Nearest) > 0 {
		first = "make the process what the entry says, change the entry, or "
	}
	printRemedy(out, first, e.Remedy)
}

// printRemedy says what to do, after what may be done first.
func printRemedy(out lines, first string, r *agent.Remedy) {
	if r == nil { // an older agent
		return
	}
	for _, why := range r.Why {
		out.add("  %s", why)
	}
	if first != "" && strings.HasPrefix(r.Fix, "writ ") {
		first += "add one:   "
	}
	out.add("  fix:  %s%s", first, r.Fix)
	if r.Or != "" {
		out.add("  or:   %s", r.Or)
	}
}

// stateText is how far the SVID of a matching entry is.
func stateText(m agent.MatchedEntry, now time.Time) string {
	code := ""
	if m.Code != "" {
		code = " (" + string(m.Code) + ")"
	}
	switch m.State {
	case agent.Held:
		text := "held, valid for " + m.NotAfter.Sub(now).Round(time.Second).String()
		if m.Reason != "" {
			text += "; it is not renewed: " + m.Reason + code
		}
		return text
	case agent.Ended:
		return "ended " + now.Sub(m.NotAfter).Round(time.Second).String() + " ago" + after(": ", m.Reason) + code
	case agent.Refused:
		return "refused: " + m.Reason + code + ", asked again in " + max(m.RetryAt.Sub(now), 0).Round(time.Second).String()
	}
	return string(m.State) + after(": ", m.Reason)
}

// after puts a beginning before what is there.
func after(beginning, text string) string {
	if text == "" {
		return ""
	}
	return beginning + text
}
