package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
)

// said is what a command says, read while it runs.
type said struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *said) has(part string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.text.String(), part)
}

// keeping is a `writ svid watch --write` in the test's process, and the Workload API that it follows.
type keeping struct {
	folder string
	talk   said
	next   chan *workload.X509SVIDResponse
	end    func() (code int)
}

func keep(t *testing.T, args ...string) *keeping {
	t.Helper()
	k := &keeping{folder: filepath.Join(t.TempDir(), "files"), next: make(chan *workload.X509SVIDResponse)}
	serveFake(t, step{more: k.next})
	t.Setenv("FOLDER", k.folder)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, append([]string{"svid", "watch", "--write", k.folder}, args...), strings.NewReader(""), &said{}, &k.talk)
	}()
	k.end = sync.OnceValue(func() int { cancel(); return <-ended })
	t.Cleanup(func() {
		k.end()
		if t.Failed() {
			t.Log(k.talk.text.String())
		}
	})
	return k
}

func (k *keeping) read(name string) string {
	text, _ := os.ReadFile(filepath.Join(k.folder, name))
	return string(text)
}

// issue has the Workload API send a new SVID.
func (k *keeping) issue(t *testing.T) *workload.X509SVID {
	t.Helper()
	s := issued(t, "/web")
	k.next <- message(s)
	return s
}

// holds waits for the files of s.
func (k *keeping) holds(t *testing.T, s *workload.X509SVID) {
	t.Helper()
	await(t, "the files of the newest SVID", func() bool {
		return k.read("svid.pem") == pemOf(s.X509Svid) && k.read("bundle.pem") == pemOf(s.Bundle) && k.read("key.pem") != ""
	})
}

// A watch runs for months. What is wrong with its folder for an hour must not end it: nobody would notice before the SVID on disk ends.
func TestWatchOutlivesItsFoldersTroubles(t *testing.T) {
	for name, row := range map[string]struct {
		spoil, mend func(folder string) error
		said        string // empty: it needs no mending
	}{
		"the folder is removed": {spoil: os.RemoveAll},
		"the lock is removed":   {spoil: func(folder string) error { return os.Remove(filepath.Join(folder, ".lock")) }},
		"a file stands in its place": {
			spoil: func(folder string) error { return errors.Join(os.RemoveAll(folder), os.WriteFile(folder, nil, 0o600)) },
			mend:  os.Remove, said: "is no folder"},
		"a file cannot be replaced": { // as on a full disk, where root is not held up either
			spoil: func(folder string) error {
				return errors.Join(os.Remove(folder+"/svid.pem"), os.MkdirAll(folder+"/svid.pem/full", 0o700))
			},
			mend: func(folder string) error { return os.RemoveAll(folder + "/svid.pem") }, said: "svid.pem"},
	} {
		t.Run(name, func(t *testing.T) {
			k := keep(t)
			k.holds(t, k.issue(t))
			if err := row.spoil(k.folder); err != nil {
				t.Fatal(err)
			}
			k.issue(t)
			newest := k.issue(t)
			if row.mend != nil {
				await(t, "a word of what is wrong", func() bool { return k.talk.has(row.said) && k.talk.has("tried again in") })
				if err := row.mend(k.folder); err != nil {
					t.Fatal(err)
				}
			}
			k.holds(t, newest)
			if info, err := os.Stat(k.folder); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("the folder has %v, %v", info.Mode(), err)
			}
			if code := k.end(); code != exitOK {
				t.Errorf("it ends with %d", code)
			}
		})
	}
}

// Whoever reads the files must not be without them until the SVID is renewed.
func TestWatchBringsBackWhatIsGone(t *testing.T) {
	for name, spoil := range map[string]func(folder string) error{
		"the folder": os.RemoveAll,
		"the key":    func(folder string) error { return os.Remove(filepath.Join(folder, "key.pem")) },
		"the chain":  func(folder string) error { return os.Truncate(filepath.Join(folder, "svid.pem"), 10) },
	} {
		t.Run(name, func(t *testing.T) {
			k := keep(t)
			s := k.issue(t)
			k.holds(t, s)
			if err := spoil(k.folder); err != nil {
				t.Fatal(err)
			}
			k.holds(t, s)
			await(t, "a word of it", func() bool { return k.talk.has("gone or changed") })
			if code := k.end(); code != exitOK {
				t.Errorf("it ends with %d", code)
			}
		})
	}
}

// Two watches of one folder would take each other's files and notes away.
func TestOneWatchAFolder(t *testing.T) {
	k := keep(t)
	k.holds(t, k.issue(t))
	second := func() (int, string) {
		code, _, talk := writ(t, "svid", "watch", "--write", k.folder, "--spiffe-id", "spiffe://example.org/other")
		return code, talk
	}
	if code, talk := second(); code != exitConflict || !strings.Contains(talk, k.folder) || !strings.Contains(talk, "fix:") {
		t.Errorf("a second watch ends with %d: %s", code, talk)
	}
	if info, err := os.Stat(filepath.Join(k.folder, ".lock")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the lock has %v, %v", info, err)
	}
	k.holds(t, k.issue(t))
}

// What the command takes away of our notes is no reason to end.
func TestCommandMayRemoveTheNote(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	k := keep(t, "--exec", "rm $FOLDER/.changed; echo ran >>"+log)
	for want := range 2 {
		k.holds(t, k.issue(t))
		await(t, "the command", func() bool { text, _ := os.ReadFile(log); return strings.Count(string(text), "ran") == want+1 })
	}
	if code := k.end(); code != exitOK {
		t.Errorf("it ends with %d", code)
	}
}
