package agenttest

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

const callerVariable = "WRIT_TEST_CALLER"

// Main is for TestMain of a package that uses Caller: it runs the tests, or makes this process the caller that a test started.
func Main(m *testing.M) {
	if socket := os.Getenv(callerVariable); socket != "" {
		if err := call(socket); err != nil {
			_, _ = os.Stderr.WriteString("caller: " + err.Error() + "\n")
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// A Caller is another process, with an executable of its own, that is connected to a socket. What goes over Conn goes through it.
type Caller struct {
	Path string // of its executable
	Conn *grpc.ClientConn

	t      *testing.T
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	folder string
}

// NewCaller starts a process and connects it to the socket.
func NewCaller(t *testing.T, socket string, options ...grpc.DialOption) *Caller {
	t.Helper()
	c := &Caller{t: t, folder: t.TempDir()}
	c.Path = filepath.Join(c.folder, "caller")
	if err := os.Link(executable(t), c.Path); err != nil {
		copyFile(t, c.Path)
	}
	syscall.ForkLock.RLock()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.CloseOnExec(ends[0])
	unix.CloseOnExec(ends[1])
	syscall.ForkLock.RUnlock()
	ours, theirs := os.NewFile(uintptr(ends[0]), "ours"), os.NewFile(uintptr(ends[1]), "theirs")
	defer func() { _, _ = ours.Close(), theirs.Close() }()
	c.cmd = exec.Command(c.Path)
	c.cmd.Env = append(os.Environ(), callerVariable+"="+socket)
	c.cmd.Stderr = t.Output()
	c.cmd.ExtraFiles = []*os.File{theirs}
	in, inErr := c.cmd.StdinPipe()
	out, outErr := c.cmd.StdoutPipe()
	conn, connErr := net.FileConn(ours)
	if err := errors.Join(inErr, outErr, connErr); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.in, c.out = in, bufio.NewReader(out)
	t.Cleanup(c.End)
	c.ready()
	once := make(chan net.Conn, 1)
	once <- conn
	c.Conn = connect(t, "passthrough:///caller", append(options, grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
		select {
		case conn := <-once:
			return conn, nil
		default:
			return nil, errors.New("the caller is gone")
		}
	}))...)
	return c
}

// Become has the process run another executable, which goes on with the connection.
func (c *Caller) Become() {
	c.t.Helper()
	other := filepath.Join(c.folder, "other")
	copyFile(c.t, other)
	if _, err := io.WriteString(c.in, other+"\n"); err != nil {
		c.t.Fatal(err)
	}
	c.ready()
}

// End ends the process.
func (c *Caller) End() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

func (c *Caller) ready() {
	c.t.Helper()
	if line, err := c.out.ReadString('\n'); err != nil {
		c.t.Fatalf("the caller says %q: %v", line, err)
	}
}

func executable(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func copyFile(t *testing.T, to string) {
	t.Helper()
	data, err := os.ReadFile(executable(t))
	if err == nil {
		err = os.WriteFile(to, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// call is the caller's side: it copies between descriptor 3, which the test holds, and the socket, in one loop, so that nothing is
// under way when it becomes another program.
func call(socket string) error {
	upstream := 0
	if len(os.Args) > 1 { // become: the connection is inherited
		n, err := strconv.Atoi(os.Args[1])
		if err != nil {
			return err
		}
		upstream = n
	} else {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: socket})
		}
		if err != nil {
			return err
		}
		upstream = fd
	}
	if _, err := os.Stdout.WriteString("ready\n"); err != nil {
		return err
	}
	const test = 3
	buf := make([]byte, 64<<10)
	for {
		waiting := []unix.PollFd{{Fd: 0, Events: unix.POLLIN}, {Fd: test, Events: unix.POLLIN}, {Fd: int32(upstream), Events: unix.POLLIN}}
		if _, err := unix.Poll(waiting, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		for i, to := range []int{-1, upstream, test} {
			if waiting[i].Revents == 0 {
				continue
			}
			n, err := unix.Read(int(waiting[i].Fd), buf)
			if err != nil || n == 0 {
				return nil // one side is gone, and so is this process
			}
			if to < 0 {
				program := string(buf[:n-1])
				return syscall.Exec(program, []string{program, strconv.Itoa(upstream)}, os.Environ())
			}
			for data := buf[:n]; len(data) > 0; {
				n, err := unix.Write(to, data)
				if err != nil {
					return nil
				}
				data = data[n:]
			}
		}
	}
}
