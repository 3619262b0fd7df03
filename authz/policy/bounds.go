package policy

import (
	"fmt"
	"path"
	"strings"
)

// What a policy set may take. Loading needs memory and time in a multiple of what is read, so a set beyond is refused by size, before
// it is read: memory for a set is then bounded, whatever the folder holds (docs/decisions.md has the figures).
const (
	// StandardMegabytes is what the files of a set may have in all where nothing else is configured, and MostMegabytes the most that can be.
	StandardMegabytes = 32
	MostMegabytes     = 4096

	maxFiles   = 10_000
	maxEntries = 50_000  // of all folders: whatever they are, they are looked at every 100 ms
	maxRego    = 1 << 20 // of one .rego file
	maxText    = 1 << 20 // of policy.yaml, and of one file of cases

	maxBodyValues = 200_000   // values in a body: each takes some hundred bytes, for as little as two of the body's
	maxParameters = 10_000    // of a query or a form, as many as Go reads; other readers drop what is beyond a bound of theirs
	maxTarget     = 256 << 10 // bytes of path and query: proxies take far less
)

// bounds are those of one set: the bytes of all its files.
type bounds int64

func (c Config) bounds() bounds {
	if c.Megabytes == 0 {
		return StandardMegabytes << 20
	}
	return bounds(c.Megabytes) << 20
}

// values is how many JSON values all data files may have: 2 million in 32 MiB, each takes a hundred bytes.
func (b bounds) values() int { return int(b>>20) * 62_500 }

// beyond says that a set has more than it may; it stays beyond however often it is read.
type beyond struct{ what string }

func (b beyond) Error() string { return b.what }

// most is how many bytes a file may have.
func (b bounds) most(name string) int64 {
	switch base := path.Base(name); {
	case strings.HasSuffix(base, ".rego"):
		return maxRego
	case base == "data.json":
		return int64(b) / 2
	case base == "data.yaml" && !isCase(name):
		return int64(b) / 8 // its parser takes over a hundred bytes for each
	case isDescriptor(name):
		return int64(b) / 2
	}
	return maxText
}

// fit refuses a set by what was seen of it.
func (b bounds) fit(s sighting) error {
	if len(s) > maxFiles {
		return beyond{fmt.Sprintf("the folder has %d files of a policy set, more than %d", len(s), maxFiles)}
	}
	total := int64(0)
	for _, f := range s {
		if err := b.fitFile(f.name, f.info.Size()); err != nil {
			return err
		}
		total += f.info.Size()
	}
	if total > int64(b) {
		return beyond{fmt.Sprintf("the files of the set have %d bytes in all, more than %d (%d MiB); %s raises it", total, b, b>>20, sizeKey)}
	}
	return nil
}

func (b bounds) fitFile(name string, size int64) error {
	limit := b.most(name)
	if size <= limit {
		return nil
	}
	hint := ""
	if limit != maxText {
		hint = "; " + sizeKey + " raises it"
	}
	return beyond{fmt.Sprintf("%s has %d bytes, more than the %d (%d MiB) that such a file may have%s", name, size, limit, limit>>20, hint)}
}

// sizeKey is where the bounds are configured.
const sizeKey = "authz.policy_megabytes"

// countJSON is how many values a JSON text holds, or a few more: a value follows each bracket that opens and each comma.
func countJSON(text []byte) (n int) {
	inside := false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case inside && c == '\\':
			i++
		case c == '"':
			inside = !inside
		case !inside && (c == '{' || c == '[' || c == ','):
			n++
		}
	}
	return n
}

// countValues is countJSON for a tree.
func countValues(tree any) (n int) {
	switch v := tree.(type) {
	case map[string]any:
		for _, below := range v {
			n += countValues(below)
		}
	case []any:
		for _, below := range v {
			n += countValues(below)
		}
	}
	return n + 1
}
