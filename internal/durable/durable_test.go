package durable_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/internal/durable"
)

// withUmask sets the process's umask; tests of this package do not run in parallel.
func withUmask(t *testing.T, mask int) {
	t.Helper()
	old := syscall.Umask(mask)
	t.Cleanup(func() { syscall.Umask(old) })
}

func modeOf(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func namesIn(t *testing.T, folder string) []string {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestModesHoldWhateverTheUmask(t *testing.T) {
	for _, mask := range []int{0, 0o022, 0o077, 0o777} {
		withUmask(t, mask)
		folder := t.TempDir()
		os.Chmod(folder, 0o700) // the umask struck it too
		for _, mode := range []fs.FileMode{0o600, 0o640, 0o644} {
			path := filepath.Join(folder, "file")
			if err := durable.WriteFile(path, []byte("x"), mode); err != nil {
				t.Fatal(err)
			}
			if got := modeOf(t, path); got != mode {
				t.Errorf("umask %03o: file has %04o, want %04o", mask, got, mode)
			}
		}
		for name, mode := range map[string]fs.FileMode{"private": 0o700, "passable": 0o711, "open": 0o755} {
			path := filepath.Join(folder, name)
			if err := durable.MakeFolder(path, mode); err != nil {
				t.Fatal(err)
			}
			if got := modeOf(t, path); got != mode {
				t.Errorf("umask %03o: folder has %04o, want %04o", mask, got, mode)
			}
		}
		syscall.Umask(0o022) // for the cleaning up
	}
}

func TestWriteFileReplacesAnOlderMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(path, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := modeOf(t, path); got != 0o600 {
		t.Errorf("mode %04o", got)
	}
	if data, err := durable.ReadSecret(path); err != nil || string(data) != "new" {
		t.Errorf("ReadSecret gives %q, %v", data, err)
	}
}

func TestWriteFileReplacesTheLinkAndNotItsTarget(t *testing.T) {
	folder := t.TempDir()
	target, link := filepath.Join(folder, "target"), filepath.Join(folder, "link")
	os.WriteFile(target, []byte("theirs"), 0o600)
	os.Symlink(target, link)
	if err := durable.WriteFile(link, []byte("ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(target); string(data) != "theirs" {
		t.Errorf("the link's target holds %q", data)
	}
}

func TestWriteFileFailureLeavesEverythingAsItWas(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "taken")
	if err := os.Mkdir(path, 0o700); err != nil { // a rename over it fails
		t.Fatal(err)
	}
	if err := durable.WriteFile(path, []byte("x"), 0o600); err == nil {
		t.Error("a folder was replaced by a file")
	}
	if diff := cmp.Diff([]string{"taken"}, namesIn(t, folder)); diff != "" {
		t.Errorf("something was left behind: %s", diff)
	}
	if err := durable.WriteFile(filepath.Join(folder, "no", "such", "folder"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// A key and its certificate belong together: where there is no room for both, both stay.
func TestWriteFilesReplacesAllOrNone(t *testing.T) {
	folder := t.TempDir()
	at := func(name string) string { return filepath.Join(folder, name) }
	write := func(last string, content string) error {
		return durable.WriteFiles(durable.File{Path: at("a"), Data: []byte(content), Mode: 0o600}, durable.File{Path: at(last), Data: []byte(content), Mode: 0o640})
	}
	if err := write("b", "old"); err != nil {
		t.Fatal(err)
	}
	if modeOf(t, at("a")) != 0o600 || modeOf(t, at("b")) != 0o640 {
		t.Errorf("the modes are %o and %o", modeOf(t, at("a")), modeOf(t, at("b")))
	}
	if err := write("no such folder/b", "new"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if data, _ := os.ReadFile(at("a")); string(data) != "old" {
		t.Errorf("the first holds %q where the second could not be written", data)
	}
	if diff := cmp.Diff([]string{"a", "b"}, namesIn(t, folder)); diff != "" {
		t.Errorf("something was left behind: %s", diff)
	}
}

func TestReadersSeeOldOrNewAndNeverAPart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	contents := [][]byte{bytes.Repeat([]byte("a"), 1<<16), bytes.Repeat([]byte("b"), 1<<15)}
	if err := durable.WriteFile(path, contents[0], 0o600); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			data, err := durable.ReadSecret(path)
			if err != nil || !bytes.Equal(data, contents[0]) && !bytes.Equal(data, contents[1]) {
				t.Errorf("read %d bytes, %v", len(data), err)
				return
			}
		}
	})
	for i := range 50 {
		if err := durable.WriteFile(path, contents[i%2], 0o600); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	reader.Wait()
}

func TestReadSecret(t *testing.T) {
	folder := t.TempDir()
	for _, row := range []struct {
		name string
		mode fs.FileMode
		wide bool
	}{
		{"owner reads and writes", 0o600, false},
		{"owner reads", 0o400, false},
		{"group reads", 0o640, true},
		{"others read", 0o604, true},
		{"others write", 0o602, true},
		{"group executes", 0o610, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			path := filepath.Join(folder, "secret")
			if err := durable.WriteFile(path, []byte("s"), row.mode); err != nil {
				t.Fatal(err)
			}
			data, err := durable.ReadSecret(path)
			var wide *durable.WideModeError
			if got := errors.As(err, &wide); got != row.wide || got != (err != nil) {
				t.Fatalf("mode %04o gives %v", row.mode, err)
			}
			if row.wide && (wide.Path != path || wide.Mode.Perm() != row.mode || data != nil) {
				t.Errorf("got %+v, %q", wide, data)
			}
		})
	}
	pipe := filepath.Join(folder, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := durable.ReadSecret(pipe); err == nil {
		t.Error("a pipe was read as a secret")
	}
	if _, err := durable.ReadSecret(filepath.Join(folder, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file gives %v", err)
	}
}

func TestFolderThatIsThereAlready(t *testing.T) {
	for _, row := range []struct {
		name string
		mode fs.FileMode
		most fs.FileMode
		wide bool
	}{
		{"the same mode", 0o700, 0o700, false},
		{"a narrower one", 0o500, 0o711, false},
		{"others may list", 0o704, 0o700, true},
		{"group may write", 0o770, 0o755, true},
		{"others may write", 0o757, 0o755, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "folder")
			os.Mkdir(path, 0o700)
			os.Chmod(path, row.mode)
			for _, err := range []error{durable.CheckFolder(path, row.most), durable.MakeFolder(path, row.most)} {
				var wide *durable.WideModeError
				if errors.As(err, &wide) != row.wide || row.wide != (err != nil) {
					t.Errorf("got %v", err)
				}
			}
			if got := modeOf(t, path); got != row.mode {
				t.Errorf("the mode became %04o", got)
			}
		})
	}
}

func TestFolderOfAnotherOwner(t *testing.T) {
	path := "/" // belongs to uid 0
	if os.Geteuid() == 0 {
		path = filepath.Join(t.TempDir(), "theirs")
		os.Mkdir(path, 0o700)
		if err := os.Chown(path, 12345, 12345); err != nil {
			t.Fatal(err)
		}
	}
	var owner *durable.OwnerError
	if err := durable.CheckFolder(path, 0o777); !errors.As(err, &owner) {
		t.Errorf("CheckFolder gives %v", err)
	}
	if err := durable.MakeFolder(path, 0o777); !errors.As(err, &owner) {
		t.Errorf("MakeFolder gives %v", err)
	}
}

func TestFolderThatIsAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	os.WriteFile(path, nil, 0o600)
	if durable.CheckFolder(path, 0o700) == nil || durable.MakeFolder(path, 0o700) == nil {
		t.Error("a file is taken for a folder")
	}
	if err := durable.CheckFolder(path+"-none", 0o700); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing folder gives %v", err)
	}
}

func TestMakeFolderMakesParents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "c") + "/"
	if err := durable.MakeFolder(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := durable.MakeFolder(path, 0o700); err != nil {
		t.Errorf("again: %v", err)
	}
}
