package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/svid"
)

func newJWTCommand() *cobra.Command {
	return group("jwt", "JWT-SVIDs, as a workload gets and checks them", newJWTGetCommand(), newJWTVerifyCommand())
}

func newJWTGetCommand() *cobra.Command {
	var p printed
	var timeout time.Duration
	var r workload.JWTSVIDRequest
	cmd := &cobra.Command{
		Use:   "get --audience A",
		Short: "Fetch this process's JWT-SVIDs for an audience from the Workload API",
		Long: `Prints one token a line on standard output, the default identity's first, and on standard error whose it is and how long it lasts.
Whoever has a token is taken for this process by the audience it names, so give it one audience where one is enough.

Asks the Workload API at $SPIFFE_ENDPOINT_SOCKET (an empty one counts as unset: ` + defaultAgentSocket + `).
Ends with 2 for a malformed address, 3 when no identity is issued, 4 when nobody answers in time or, within 2 s, when no server is there to sign.`,
		Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(r.Audience) == 0 || slices.Contains(r.Audience, "") {
				return usageError{cmd, errors.New("--audience is missing or empty: who shall take the token")}
			}
			if r.SpiffeId != "" {
				if _, err := svid.ParseID(r.SpiffeId); err != nil {
					return usageError{cmd, fmt.Errorf("--spiffe-id: %w", err)}
				}
			}
			response, err := askForJWT(cmd, timeout, func(ctx context.Context, api workload.SpiffeWorkloadAPIClient) (*workload.JWTSVIDResponse, error) {
				return api.FetchJWTSVID(ctx, &r)
			})
			if err != nil {
				return err
			}
			return printJWTs(cmd.OutOrStdout(), cmd.ErrOrStderr(), p, response.GetSvids())
		},
	}
	cmd.Flags().StringArrayVar(&r.Audience, "audience", nil, "who shall take the token; may be given more than once")
	cmd.Flags().StringVar(&r.SpiffeId, "spiffe-id", "", "of this identity only (default: of each that the process may hold)")
	answerFlag(cmd, &timeout)
	p.flag(cmd, "text", "json")
	return cmd
}

func newJWTVerifyCommand() *cobra.Command {
	var p printed
	var timeout time.Duration
	var r workload.ValidateJWTSVIDRequest
	cmd := &cobra.Command{
		Use:   "verify --audience A [-]",
		Short: "Have the Workload API check a JWT-SVID, and print what it claims",
		Long: `Reads the token from standard input; it may be an argument too, and then every user of this machine can read it in the list of processes.

Asks the Workload API at $SPIFFE_ENDPOINT_SOCKET (an empty one counts as unset: ` + defaultAgentSocket + `).
Ends with 2 for a malformed address, 3 when the token is refused or this process has no identity, 4 when nobody answers in time.`,
		Args: checked(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if r.Audience == "" {
				return usageError{cmd, errors.New("--audience is missing or empty: who must be named in the token")}
			}
			if len(args) == 0 {
				args = []string{"-"}
			}
			var err error
			if r.Svid, err = tokenText(cmd, args, ""); err != nil {
				return err
			}
			response, err := askForJWT(cmd, timeout, func(ctx context.Context, api workload.SpiffeWorkloadAPIClient) (*workload.ValidateJWTSVIDResponse, error) {
				return api.ValidateJWTSVID(ctx, &r)
			})
			if status.Code(err) == codes.InvalidArgument || fault.Is(err, fault.Invalid) {
				err = fault.New(fault.Denied, nil, "the token is refused").Because(whatOf(err))
			}
			if err != nil {
				return err
			}
			return printClaims(cmd.OutOrStdout(), p, response)
		},
	}
	cmd.Flags().StringVar(&r.Audience, "audience", "", "who must be named in the token")
	answerFlag(cmd, &timeout)
	p.flag(cmd, "text", "json")
	return cmd
}

// whatOf is an error's sentence without what a person does not need.
func whatOf(err error) string {
	var f *fault.Error
	if errors.As(err, &f) {
		return f.What
	}
	return err.Error()
}

// askForJWT makes one kind of call to the Workload API.
func askForJWT[T any](cmd *cobra.Command, timeout time.Duration, call func(context.Context, workload.SpiffeWorkloadAPIClient) (T, error)) (answer T, err error) {
	socket, err := workloadSocket(cmd)
	if err != nil {
		return answer, err
	}
	target, err := workloadapi.TargetFromAddress(socket)
	if err != nil {
		return answer, usageError{cmd, err}
	}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return answer, err
	}
	defer conn.Close()
	return askWorkloadAPI(cmd.Context(), socket, timeout, func(ctx context.Context) (T, error) {
		return call(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"), workload.NewSpiffeWorkloadAPIClient(conn))
	})
}

// printJWTs prints tokens as data, and talks about them elsewhere.
func printJWTs(w, talk io.Writer, p printed, svids []*workload.JWTSVID) error {
	items := []map[string]any{}
	for _, s := range svids {
		j, err := svid.ParseJWT(s.GetSvid())
		if err != nil {
			return fmt.Errorf("the Workload API gave what cannot be read: %w", err)
		}
		if p.form == "text" {
			fmt.Fprintln(w, j.Token())
			fmt.Fprintln(talk, clean(fmt.Sprintf("%s   audience %s   valid %s   hint %q", j.ID, strings.Join(j.Audience, " "),
				time.Until(j.Expires).Round(time.Second), s.GetHint())))
		}
		items = append(items, map[string]any{"spiffe_id": j.ID.String(), "audience": j.Audience, "expires": j.Expires.Format(time.RFC3339),
			"hint": s.GetHint(), "token": j.Token()})
	}
	if p.form == "json" {
		return p.document(w, "JWTSVIDList", map[string]any{"items": items})
	}
	return nil
}

// printClaims prints what the Workload API says of a token that it took.
func printClaims(w io.Writer, p printed, r *workload.ValidateJWTSVIDResponse) error {
	claims := r.GetClaims().AsMap()
	if p.form == "json" {
		return p.document(w, "JWTClaims", map[string]any{"spiffe_id": r.GetSpiffeId(), "claims": claims})
	}
	rows := [][]string{{"spiffe_id", r.GetSpiffeId()}}
	for _, name := range slices.Sorted(maps.Keys(claims)) {
		text, err := json.Marshal(claims[name])
		if err != nil {
			return err
		}
		if name == "exp" || name == "iat" || name == "nbf" {
			if seconds, ok := claims[name].(float64); ok {
				text = fmt.Appendf(nil, "%.0f (%s)", seconds, time.Unix(int64(seconds), 0).UTC().Format(time.RFC3339))
			}
		}
		rows = append(rows, []string{name, string(text)})
	}
	table(w, "CLAIM VALUE", rows)
	return nil
}
