package policy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

const (
	maxDepth    = 32 // of folders: symbolic links may form a circle
	readTries   = 10
	betweenTrys = 10 * time.Millisecond
)

// A sighting is what a folder looked like, without its contents.
type sighting []seen

type seen struct {
	name    string
	info    fs.FileInfo
	changed time.Time // by the system's own account: the time that a file says of itself can be set
}

// A snapshot is every file of a policy set as it stood at one moment.
type snapshot struct {
	names    []string // sorted
	files    map[string][]byte
	sighting sighting
	bounds   bounds
	digest   string
}

// relevant says whether a file is part of a policy set.
func relevant(name string) bool {
	base := path.Base(name)
	return strings.HasSuffix(base, ".rego") || base == "data.json" || base == "data.yaml" || name == "policy.yaml" || isCase(name) ||
		isDescriptor(name)
}

func isCase(name string) bool {
	return path.Dir(name) == "cases" && (strings.HasSuffix(name, ".yaml") || strings.HasSuffix(name, ".yml"))
}

// sight lists the files of a set. Symbolic links are followed; names that begin with a dot are left out.
func sight(files fs.FS) (sighting, error) {
	var out sighting
	entries := 0
	var walk func(dir string, depth int) error
	walk = func(dir string, depth int) error {
		if depth > maxDepth {
			return fmt.Errorf("%s: folders are nested too deep", dir)
		}
		list, err := fs.ReadDir(files, dir)
		if err != nil {
			return err
		}
		if entries += len(list); entries > maxEntries {
			return beyond{fmt.Sprintf("the folder has more than %d entries, through its symbolic links", maxEntries)}
		}
		for _, e := range list {
			name := path.Join(dir, e.Name())
			if strings.HasPrefix(e.Name(), ".") {
				continue
			}
			info, err := fs.Stat(files, name)
			switch {
			case err != nil && !relevant(name):
				continue // a link to nothing
			case err != nil:
				return err
			case info.IsDir():
				if err := walk(name, depth+1); err != nil {
					return err
				}
			case relevant(name) && info.Mode().IsRegular():
				out = append(out, seen{name, info, changed(info)})
			}
		}
		return nil
	}
	err := walk(".", 0)
	slices.SortFunc(out, func(a, b seen) int { return strings.Compare(a.name, b.name) })
	return out, err
}

// equal says that nothing moved between two sightings, as far as names, sizes, times and the identity of files can tell.
func (s sighting) equal(t sighting) bool {
	return slices.EqualFunc(s, t, func(a, b seen) bool {
		embedded := a.info.Sys() == nil && b.info.Sys() == nil
		return a.name == b.name && a.info.Size() == b.info.Size() && a.info.ModTime().Equal(b.info.ModTime()) &&
			a.changed.Equal(b.changed) && (embedded || os.SameFile(a.info, b.info))
	})
}

// young says whether a file changed just now. One that did so in the future did it by a clock that was wrong.
func (s sighting) young(now time.Time) bool {
	return slices.ContainsFunc(s, func(f seen) bool { return now.Sub(f.changed).Abs() <= young })
}

// take reads all of a folder, and again while anything moves meanwhile.
func take(ctx context.Context, files fs.FS, b bounds) (*snapshot, error) {
	var last error
	for range readTries {
		before, err := sight(files)
		if err == nil {
			err = b.fit(before)
		}
		if err == nil {
			var s *snapshot
			if s, err = read(files, before, b); err == nil {
				if after, sightErr := sight(files); sightErr == nil && before.equal(after) {
					return s, nil
				}
				err = errors.New("the folder does not stand still")
			}
		}
		if last = err; errors.As(err, new(beyond)) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(betweenTrys):
		}
	}
	return nil, last
}

func read(files fs.FS, s sighting, b bounds) (*snapshot, error) {
	out := &snapshot{files: make(map[string][]byte, len(s)), sighting: s, bounds: b}
	hash := sha256.New()
	for _, f := range s {
		content, err := readFile(files, f.name, b)
		if err != nil {
			return nil, err
		}
		for _, part := range [][]byte{[]byte(f.name), content} {
			hash.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
			hash.Write(part)
		}
		out.names = append(out.names, f.name)
		out.files[f.name] = bytes.TrimPrefix(content, []byte("\xef\xbb\xbf"))
	}
	out.digest = hex.EncodeToString(hash.Sum(nil)[:16])
	return out, nil
}

// readFile reads no more than a file may have: it may have grown since it was seen.
func readFile(files fs.FS, name string, b bounds) ([]byte, error) {
	f, err := files.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, b.most(name)+1))
	if err != nil {
		return nil, err
	}
	return content, b.fitFile(name, int64(len(content)))
}
