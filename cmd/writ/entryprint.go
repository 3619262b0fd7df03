package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/api/registrationv1"
	"github.com/writ-dev/writ/registration"
)

// printEntries prints entries as a table, as names, as the YAML that apply reads, or as JSON.
func printEntries(cmd *cobra.Command, p printed, answer *adminv1.ListEntriesResponse, now time.Time) error {
	out := cmd.OutOrStdout()
	var rows [][]string
	items := []*registrationv1.Entry{}
	for i, e := range answer.Entries {
		switch p.form {
		case "name":
			fmt.Fprintln(out, clean(e.Name))
		case "yaml":
			if i > 0 {
				fmt.Fprintln(out, "---")
			}
			lines, err := entryLines(e)
			if err != nil {
				return err
			}
			fmt.Fprintln(out, strings.Join(lines, "\n"))
		case "json":
			items = append(items, e)
		default:
			where := strings.Join(e.Where, ",")
			if e.Any {
				where = "any"
			}
			rows = append(rows, []string{e.Name, e.SpiffeId, where, strings.Join(e.Match, ","), fmt.Sprint(e.Revision), expiry(e, now)})
		}
	}
	switch p.form {
	case "table":
		table(out, "NAME SPIFFE-ID WHERE MATCH REVISION EXPIRES", rows)
	case "json":
		return p.document(out, "EntryList", map[string]any{"items": entryDocuments(items, now), "revision": answer.Revision})
	}
	return nil
}

// expiry says when an entry ends, in a table.
func expiry(e *registrationv1.Entry, now time.Time) string {
	switch {
	case e.Expires == nil:
		return "never"
	case over(e, now):
		return "expired"
	}
	left := e.Expires.AsTime().Sub(now)
	if left >= 48*time.Hour {
		return fmt.Sprintf("in %dd", left/(24*time.Hour))
	}
	return "in " + left.Truncate(time.Second).String()
}

// over says that no node has the entry any more.
func over(e *registrationv1.Entry, now time.Time) bool {
	return e.Expires != nil && registration.Entry{Expires: e.Expires.AsTime()}.Expired(now)
}

// entryDocuments gives entries with the keys that the YAML has, and "expired" where one's time is over.
func entryDocuments(entries []*registrationv1.Entry, now time.Time) []map[string]any {
	out := []map[string]any{}
	for _, e := range entries {
		doc := map[string]any{"name": e.Name, "id": e.SpiffeId, "match": e.Match, "revision": e.Revision}
		set := func(key string, there bool, value any) {
			if there {
				doc[key] = value
			}
		}
		set("where", len(e.Where) > 0, e.Where)
		set("any", e.Any, true)
		set("ttl", e.Ttl.AsDuration() > 0, e.Ttl.AsDuration().String())
		set("jwt_ttl", e.JwtTtl.AsDuration() > 0, e.JwtTtl.AsDuration().String())
		set("dns", len(e.Dns) > 0, e.Dns)
		set("hint", e.Hint != "", e.Hint)
		set("federates_with", len(e.FederatesWith) > 0, e.FederatesWith)
		set("expires", e.Expires != nil, e.Expires.AsTime().Format("2006-01-02T15:04:05Z07:00"))
		set("expired", over(e, now), true)
		out = append(out, doc)
	}
	return out
}

// entryLines is the entry as YAML, in lines; none for nil.
func entryLines(e *registrationv1.Entry) ([]string, error) {
	if e == nil {
		return nil, nil
	}
	entry, err := registration.FromWire(e)
	if err != nil {
		return nil, err
	}
	text, err := registration.YAML(entry)
	if err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimRight(string(text), "\n"), "\n"), nil
}
