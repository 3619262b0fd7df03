package main

import (
	"strings"
	"testing"
)

// `writ dev` starts for a user who can hold no identity, without the example entry.
func TestNobodyHasNoExampleEntry(t *testing.T) {
	d := &devDomain{config: devConfig{Server: serverConfig{TrustDomain: defaultDevDomain}}}
	var talk strings.Builder
	if err := (&entryFile{domain: d}).applyExamples(t.Context(), &talk, 65534); err != nil {
		t.Fatal(err)
	}
	if said := talk.String(); !strings.HasPrefix(said, "note: there is no example entry for uid 65534: ") || !strings.Contains(said, "names nobody") {
		t.Errorf("said %q", said)
	}
}

// A file that is written in place is empty for a moment; what is applied is what stood still between two looks.
func TestEntriesAreAppliedOnceTheyStandStill(t *testing.T) {
	f := entryFile{seen: "old"}
	for i, look := range []struct {
		found string
		due   bool
	}{
		{"old", false}, {"empty", false}, {"new", false}, {"new", true}, {"new", false}, // written in place
		{"empty", false}, {"new", false}, {"new", false}, // and again, with what was there
		{"other", false}, {"other", true}, {"other", false},
	} {
		if got := f.due(look.found); got != look.due {
			t.Errorf("look %d finds %s: applied %v, want %v", i, look.found, got, look.due)
		}
	}
}
