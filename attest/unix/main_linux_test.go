package unix_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"

	"github.com/writ-dev/writ/agent/peer"
	"github.com/writ-dev/writ/attest"
)

// The test binary is also the callers: with this variable set it does what the words on its standard input say.
const helperVariable = "WRIT_UNIX_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperVariable) != "" {
		if err := help(); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// help reads commands, words with tabs between, and answers each with a line. A program that it becomes says so.
func help() error {
	fmt.Println("done start")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		words := strings.Split(in.Text(), "\t")
		var err error
		switch words[0] {
		case "connect": // PATH; the connection lives as long as the process
			_, err = net.Dial("unix", words[1])
		case "exec": // PROGRAM
			return syscall.Exec(words[1], words[1:], os.Environ())
		case "memfd": // goes on as a program that has no file
			return fileless()
		case "bind": // FILE OVER
			err = unix.Mount(words[1], words[2], "", unix.MS_BIND, "")
		case "tmpfs": // FOLDER, which holds then a copy of this program
			err = errors.Join(unix.Mount("tmpfs", words[1], "tmpfs", 0, ""), install("/proc/self/exe", filepath.Join(words[1], "helper")))
		case "overlay": // FOLDER WORK, which shows itself through an overlay
			options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", words[1], words[2], words[2])
			err = errors.Join(os.Mkdir(words[2]+"/upper", 0o755), os.Mkdir(words[2]+"/work", 0o755), unix.Mount("overlay", words[1], "overlay", 0, options))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", in.Text(), err)
		}
		fmt.Println("done", words[0])
	}
	return nil
}

func fileless() error {
	fd, err := unix.MemfdCreate("trusted", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	if _, err := io.Copy(os.NewFile(uintptr(fd), "memfd"), self); err != nil {
		return err
	}
	return syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", fd), []string{"helper"}, os.Environ())
}

// install copies a program.
func install(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close(), os.Chmod(to, 0o755))
}

// folder is short and open to every user.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "unix")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// program makes the test binary a file of that name which every user may run.
func program(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(folder(t), name)
	if err := install(os.Args[0], path); err != nil {
		t.Fatal(err)
	}
	return path
}

// large makes a program have so many bytes, most of which are nowhere on disk.
func large(t *testing.T, size int64) string {
	t.Helper()
	path := program(t, "large")
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// A caller is a process that calls.
type caller struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func start(t *testing.T, program string, attr *syscall.SysProcAttr) *caller {
	t.Helper()
	c := &caller{t: t, cmd: exec.Command(program)}
	c.cmd.Path = program // whatever its name
	c.cmd.Err = nil
	c.cmd.Env = append(os.Environ(), helperVariable+"=1")
	c.cmd.SysProcAttr = attr
	c.cmd.Stderr = os.Stderr
	in, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.in, c.out = in, bufio.NewScanner(out)
	t.Cleanup(c.kill)
	c.expect()
	return c
}

// do gives a command and waits for its answer.
func (c *caller) do(words ...string) {
	c.t.Helper()
	if _, err := fmt.Fprintln(c.in, strings.Join(words, "\t")); err != nil {
		c.t.Fatal(err)
	}
	c.expect()
}

func (c *caller) expect() {
	c.t.Helper()
	if !c.out.Scan() || !strings.HasPrefix(c.out.Text(), "done") {
		c.t.Fatalf("caller answers %q", c.out.Text())
	}
}

// kill ends the process and reaps it.
func (c *caller) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.in.Close()
	_ = c.cmd.Wait()
}

// A socket pins who calls.
type socket struct {
	t     *testing.T
	path  string
	l     net.Listener
	creds credentials.TransportCredentials
}

func listen(t *testing.T, folder string) *socket {
	t.Helper()
	s := &socket{t: t, path: filepath.Join(folder, "s"), creds: peer.Credentials(peer.Config{})}
	l, err := peer.Listen(s.path, 0o777)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	s.l = l
	return s
}

// pin takes one connection and gives its caller.
func (s *socket) pin() attest.Peer {
	s.t.Helper()
	raw, err := s.l.Accept()
	if err != nil {
		s.t.Fatal(err)
	}
	c, info, err := s.creds.ServerHandshake(raw)
	if err != nil {
		_ = raw.Close()
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return info.(peer.Info).Peer
}

// called lets a process call and pins it.
func called(t *testing.T, c *caller) attest.Peer {
	t.Helper()
	s := listen(t, folder(t))
	c.do("connect", s.path)
	return s.pin()
}

func texts(selectors []attest.Selector) (out []string) {
	for _, s := range selectors {
		out = append(out, s.String())
	}
	return out
}

// of are those selectors of an executable: path, container_path and sha256.
func of(selectors []attest.Selector) (out []string) {
	for _, s := range selectors {
		if s.Key == "path" || s.Key == "container_path" || s.Key == "sha256" {
			out = append(out, s.String())
		}
	}
	return out
}

var background = context.Background()
