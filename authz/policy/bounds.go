package policy

import (
	"fmt"
	"path"
	"strings"
)

// What a policy set may take. Loading needs memory and time in a multiple of what is read, so a set beyond is refused by size, before
// it is read: memory for a set is then bounded, whatever the folder holds (docs/decisions.md has the figures).
const (
	maxFiles      = 10_000
	maxSet        = 32 << 20  // bytes of all files
	maxRego       = 1 << 20   // of one .rego file
	maxJSON       = 16 << 20  // of one data.json
	maxYAML       = 4 << 20   // of one data.yaml: its parser takes over a hundred bytes for each
	maxText       = 1 << 20   // of policy.yaml, and of one file of cases
	maxDescriptor = 16 << 20  // of one FileDescriptorSet
	maxValues     = 2_000_000 // JSON values in all data files

	maxBodyValues = 200_000   // values in a body: each takes some hundred bytes, for as little as two of the body's
	maxTarget     = 256 << 10 // bytes of path and query: proxies take far less
)

// beyond says that a set has more than it may; it stays beyond however often it is read.
type beyond struct{ what string }

func (b beyond) Error() string { return b.what }

// most is how many bytes a file may have.
func most(name string) int64 {
	switch base := path.Base(name); {
	case strings.HasSuffix(base, ".rego"):
		return maxRego
	case base == "data.json":
		return maxJSON
	case base == "data.yaml" && !isCase(name):
		return maxYAML
	case isDescriptor(name):
		return maxDescriptor
	}
	return maxText
}

// fits refuses a set by what was seen of it.
func (s sighting) fits() error {
	if len(s) > maxFiles {
		return beyond{fmt.Sprintf("the folder has %d files of a policy set, more than %d", len(s), maxFiles)}
	}
	total := int64(0)
	for _, f := range s {
		if err := fits(f.name, f.info.Size()); err != nil {
			return err
		}
		total += f.info.Size()
	}
	if total > maxSet {
		return beyond{fmt.Sprintf("the files of the set have %d bytes in all, more than %d (%d MiB)", total, int64(maxSet), maxSet>>20)}
	}
	return nil
}

func fits(name string, size int64) error {
	if limit := most(name); size > limit {
		return beyond{fmt.Sprintf("%s has %d bytes, more than the %d (%d MiB) that such a file may have", name, size, limit, limit>>20)}
	}
	return nil
}

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
