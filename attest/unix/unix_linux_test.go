package unix_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/attest/unix"
	"github.com/writ-dev/writ/internal/fault"
)

const (
	alice = 54321
	bob   = 54322
)

func as(uid, gid uint32, groups ...uint32) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid, Groups: groups}}
}

func attested(t *testing.T, c unix.Config, p attest.Peer) []attest.Selector {
	t.Helper()
	got, err := unix.New(c).Attest(background, p)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

var hashing = unix.Config{WantHash: func() bool { return true }}

// same compares whatever the order of what is wanted.
func same(t *testing.T, got, want []string) {
	t.Helper()
	if diff := cmp.Diff(slices.Sorted(slices.Values(want)), got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestOwnProcess(t *testing.T) {
	s := listen(t, folder(t))
	c, err := net.Dial("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	group, err := user.LookupGroupId(me.Gid)
	if err != nil {
		t.Fatal(err)
	}
	groups, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"unix:uid:" + me.Uid, "unix:gid:" + me.Gid, "unix:user:" + me.Username, "unix:group:" + group.Name, "unix:path:" + path}
	for _, gid := range groups {
		want = append(want, "unix:supplementary_gid:"+strconv.Itoa(gid))
	}
	same(t, texts(attested(t, unix.Config{}, s.pin())), slices.Compact(slices.Sorted(slices.Values(want))))
}

func TestOwners(t *testing.T) {
	path := program(t, "helper")
	for _, row := range []struct {
		name string
		attr *syscall.SysProcAttr
		want []string
	}{
		{"a user that has no name here", as(alice, bob), []string{"uid:54321", "gid:54322"}},
		{"with groups", as(alice, alice, 54330, 54331), []string{"uid:54321", "gid:54321", "supplementary_gid:54330", "supplementary_gid:54331"}},
		{"a group twice", as(alice, alice, 54330, 54330), []string{"uid:54321", "gid:54321", "supplementary_gid:54330"}},
		{"its own group among them", as(alice, alice, alice), []string{"uid:54321", "gid:54321", "supplementary_gid:54321"}},
		{"a user and a group that have names", as(1, 1), []string{"uid:1", "user:daemon", "gid:1", "group:daemon"}},
		{"root's group is not root", as(alice, 0), []string{"uid:54321", "gid:0", "group:root"}},
		{"a user that has no number here", as(65534, 65534), nil},
		{"a group that has no number here", as(alice, 65534, 65534, 54330), []string{"uid:54321", "supplementary_gid:54330"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			want := []string{"unix:path:" + path}
			for _, s := range row.want {
				want = append(want, "unix:"+s)
			}
			same(t, texts(attested(t, unix.Config{}, called(t, start(t, path, row.attr)))), want)
		})
	}
}

// A program is started one way or another, and has the selector that is wanted.
type started struct {
	name string
	call func(t *testing.T) (c *caller, want string)
}

func check(t *testing.T, rows []started) {
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			c, want := row.call(t)
			var wanted []string
			if want != "" {
				wanted = []string{"unix:" + want}
			}
			same(t, of(attested(t, unix.Config{}, called(t, c))), wanted)
		})
	}
}

// Only a path that leads the agent to the file that runs is a path.
func TestPaths(t *testing.T) {
	alone := &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	check(t, []started{
		{"a file", func(t *testing.T) (*caller, string) {
			path := program(t, "helper")
			return start(t, path, nil), "path:" + path
		}},
		{"a file by a symbolic link is the file", func(t *testing.T) (*caller, string) {
			path, link := program(t, "helper"), filepath.Join(folder(t), "link")
			if err := os.Symlink(path, link); err != nil {
				t.Fatal(err)
			}
			return start(t, link, nil), "path:" + path
		}},
		{"a file with blanks and letters of any kind", func(t *testing.T) (*caller, string) {
			path := program(t, "größe und so:1")
			return start(t, path, nil), "path:" + path
		}},
		{"a file in a mount namespace that shows the same", func(t *testing.T) (*caller, string) {
			path := program(t, "helper")
			return start(t, path, alone), "path:" + path
		}},
		{"another file system over the path", func(t *testing.T) (*caller, string) {
			path := program(t, "helper")
			c := start(t, path, alone)
			c.do("tmpfs", filepath.Dir(path))
			c.do("exec", path)
			return c, "container_path:" + path
		}},
		{"another file system, and nothing there for the agent", func(t *testing.T) (*caller, string) {
			path, empty := program(t, "helper"), folder(t)
			c := start(t, path, alone)
			c.do("tmpfs", empty)
			c.do("exec", filepath.Join(empty, "helper"))
			return c, "container_path:" + filepath.Join(empty, "helper")
		}},
		{"another file of the same file system bound over the path", func(t *testing.T) (*caller, string) {
			trusted, own := program(t, "trusted"), program(t, "own")
			c := start(t, own, alone)
			c.do("bind", own, trusted)
			c.do("exec", trusted)
			return c, "container_path:" + trusted
		}},
	})
}

// What has no name any more, or none that can be trusted, has no path of any kind.
func TestProgramsWithoutPath(t *testing.T) {
	check(t, []started{
		{"a file that was deleted", func(t *testing.T) (*caller, string) {
			path := program(t, "helper")
			c := start(t, path, nil)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			return c, ""
		}},
		{"a file that was replaced, as by an upgrade", func(t *testing.T) (*caller, string) {
			path, newer := program(t, "helper"), program(t, "newer")
			c := start(t, path, nil)
			if err := os.Rename(newer, path); err != nil {
				t.Fatal(err)
			}
			return c, ""
		}},
		{"a file that was deleted, beside one that is called so", func(t *testing.T) (*caller, string) {
			path := program(t, "helper")
			c := start(t, path, nil)
			if err := os.Rename(path, path+" (deleted)"); err != nil {
				t.Fatal(err)
			}
			return c, "" // it is this very file, but its name says otherwise
		}},
		{"a program in memory", func(t *testing.T) (*caller, string) {
			c := start(t, program(t, "helper"), nil)
			c.do("memfd")
			return c, ""
		}},
		{"a name that a selector cannot hold", func(t *testing.T) (*caller, string) {
			return start(t, program(t, "helper\nunix:path:trusted"), nil), ""
		}},
		{"a name that is not text", func(t *testing.T) (*caller, string) {
			return start(t, program(t, "helper\xff"), nil), ""
		}},
	})
}

func digest(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		t.Fatal(err)
	}
	return "unix:sha256:" + hex.EncodeToString(sum.Sum(nil))
}

func TestHashes(t *testing.T) {
	path := program(t, "helper")
	sum := digest(t, path)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	most := func(n int64) unix.Config { return unix.Config{WantHash: hashing.WantHash, MaxHash: n} }
	for _, row := range []struct {
		name   string
		config unix.Config
		call   func(t *testing.T) *caller
		want   []string
	}{
		{"nobody asks", unix.Config{}, func(t *testing.T) *caller { return start(t, path, nil) }, []string{"unix:path:" + path}},
		{"no entry asks", unix.Config{WantHash: func() bool { return false }}, func(t *testing.T) *caller { return start(t, path, nil) },
			[]string{"unix:path:" + path}},
		{"an entry asks", hashing, func(t *testing.T) *caller { return start(t, path, nil) }, []string{"unix:path:" + path, sum}},
		{"it is as large as may be", most(info.Size()), func(t *testing.T) *caller { return start(t, path, nil) }, []string{"unix:path:" + path, sum}},
		{"it is a byte larger than may be", most(info.Size() - 1), func(t *testing.T) *caller { return start(t, path, nil) },
			[]string{"unix:path:" + path}},
		{"what runs is not what stands there now", hashing, func(t *testing.T) *caller {
			own := program(t, "own")
			c := start(t, own, nil)
			if err := errors.Join(os.Remove(own), os.WriteFile(own, []byte("trusted"), 0o755)); err != nil {
				t.Fatal(err)
			}
			return c
		}, []string{sum}},
		{"it has no file", hashing, func(t *testing.T) *caller {
			c := start(t, path, nil)
			c.do("memfd")
			return c
		}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			same(t, of(attested(t, row.config, called(t, row.call(t)))), row.want)
		})
	}
}

// An overlay shows what lies below it: where a user laid it over files that he serves, it shows the hasher what he likes.
func TestHashesOfOverlays(t *testing.T) {
	for _, row := range []struct {
		name   string
		attr   *syscall.SysProcAttr
		hashed bool
	}{
		{"laid by root", &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}, true},
		{"laid in a user's own namespace", &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER, Credential: &syscall.Credential{NoSetGroups: true},
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}, GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
		}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			path, work := program(t, "helper"), folder(t)
			c := start(t, path, row.attr)
			c.do("overlay", filepath.Dir(path), work)
			c.do("exec", path)
			want := []string{"unix:container_path:" + path}
			if row.hashed {
				want = append(want, digest(t, path))
			}
			same(t, of(attested(t, hashing, called(t, c))), want)
		})
	}
}

// bytesRead are those that this process has read so far.
func bytesRead(t *testing.T) (n int64) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(string(data), "rchar: %d", &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// A file is read once for each of its contents; one that changed a moment ago may change again without a trace.
func TestHashIsRemembered(t *testing.T) {
	const size = 64 << 20
	path := large(t, size)
	p := called(t, start(t, path, nil))
	want := digest(t, path)
	for _, row := range []struct {
		name   string
		now    time.Time
		second bool // is it read again
	}{
		{"of a file that is settled", time.Now().Add(time.Hour), false},
		{"not of one that changed a moment ago", time.Now().Add(-time.Hour), true},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := unix.New(unix.Config{WantHash: hashing.WantHash, Now: func() time.Time { return row.now }})
			for i, reads := range []bool{true, row.second} {
				before := bytesRead(t)
				got, err := a.Attest(background, p)
				if err != nil {
					t.Fatal(err)
				}
				same(t, of(got), []string{"unix:path:" + path, want})
				if n := bytesRead(t) - before; (n >= size) != reads {
					t.Errorf("attestation %d reads %d bytes of %d", i+1, n, int64(size))
				}
			}
		})
	}
}

// reading waits until this process has the file open.
func reading(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		links, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range links {
			if target, err := os.Readlink("/proc/self/fd/" + link.Name()); err == nil && target == path {
				return
			}
		}
	}
	t.Fatalf("%s is never opened", path)
}

// Who has a large executable waits for himself, and never longer than the deadline.
func TestLooksAreOneAtATimeForEachUser(t *testing.T) {
	const huge = 1 << 40
	slow, small := large(t, huge), program(t, "small")
	a := unix.New(unix.Config{WantHash: hashing.WantHash, MaxHash: huge, Deadline: time.Hour})
	ctx, cancel := context.WithCancel(background)
	first := make(chan error, 1)
	slowPeer := called(t, start(t, slow, as(alice, alice)))
	go func() {
		_, err := a.Attest(ctx, slowPeer)
		first <- err
	}()
	reading(t, slow)
	if _, err := a.Attest(background, called(t, start(t, small, as(bob, bob)))); err != nil {
		t.Errorf("another user: %v", err)
	}
	own := called(t, start(t, small, as(alice, alice)))
	short, done := context.WithTimeout(background, 50*time.Millisecond)
	defer done()
	if _, err := a.Attest(short, own); !fault.Is(err, fault.Unavailable) {
		t.Errorf("the same user at the same time: %v", err)
	}
	select {
	case err := <-first:
		t.Errorf("the first look ended early: %v", err)
	default:
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := a.Attest(background, own); err != nil { // the turn is free again
		t.Errorf("the same user afterwards: %v", err)
	}
}

func TestLooksEndAtTheDeadline(t *testing.T) {
	const huge = 1 << 40
	a := unix.New(unix.Config{WantHash: hashing.WantHash, MaxHash: huge, Deadline: 50 * time.Millisecond})
	p := called(t, start(t, large(t, huge), nil))
	for range 2 {
		got, err := a.Attest(background, p)
		if !fault.Is(err, fault.Unavailable) || got != nil {
			t.Errorf("%v, %v", got, err)
		}
	}
}

// What is not the process that connected any more gets nothing.
func TestChangedProcessGetsNothing(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, c *caller){
		"it runs another program": func(t *testing.T, c *caller) { c.do("exec", program(t, "other")) },
		"it has ended":            func(_ *testing.T, c *caller) { c.kill() },
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t, program(t, "helper"), nil)
			p := called(t, c)
			attested(t, hashing, p)
			change(t, c)
			got, err := unix.New(hashing).Attest(background, p)
			if !fault.Is(err, fault.Denied) || got != nil {
				t.Errorf("%v, %v", texts(got), err)
			}
		})
	}
}

// hidden is a process whose executable the agent may not see, as another user's for an agent without privileges.
type hidden struct{ attest.Peer }

// Process has no executable.
func (h hidden) Process() attest.Process {
	p := h.Peer.Process()
	p.Executable, p.Path = attest.FileID{}, ""
	return p
}

func TestExecutableThatCannotBeSeen(t *testing.T) {
	p := called(t, start(t, program(t, "helper"), as(alice, alice, 54330)))
	same(t, texts(attested(t, hashing, hidden{p})), []string{"unix:uid:54321", "unix:gid:54321", "unix:supplementary_gid:54330"})
}
