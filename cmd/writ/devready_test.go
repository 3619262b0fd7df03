package main

import "testing"

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
