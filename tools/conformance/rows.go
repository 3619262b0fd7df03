package main

import (
	"fmt"
	"regexp"
	"strings"
)

// A document is a standard, or what stands in the place of one, with its rows in order.
type document struct {
	name string
	rows []row
}

// A row is one requirement.
type row struct {
	id, level, section, text string
	untested                 string // why no test can carry it; empty where one has to
}

// parseRows reads rows.txt, whose head says what it looks like.
func parseRows(text string) ([]document, error) {
	var documents []document
	seen := map[string]bool{}
	for i, line := range strings.Split(text, "\n") {
		name, begins := strings.CutPrefix(line, "## ")
		switch {
		case begins:
			documents = append(documents, document{name: name})
			continue
		case line == "" || strings.HasPrefix(line, "#"):
			continue
		}
		fields := strings.Split(line, " | ")
		if len(fields) == 4 {
			fields = append(fields, "")
		}
		if len(fields) != 5 || len(documents) == 0 || seen[fields[0]] || len(idsIn(fields[0])) != 1 {
			return nil, fmt.Errorf("rows.txt:%d: not a row, or one that was there before: %s", i+1, line)
		}
		seen[fields[0]] = true
		d := &documents[len(documents)-1]
		d.rows = append(d.rows, row{fields[0], fields[1], fields[2], fields[3], fields[4]})
	}
	return documents, nil
}

// idPattern is an ID in a test's name. What stands before it is no letter or digit, or the word Test; no digit follows it.
var idPattern = regexp.MustCompile(`(?:^|Test|[^A-Za-z0-9])((?:ID|X509|JWT|WEP|WAPI|TDB|SDS|EXT|INT|CLIENT)[-_][0-9]{2})(?:$|[^0-9])`)

// idsIn gives the IDs in a test's name, as rows.txt writes them.
func idsIn(name string) []string {
	var ids []string
	for name != "" {
		at := idPattern.FindStringSubmatchIndex(name)
		if at == nil {
			break
		}
		ids = append(ids, strings.Replace(name[at[2]:at[3]], "_", "-", 1))
		name = name[at[3]:] // what follows this ID may be what stands before the next
	}
	return ids
}
