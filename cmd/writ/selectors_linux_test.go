package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/agent/peer"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/attest/jointoken"
	"github.com/writ-dev/writ/attest/unix"
	"github.com/writ-dev/writ/attest/x509pop"
	"github.com/writ-dev/writ/registration"
)

// asking is an entry that asks nodes or workloads for one selector, beside one that is beyond doubt.
func asking(s attest.Selector, ofNode bool) registration.Entry {
	e := registration.Entry{Name: "e", ID: spiffeid.RequireFromString("spiffe://example.org/e"),
		Match: []attest.Selector{{Method: "unix", Key: "uid", Value: "1"}}}
	if ofNode {
		e.Where = []attest.Selector{s}
		return e
	}
	e.Any, e.Match = true, append(e.Match, s)
	return e
}

// What an entry may ask for is what the attestors make: registration, which may not import them, knows neither more keys nor fewer.
func TestEntriesAskForWhatAttestorsMake(t *testing.T) {
	for _, m := range []struct {
		method, folder string
		ofNode         bool
	}{{unix.Method, "unix", false}, {jointoken.Method, "jointoken", true}, {x509pop.Method, "x509pop", true}} {
		warnings := asking(attest.Selector{Method: m.method, Key: "no-such", Value: "x"}, m.ofNode).Warnings(time.Time{})
		want := "only " + strings.Join(keysMadeIn(t, filepath.Join("../../attest", m.folder)), ", ") + ";"
		if len(warnings) != 1 || !strings.Contains(warnings[0], want) {
			t.Errorf("%s makes %q\nof a key that is none it is said %q", m.method, want, warnings)
		}
	}
}

// keysMadeIn are the keys of the selectors that a package makes, as they stand in its source.
func keysMadeIn(t *testing.T, folder string) (keys []string) {
	t.Helper()
	err := filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			pair, ok := n.(*ast.KeyValueExpr)
			if !ok {
				return true
			}
			name, _ := pair.Key.(*ast.Ident)
			value, _ := pair.Value.(*ast.BasicLit)
			if name != nil && name.Name == "Key" && value != nil && value.Kind == token.STRING {
				key, _ := strconv.Unquote(value.Value)
				keys = append(keys, key)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// Whatever the attestor finds of a real process may be asked for, and nobody is warned of it.
func TestWhatIsFoundOfAProcessMayBeAskedFor(t *testing.T) {
	p, err := peer.PinPID(int32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	found, err := unix.New(unix.Config{WantHash: func() bool { return true }}).Attest(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, s := range found {
		e := asking(s, false)
		if err := e.Check(registration.Limits{TrustDomain: e.ID.TrustDomain()}); err != nil || len(e.Warnings(time.Time{})) > 0 {
			t.Errorf("%s: %v, %v", s, err, e.Warnings(time.Time{}))
		}
		if !slices.Contains(keys, s.Key) && !slices.Contains([]string{"user", "group", "supplementary_gid"}, s.Key) { // not every user has them
			keys = append(keys, s.Key)
		}
	}
	if diff := cmp.Diff([]string{"gid", "path", "sha256", "uid"}, keys); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
}
