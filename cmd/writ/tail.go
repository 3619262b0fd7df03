package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/internal/fault"
)

// outcomes are what --outcome takes.
var outcomes = []string{"allowed", "denied", "refused", "failed"}

func newTailCommand() *cobra.Command {
	return group("tail", "Follow what happens", newTailDecisionsCommand())
}

func newTailDecisionsCommand() *cobra.Command {
	var q audit.Query
	var file string
	var form printed
	cmd := &cobra.Command{
		Use:   "decisions",
		Short: "Show this node's decisions",
		Long: `Shows the decision records of this node: those of its agent, asked over the agent's admin socket, or those of a file and its
rotated ones. A * at the end of --source or --path stands for any rest. Ends with 1 after all others where lines could not be read.`,
		Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, o := range q.Outcomes {
				if !slices.Contains(outcomes, o) {
					return usageError{cmd, fmt.Errorf("outcome %q is none of %s", o, strings.Join(outcomes, ", "))}
				}
			}
			if q.Last < 0 {
				return usageError{cmd, errors.New("-n takes no negative number")}
			}
			if q.ID != "" && !cmd.Flags().Changed("last") {
				q.Last = 0
			}
			socket, err := agentAdmin(cmd)
			if err != nil {
				return err
			}
			return tailDecisions(cmd.Context(), q, socket, file, form.form, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&q.Source, "source", "", "of this principal")
	cmd.Flags().StringVar(&q.Path, "path", "", "of this path, without a query")
	cmd.Flags().StringSliceVar(&q.Outcomes, "outcome", nil, "of these outcomes: "+strings.Join(outcomes, ", "))
	cmd.Flags().StringVar(&q.ID, "id", "", "with this decision id; exit 1 if there is none")
	cmd.Flags().IntVarP(&q.Last, "last", "n", 20, "the newest so many of what is there; 0: all")
	cmd.Flags().BoolVarP(&q.Follow, "follow", "f", false, "go on as decisions fall")
	agentAdminFlag(cmd)
	cmd.Flags().StringVar(&file, "file", "", "read this file and its rotated ones instead")
	form.flag(cmd, "text", "json")
	return cmd
}

// tailDecisions prints from the file, or from the socket where no file is named.
func tailDecisions(ctx context.Context, q audit.Query, socket, file, form string, out io.Writer) error {
	found := false
	emit := func(line []byte) error {
		found = true
		_, err := io.WriteString(out, decisionText(line, form)+"\n")
		return err
	}
	var err error
	if file != "" {
		if _, err = os.Stat(file); err == nil {
			err = audit.Tail(ctx, file, q, emit)
		}
		if unreadable := (*audit.Unreadable)(nil); errors.As(err, &unreadable) {
			err = unreadableLines(unreadable.Error())
		}
	} else {
		err = askAgent(ctx, socket, q, emit)
	}
	if err != nil && (ctx.Err() == nil || errors.As(err, new(unreadableLines))) {
		return err
	}
	if q.ID != "" && !found {
		return fault.New(fault.NotFound, nil, "no decision "+q.ID+" in the records")
	}
	return nil
}

// unreadableLines is that all went well but for some lines, and which these are.
type unreadableLines string

// Error is the text.
func (u unreadableLines) Error() string { return string(u) }

// askAgent reads decisions over the agent's admin socket.
func askAgent(ctx context.Context, socket string, q audit.Query, emit func([]byte) error) error {
	values := url.Values{"source": {q.Source}, "path": {q.Path}, "id": {q.ID}, "outcome": q.Outcomes, "last": {strconv.Itoa(q.Last)},
		"follow": {strconv.FormatBool(q.Follow)}}
	answer, err := getAgent(ctx, socket, decisionsPath, values)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	in := bufio.NewReader(answer.Body)
	for {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			if unreadable := answer.Trailer.Get(unreadableTrailer); unreadable != "" {
				return unreadableLines(unreadable)
			}
			return nil
		} else if err != nil {
			return fmt.Errorf("read decisions: %w", err)
		}
		if err := emit(bytes.TrimSuffix(line, []byte("\n"))); err != nil {
			return err
		}
	}
}

// decisionText is a record as one line that steers no terminal, whatever stands in it.
func decisionText(line []byte, form string) string {
	if form == "json" {
		return visible(string(line))
	}
	d, err := audit.ParseDecision(line)
	if err != nil {
		return visible(string(line))
	}
	or := func(s, none string) string {
		if s == "" {
			return none
		}
		return visible(s)
	}
	text := fmt.Sprintf("%s  %-7s  %s %s  %s -> %s  %s", d.Time.UTC().Format("2006-01-02T15:04:05.000Z"), or(d.Outcome, "-"), or(d.Method, "-"),
		or(d.Path, "-"), or(d.Source, "-"), or(d.Destination, "-"), or(d.DecisionID, "-"))
	if d.Reason != "" {
		text += "  " + visible(d.Reason)
	}
	return text
}

// visible writes what does not print, line feeds and marks that turn the direction of text too, as JSON escapes it.
func visible(s string) string {
	var out strings.Builder
	for _, r := range s {
		switch {
		case unicode.IsPrint(r) && !audit.Misleads(r):
			out.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	return out.String()
}
