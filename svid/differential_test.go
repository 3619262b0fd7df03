package svid_test

import (
	"flag"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/svid"
)

var (
	idCount = flag.Int("id-count", 100_000, "how many strings TestID_19_ID_20_Differential asks both parsers about")
	idSeed  = flag.Uint64("id-seed", 1, "where its generator begins")
)

// explained says by which rule go-spiffe takes what we refuse; empty: by none. There is no rule by which we take more.
func explained(s string, theirs spiffeid.ID) string {
	switch {
	case len(s) > 8<<10:
		return "ID-20: over 8 KiB from a stranger"
	case len(theirs.TrustDomain().Name()) > 255:
		return "ID-19: a trust domain over 255 bytes"
	}
	return ""
}

// tellApart asks both parsers. What they agree on, or the rule by which they do not, is the answer.
func tellApart(t *testing.T, s string) string {
	ours, err := svid.ParseID(s)
	theirs, theirErr := spiffeid.FromString(s)
	switch {
	case err == nil && theirErr == nil && ours == theirs && ours.String() == s:
		return "taken by both"
	case err != nil && theirErr != nil && ours.IsZero():
		return "refused by both"
	case err != nil && theirErr == nil:
		if rule := explained(s, theirs); rule != "" {
			return rule
		}
	}
	t.Errorf("%.300q: we say %q, %v; go-spiffe says %q, %v", s, ours, err, theirs, theirErr)
	return "unexplained"
}

// pieces are what a parser of IDs may stumble over.
var pieces = []string{"spiffe://", "SPIFFE://", "spiffe:/", "/", "//", ".", "..", "/.", "/..", "/./", "/../", "-", "_", "a", "Z", "0", "@", ":", ":443", "?", "#", "%", "%2f", "%2e",
	"%00", " ", "\t", "\n", "\r", "\x00", "\x7f", "\x80", "\xff", "\u212a", "\u017f", "\ufeff", "\u200b", "\u00e9", "\uff0e", "\uff0f", "\u2024", "*", "~", "!", "$", "&", "'", "(",
	")", "+", ",", ";", "=", "[", "]", "\\", "|", "^", "`", "{", "}", "<", ">", "\"", "[::1]", "127.0.0.1", "example.org", "xn--"}

// lengths lie around every bound that a standard or a parser has.
var lengths = []int{63, 64, 253, 254, 255, 256, 257, 2047 - 9, 2048 - 9, 2049 - 9, 8<<10 - 9, 8<<10 - 8, 8<<10 + 1}

// generate makes a string near one of the vectors, or out of pieces.
func generate(r *rand.Rand, vectors []vector) string {
	s := vectors[r.IntN(len(vectors))].ID
	if r.IntN(8) == 0 {
		s = "spiffe://" + pieces[r.IntN(len(pieces))] + "/" + pieces[r.IntN(len(pieces))]
	}
	for range r.IntN(4) {
		at := r.IntN(len(s) + 1)
		switch r.IntN(7) {
		case 0: // put in
			s = s[:at] + pieces[r.IntN(len(pieces))] + s[at:]
		case 1: // take out
			s = s[:at] + s[min(len(s), at+1+r.IntN(3)):]
		case 2: // any byte
			s = s[:at] + string([]byte{byte(r.UintN(256))}) + s[min(len(s), at+1):]
		case 3: // a bit
			if at < len(s) {
				s = s[:at] + string([]byte{s[at] ^ 1<<r.UintN(8)}) + s[at+1:]
			}
		case 4: // the end of another
			other := vectors[r.IntN(len(vectors))].ID
			s = s[:at] + other[r.IntN(len(other)+1):]
		case 5: // long
			if r.IntN(8) == 0 {
				s = s[:at] + strings.Repeat(pieces[r.IntN(len(pieces))], lengths[r.IntN(len(lengths))]) + s[at:]
			}
		case 6: // a trust domain of one length, and a path of another
			if r.IntN(8) == 0 {
				s = "spiffe://" + strings.Repeat("d", lengths[r.IntN(6)]+r.IntN(2)) + "/" + strings.Repeat("p", lengths[r.IntN(len(lengths))])
			}
		}
	}
	return s
}

// TestID_19_ID_20_Differential holds ParseID to go-spiffe's parser. `make id-differential` does so for 10^7 strings.
func TestID_19_ID_20_Differential(t *testing.T) {
	all := vectors(t)
	workers := runtime.GOMAXPROCS(0)
	found := make([]map[string]int, workers)
	var running sync.WaitGroup
	for w := range workers {
		running.Go(func() {
			r, count := rand.New(rand.NewPCG(*idSeed, uint64(w))), map[string]int{}
			for i := w; i < *idCount && !t.Failed(); i += workers {
				count[tellApart(t, generate(r, all))]++
			}
			found[w] = count
		})
	}
	running.Wait()
	sum := map[string]int{}
	for _, count := range found {
		for what, n := range count {
			sum[what] += n
		}
	}
	for _, what := range slices.Sorted(maps.Keys(sum)) {
		t.Logf("%9d %s", sum[what], what)
	}
	// A generator that never comes near the rules would find no difference either.
	for _, what := range []string{"taken by both", "refused by both", "ID-19: a trust domain over 255 bytes", "ID-20: over 8 KiB from a stranger"} {
		if sum[what] < *idCount/2000 {
			t.Errorf("only %d of %d: %s", sum[what], *idCount, what)
		}
	}
}
