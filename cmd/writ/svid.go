package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/internal/fault"
)

const (
	workloadVariable   = "SPIFFE_ENDPOINT_SOCKET"
	defaultAgentSocket = "unix:///run/writ/agent.sock"
)

func newSVIDCommand() *cobra.Command {
	return group("svid", "SVIDs, as a workload gets them", newSVIDGetCommand(), newSVIDWatchCommand())
}

func newSVIDGetCommand() *cobra.Command {
	var p printed
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "get",
		Short: "Fetch this process's X.509-SVIDs from the Workload API",
		Long: `Asks the Workload API at $SPIFFE_ENDPOINT_SOCKET (an empty one counts as unset: ` + defaultAgentSocket + `).
Ends with 2 for a malformed address, 3 when no identity is issued, 4 when nobody answers in time.`,
		Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			socket, err := workloadSocket(cmd)
			if err != nil {
				return err
			}
			svids, err := askWorkloadAPI(cmd.Context(), socket, timeout, func(ctx context.Context) ([]*x509svid.SVID, error) {
				return workloadapi.FetchX509SVIDs(ctx, workloadapi.WithAddr(socket))
			})
			if err != nil {
				return err
			}
			return printSVIDs(cmd.OutOrStdout(), p, svids, socket)
		},
	}
	answerFlag(cmd, &timeout)
	p.flag(cmd, "table", "json", "yaml", "pem")
	return cmd
}

// workloadSocket is where this process finds the Workload API.
func workloadSocket(cmd *cobra.Command) (string, error) {
	socket := os.Getenv(workloadVariable)
	if socket == "" {
		socket = defaultAgentSocket
	}
	if err := checkEndpoint(socket); err != nil {
		return "", usageError{cmd, fmt.Errorf("%s=%q: %w", workloadVariable, socket, err)}
	}
	return socket, nil
}

// answerFlag is --timeout of a command that asks the Workload API.
func answerFlag(cmd *cobra.Command, timeout *time.Duration) {
	timeoutFlag(cmd, timeout, 5*time.Second, "how long to wait for an answer")
}

// timeoutFlag adds --timeout. One that is over before anybody was asked cannot be meant.
func timeoutFlag(cmd *cobra.Command, timeout *time.Duration, usual time.Duration, usage string) {
	cmd.Flags().DurationVar(timeout, "timeout", usual, usage)
	before(cmd, func(cmd *cobra.Command) error {
		if *timeout <= 0 {
			return usageError{cmd, fmt.Errorf("--timeout %s is no time to wait", *timeout)}
		}
		return nil
	})
}

// askWorkloadAPI asks until there is an answer, a refusal or the time is over: the agent may be starting.
func askWorkloadAPI[T any](ctx context.Context, socket string, timeout time.Duration, ask func(context.Context) (T, error)) (answer T, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var said *fault.Error // the last that an agent said, if one is there
	for {
		answer, err = ask(ctx)
		switch {
		case err == nil:
			return answer, nil
		case status.Code(err) == codes.PermissionDenied:
			return answer, denied(err)
		case ctx.Err() == nil && !passes(status.Code(err)):
			return answer, fault.FromStatus(err)
		}
		var f *fault.Error
		if errors.As(fault.FromStatus(err), &f) && f.Code != "" {
			said = f
		}
		if said != nil && said.Code == fault.NoJWT { // the agent waited for its server already
			return answer, said
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			if said != nil {
				return answer, said
			}
			return answer, fault.New(fault.Unreachable, errors.Unwrap(err), "no answer from the Workload API at "+socket).
				With(fault.AgentStarting, "start `writ dev` or `writ agent run`, or set "+workloadVariable)
		}
	}
}

// passes says whether another try may end otherwise. The agent's end of a call may see its time over a moment before ours does.
func passes(code codes.Code) bool {
	return code == codes.Unavailable || code == codes.Canceled || code == codes.DeadlineExceeded
}

// denied is what the agent answered; another's agent gives neither code nor fix.
func denied(err error) error {
	var f *fault.Error
	if errors.As(fault.FromStatus(err), &f) && f.Code != "" {
		return f
	}
	s, _ := status.FromError(err)
	return fault.New(fault.Denied, nil, s.Message()).With(fault.NoIdentity, "apply an entry that matches this process: writ entry apply -f FILE")
}

func printSVIDs(w io.Writer, p printed, svids []*x509svid.SVID, socket string) error {
	items := []map[string]any{}
	for _, s := range svids {
		leaf := s.Certificates[0]
		switch p.form {
		case "pem":
			if err := printPEM(w, s); err != nil {
				return err
			}
		case "table":
			_, err := fmt.Fprintf(w, "%s   valid %s   serial %x   hint %q   socket %s\n", s.ID, time.Until(leaf.NotAfter).Round(time.Second),
				leaf.SerialNumber, s.Hint, clean(socket))
			if err != nil { // a watch would print on
				return err
			}
		}
		items = append(items, map[string]any{"spiffe_id": s.ID.String(), "not_before": leaf.NotBefore.UTC().Format(time.RFC3339),
			"not_after": leaf.NotAfter.UTC().Format(time.RFC3339), "serial": leaf.SerialNumber.Text(16), "hint": s.Hint, "dns": append([]string{}, leaf.DNSNames...)})
	}
	if p.form == "json" || p.form == "yaml" {
		return p.document(w, "SVIDList", map[string]any{"items": items})
	}
	return nil
}

// printPEM writes the chain and the key; whoever asks for it is the workload itself.
func printPEM(w io.Writer, s *x509svid.SVID) error {
	for _, c := range s.Certificates {
		if err := pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}); err != nil {
			return err
		}
	}
	key, err := x509.MarshalPKCS8PrivateKey(s.PrivateKey)
	if err != nil {
		return err
	}
	return pem.Encode(w, &pem.Block{Type: "PRIVATE KEY", Bytes: key})
}
