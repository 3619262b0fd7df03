package peer_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/writ-dev/writ/agent/peer"
	"github.com/writ-dev/writ/attest"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// The test binary is also the callers: with this variable set it does what the words on its standard input say.
const helperVariable = "WRIT_PEER_HELPER"

// Namespaces shown under /proc/PID are those of the first thread, so a helper that changes its own has to stay on it.
var _ = func() bool {
	if os.Getenv(helperVariable) != "" {
		runtime.LockOSThread()
	}
	return true
}()

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

// help reads commands, one a line, and answers each with a line.
func help() error {
	if len(os.Args) > 1 && os.Args[1] == "announce" {
		fmt.Println("done announce")
	}
	var held []net.Conn
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		words := strings.Fields(in.Text())
		var err error
		switch words[0] {
		case "connect": // PATH TIMES
			for range number(words[2]) {
				var c net.Conn
				if c, err = net.Dial("unix", words[1]); err != nil {
					break
				}
				held = append(held, c)
			}
		case "exec": // PROGRAM, which inherits the connection
			inherit(held[0])
			err = syscall.Exec(words[1], words[1:], os.Environ())
		case "setuid":
			err = syscall.Setuid(number(words[1]))
		case "unshare":
			err = unix.Unshare(number(words[1]))
		case "fork": // a child that inherits the connection, and lives as long as the test
			inherit(held[0])
			c := exec.Command("/bin/cat")
			c.Stdin = os.NewFile(3, "life")
			err = c.Start()
		case "send": // the connection to whoever listens at PATH
			err = send(words[1], held[0])
		case "receive": // a connection, listening at PATH
			err = receive(words[1], &held)
		case "quit":
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Println("done", words[0])
	}
	return nil
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

func raw(c net.Conn, f func(fd int) error) error {
	sock, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	return errors.Join(sock.Control(func(fd uintptr) { inner = f(int(fd)) }), inner)
}

func inherit(c net.Conn) {
	_ = raw(c, func(fd int) error { _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); return err })
}

func send(path string, c net.Conn) error {
	to, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer func() { _ = to.Close() }()
	return raw(c, func(fd int) error {
		_, _, err := to.(*net.UnixConn).WriteMsgUnix([]byte("x"), unix.UnixRights(fd), nil)
		return err
	})
}

func receive(path string, held *[]net.Conn) error {
	l, err := net.Listen("unix", path)
	if err := errors.Join(err, os.Chmod(path, 0o777)); err != nil {
		return err
	}
	fmt.Println("done listen")
	c, err := l.Accept()
	if err != nil {
		return err
	}
	oob := make([]byte, 64)
	_, n, _, _, err := c.(*net.UnixConn).ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return err
	}
	got, err := net.FileConn(os.NewFile(uintptr(fds[0]), "received"))
	*held = append(*held, got)
	return err
}

// A helper is a process that calls.
type helper struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner

	life *os.File // its children end when it is closed
}

func start(t *testing.T, attr *syscall.SysProcAttr) *helper {
	t.Helper()
	return startProgram(t, os.Args[0], attr)
}

func startProgram(t *testing.T, program string, attr *syscall.SysProcAttr) *helper {
	t.Helper()
	h := &helper{t: t, cmd: exec.Command(program)}
	h.cmd.Env = append(os.Environ(), helperVariable+"=1")
	h.cmd.SysProcAttr = attr
	h.cmd.Stderr = os.Stderr
	in, err := h.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	life, end, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	h.cmd.ExtraFiles = []*os.File{life}
	if err := errors.Join(h.cmd.Start(), life.Close()); err != nil {
		t.Fatal(err)
	}
	h.in, h.out = in, bufio.NewScanner(out)
	h.life = end
	t.Cleanup(h.kill)
	return h
}

// do gives a command and waits for its answer.
func (h *helper) do(words ...any) {
	h.t.Helper()
	h.say(words...)
	h.expect()
}

func (h *helper) say(words ...any) {
	h.t.Helper()
	if _, err := fmt.Fprintln(h.in, words...); err != nil {
		h.t.Fatal(err)
	}
}

func (h *helper) expect() {
	h.t.Helper()
	if !h.out.Scan() || !strings.HasPrefix(h.out.Text(), "done") {
		h.t.Fatalf("helper answers %q", h.out.Text())
	}
}

// kill ends the process and reaps it, so that its number is free.
func (h *helper) kill() {
	_ = h.cmd.Process.Kill()
	_, _ = h.in.Close(), h.life.Close()
	_ = h.cmd.Wait()
}

func (h *helper) pid() int32 { return int32(h.cmd.Process.Pid) }

// paths runs a test on both ways to pin.
func paths(t *testing.T, test func(t *testing.T, s *socket)) {
	for _, row := range []struct {
		name     string
		fallback bool
	}{{"by SO_PEERPIDFD", false}, {"by number and socket, as before 6.5", true}} {
		t.Run(row.name, func(t *testing.T) { test(t, newSocket(t, peer.Config{Fallback: row.fallback})) })
	}
}

// A socket is a listener with its credentials.
type socket struct {
	t     *testing.T
	path  string
	l     net.Listener
	creds credentials.TransportCredentials
}

// folder is short and open to every user.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "peer")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func newSocket(t *testing.T, c peer.Config) *socket {
	t.Helper()
	s := &socket{t: t, path: filepath.Join(folder(t), "s"), creds: peer.Credentials(c)}
	l, err := peer.Listen(s.path, 0o777)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	s.l = peer.Paced(l)
	return s
}

func (s *socket) accept() net.Conn {
	s.t.Helper()
	c, err := s.l.Accept()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (s *socket) handshake(raw net.Conn) (net.Conn, attest.Peer, error) {
	c, info, err := s.creds.ServerHandshake(raw)
	if err != nil {
		_ = raw.Close()
		return nil, nil, err
	}
	return c, info.(peer.Info).Peer, nil
}

// pin accepts one connection and gives its caller.
func (s *socket) pin() (net.Conn, attest.Peer) {
	s.t.Helper()
	c, p, err := s.handshake(s.accept())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c, p
}

// within is the longest that anything here may take.
const within = 10 * time.Second

func closed(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(within):
		t.Fatalf("%s: not within %s", what, within)
	}
}
