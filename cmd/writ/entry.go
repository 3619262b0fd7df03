package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/api/registrationv1"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
	"github.com/writ-dev/writ/svid"
)

// applier is the owner under which `writ entry apply` applies: its --prune touches nothing that others applied.
const applier = "apply"

func newEntryCommand() *cobra.Command {
	return group("entry", "Registration entries: which workload may hold which SPIFFE ID", newEntryApplyCommand(),
		newEntryDiffCommand(), newEntrySuggestCommand(), newEntryGetCommand(), newEntryDeleteCommand(), newEntryWaitCommand())
}

func newEntryApplyCommand() *cobra.Command {
	var p printed
	var input entryInput
	var dry bool
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "Create or update entries by name, all or nothing",
		Args:  checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return applyEntries(cmd, p, input, dry, false)
		},
	}
	input.flags(cmd)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say what would change, change nothing")
	p.flag(cmd, "table", "json", "yaml")
	return cmd
}

func newEntryDiffCommand() *cobra.Command {
	var p printed
	var input entryInput
	cmd := &cobra.Command{
		Use:   "diff -f FILE|DIR|-",
		Short: "Show what apply would change; exit 1 if anything",
		Args:  checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return applyEntries(cmd, p, input, true, true)
		},
	}
	input.flags(cmd)
	p.flag(cmd, "table", "json", "yaml")
	return cmd
}

// entryInput says which entries are to be applied.
type entryInput struct {
	file         string
	prune, empty bool
}

func (i *entryInput) flags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&i.file, "filename", "f", "", "a file, a folder of files, or - for standard input")
	cmd.Flags().BoolVar(&i.prune, "prune", false, "remove entries that an earlier apply made and this one does not name")
	cmd.Flags().BoolVar(&i.empty, "allow-empty", false, "take input without any entry; with --prune nothing that an earlier apply made is left")
	before(cmd, func(cmd *cobra.Command) error {
		if i.file == "" {
			return usageError{cmd, errors.New("-f FILE|DIR|- is missing")}
		}
		return nil
	})
}

// applyEntries is apply and diff: diff is a dry run that shows each entry before and after.
func applyEntries(cmd *cobra.Command, p printed, input entryInput, dry, diff bool) error {
	return withAdmin(cmd, func(ctx context.Context, admin adminv1.AdminClient) error {
		domain, err := trustDomain(ctx, admin)
		if err != nil {
			return err
		}
		entries, err := input.read(cmd.InOrStdin(), domain)
		if err != nil {
			return err
		}
		answer, err := sendEntries(ctx, admin, entries, applier, input.prune, dry)
		if err != nil {
			return err
		}
		for _, warning := range answer.Warnings {
			fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", clean(warning))
		}
		if diff {
			return printDiff(cmd, p, answer)
		}
		return printApplied(cmd, p, answer.Changes, answer.Revision, dry)
	})
}

// trustDomain asks the server for its trust domain: entries may give only a path.
func trustDomain(ctx context.Context, admin adminv1.AdminClient) (spiffeid.TrustDomain, error) {
	bundle, err := admin.GetBundle(ctx, &adminv1.GetBundleRequest{})
	if err != nil {
		return spiffeid.TrustDomain{}, err
	}
	return svid.ParseTrustDomain(bundle.TrustDomain)
}

// read refuses input without entries unless the operator says that none is meant: what should have written it failed more often, and
// with --prune it would take everything away.
func (i entryInput) read(in io.Reader, domain spiffeid.TrustDomain) (entries []registration.Entry, err error) {
	name := i.file
	if name == "-" {
		name = "standard input"
		entries, err = registration.Read(name, in, domain)
	} else {
		entries, err = registration.ReadPath(name, domain)
	}
	if err != nil || len(entries) > 0 || i.empty {
		return entries, err
	}
	return nil, fault.New(fault.Invalid, nil, "there is no entry in "+name).
		Because("it is empty, holds only comments, or is a folder without .yaml and .yml files; nothing is changed").
		With(fault.BadEntry, "see that what writes it did not fail; if no entry is what you mean, add --allow-empty")
}

func sendEntries(ctx context.Context, admin adminv1.AdminClient, entries []registration.Entry, owner string, prune, dry bool) (*adminv1.ApplyEntriesResponse, error) {
	request := &adminv1.ApplyEntriesRequest{Owner: owner, Prune: prune, DryRun: dry}
	for _, e := range entries {
		request.Entries = append(request.Entries, registration.ToWire(e))
	}
	return admin.ApplyEntries(ctx, request)
}

var acts = map[adminv1.EntryChange_Act]string{
	adminv1.EntryChange_UNCHANGED: "unchanged",
	adminv1.EntryChange_CREATED:   "created",
	adminv1.EntryChange_UPDATED:   "updated",
	adminv1.EntryChange_DELETED:   "deleted",
}

// printApplied says what changed, one line each, and the revision that holds it.
func printApplied(cmd *cobra.Command, p printed, changes []*adminv1.EntryChange, revision uint64, dry bool) error {
	items := []map[string]any{}
	for _, c := range changes {
		items = append(items, map[string]any{"act": acts[c.Act], "name": c.Entry.GetName(), "id": c.Entry.GetSpiffeId()})
		if p.form == "table" {
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s%s\n", acts[c.Act], clean(c.Entry.GetName()), dryRun(dry))
		}
	}
	if p.form != "table" {
		return p.document(cmd.OutOrStdout(), "Applied", map[string]any{"changes": items, "revision": revision, "dry_run": dry})
	}
	fmt.Fprintf(cmd.OutOrStdout(), "revision %d\n", revision)
	return nil
}

// printDiff shows each changed entry as it is and as it would be, and ends with 1 if there is one.
func printDiff(cmd *cobra.Command, p printed, answer *adminv1.ApplyEntriesResponse) error {
	changed := 0
	for _, c := range answer.Changes {
		if c.Act == adminv1.EntryChange_UNCHANGED {
			continue
		}
		changed++
		if p.form != "table" {
			continue
		}
		before, after := c.Before, c.Entry
		if c.Act == adminv1.EntryChange_DELETED {
			before, after = c.Entry, nil
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", acts[c.Act], clean(c.Entry.GetName()))
		if err := printLines(cmd.OutOrStdout(), before, after); err != nil {
			return err
		}
	}
	if p.form != "table" {
		if err := printApplied(cmd, p, answer.Changes, answer.Revision, true); err != nil {
			return err
		}
	}
	if changed > 0 {
		return exitError(exitFailed)
	}
	return nil
}

// printLines prints the lines that one form has and the other has not.
func printLines(w io.Writer, before, after *registrationv1.Entry) error {
	old, err := entryLines(before)
	if err != nil {
		return err
	}
	next, err := entryLines(after)
	if err != nil {
		return err
	}
	for _, side := range []struct {
		sign         string
		lines, other []string
	}{{"-", old, next}, {"+", next, old}} {
		has := map[string]bool{}
		for _, line := range side.other {
			has[line] = true
		}
		for _, line := range side.lines {
			if !has[line] {
				fmt.Fprintf(w, "  %s %s\n", side.sign, clean(line))
			}
		}
	}
	return nil
}

func newEntryGetCommand() *cobra.Command {
	var p printed
	cmd := &cobra.Command{
		Use:   "get [NAME|ID...]",
		Short: "Show entries, all of them or those of these names or SPIFFE IDs",
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAdmin(cmd, func(ctx context.Context, admin adminv1.AdminClient) error {
				answer, err := admin.ListEntries(ctx, &adminv1.ListEntriesRequest{Names: args})
				if err != nil {
					return err
				}
				return printEntries(cmd, p, answer, time.Now())
			})
		},
	}
	p.flag(cmd, "table", "json", "yaml", "name")
	return cmd
}

func newEntryDeleteCommand() *cobra.Command {
	var p printed
	var dry bool
	cmd := &cobra.Command{
		Use:   "delete NAME|ID...",
		Short: "Remove the entry of that name, or every entry with that SPIFFE ID",
		Args:  checked(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAdmin(cmd, func(ctx context.Context, admin adminv1.AdminClient) error {
				answer, err := admin.DeleteEntries(ctx, &adminv1.DeleteEntriesRequest{Names: args, DryRun: dry})
				if err != nil {
					return err
				}
				return printApplied(cmd, p, answer.Changes, answer.Revision, dry)
			})
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say what would be removed, change nothing")
	p.flag(cmd, "table", "json", "yaml")
	return cmd
}

func newEntryWaitCommand() *cobra.Command {
	var revision uint64
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait --revision N",
		Short: "Return when every connected agent has that revision",
		Args:  checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withAdmin(cmd, func(ctx context.Context, admin adminv1.AdminClient) error {
				ctx, cancel := context.WithTimeout(ctx, timeout)
				defer cancel()
				answer, err := admin.WaitRevision(ctx, &adminv1.WaitRevisionRequest{Revision: revision})
				if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
					return fault.New(fault.Unreachable, nil, fmt.Sprintf("after %s not every connected agent has that revision", timeout)).
						With("", "writ node list   # the revision that each has")
				}
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "revision %d on %d agents\n", answer.Revision, answer.Agents)
				return nil
			})
		},
	}
	cmd.Flags().Uint64Var(&revision, "revision", 0, "the revision to wait for; 0: the newest now")
	timeoutFlag(cmd, &timeout, 30*time.Second, "give up after this long, with exit 4")
	return cmd
}
