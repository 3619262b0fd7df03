package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"text/tabwriter"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/internal/fault"
)

const (
	defaultAdminSocket = "/run/writ/admin.sock"
	adminVariable      = "WRIT_ADMIN"
	largestAnswer      = 64 << 20 // bytes; a whole registry in one answer
)

// adminSocket gives the path of the admin socket.
func adminSocket(cmd *cobra.Command) (string, error) {
	return askedSocket(cmd, "admin", adminVariable, defaultAdminSocket)
}

// askedSocket gives the path of a socket that answers this program: the flag's, else the variable's, else the installed one.
func askedSocket(cmd *cobra.Command, flag, variable, installed string) (string, error) {
	given, _ := cmd.Flags().GetString(flag)
	key := "--" + flag
	if given == "" {
		given, key = os.Getenv(variable), variable
	}
	path := socketPath(firstOf(given, installed))
	var wrong problems
	if wrong.socket(key, path); path == "" {
		wrong.add(key, "%q names no socket", given)
	}
	if len(wrong) > 0 {
		return "", usageError{cmd, errors.New(wrong[0])}
	}
	return path, nil
}

// socketPath takes a path or a unix URI.
func socketPath(s string) string {
	if rest, ok := strings.CutPrefix(s, "unix://"); ok {
		return rest
	}
	return strings.TrimPrefix(s, "unix:")
}

// withAdmin calls do with a connection to the admin socket, and turns what the server answered into a fault.
func withAdmin(cmd *cobra.Command, do func(context.Context, adminv1.AdminClient) error) error {
	path, err := adminSocket(cmd)
	if err != nil {
		return err
	}
	err = callAdmin(cmd.Context(), path, do)
	if errors.Is(err, fs.ErrPermission) {
		return mayNotConnect("server", path)
	}
	return fromAdmin(path, err)
}

// callAdmin is withAdmin for callers that have no command. The error is fs.ErrPermission where the system lets nobody connect.
func callAdmin(ctx context.Context, path string, do func(context.Context, adminv1.AdminClient) error) error {
	var refused atomic.Bool // a status keeps no cause
	conn, err := grpc.NewClient("passthrough:localhost", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := dialSocket(ctx, path)
			refused.Store(errors.Is(err, fs.ErrPermission))
			return conn, err
		}), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(largestAnswer)))
	if err != nil {
		return fmt.Errorf("admin socket %s: %w", path, err)
	}
	defer conn.Close()
	if err = do(ctx, adminv1.NewAdminClient(conn)); err != nil && refused.Load() {
		return fmt.Errorf("admin socket %s: %w", path, fs.ErrPermission)
	}
	return err
}

func dialSocket(ctx context.Context, path string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", path)
}

// fromAdmin says where nobody answered.
func fromAdmin(path string, err error) error {
	err = fault.FromStatus(err)
	if f, ok := err.(*fault.Error); ok && f.Kind == fault.Unavailable && f.Code == "" {
		return fault.New(fault.Unreachable, nil, "nobody answers on the admin socket "+path).Because(f.What).
			With("", "start `writ dev` or `writ server run`, or name its socket with --admin or "+adminVariable)
	}
	return err
}

// mayNotConnect is about a socket that is there: its mode, or a folder's above it, keeps this user out.
func mayNotConnect(whose, path string) error {
	return fault.New(fault.Denied, nil, fmt.Sprintf("this user may not ask the %s on %s", whose, path)).
		Because("its owner and root may, and where it is installed as a service the group writ").
		With("", "ask as the user who runs it or with sudo, or join the group: sudo usermod -aG writ USER")
}

// printed is the -o flag of a command that prints things.
type printed struct{ form string }

// flag adds -o with the forms that the command knows; the first is the default.
func (p *printed) flag(cmd *cobra.Command, forms ...string) {
	cmd.Flags().StringVarP(&p.form, "output", "o", forms[0], "output: "+strings.Join(forms, ", "))
	before(cmd, func(cmd *cobra.Command) error {
		if !slices.Contains(forms, p.form) {
			return usageError{cmd, fmt.Errorf("output %q is none of %s", p.form, strings.Join(forms, ", "))}
		}
		return nil
	})
}

// document prints v as JSON or YAML under the stable head {"apiVersion":"writ/v1","kind":...}.
func (p *printed) document(w io.Writer, kind string, fields map[string]any) error {
	fields["apiVersion"], fields["kind"] = "writ/v1", kind
	if p.form == "yaml" {
		out, err := yaml.Marshal(fields)
		if err != nil {
			return err
		}
		_, err = w.Write(out)
		return err
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(fields)
}

// table prints rows under a head, columns aligned.
func table(w io.Writer, head string, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.ReplaceAll(head, " ", "\t"))
	for _, row := range rows {
		for i := range row {
			row[i] = clean(row[i])
		}
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	t.Flush()
}
