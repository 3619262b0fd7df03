package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxDescriptors bounds how many descriptors of a caller are looked through.
const maxDescriptors = 1 << 16

// holdsPeer is nil if the process holds the socket's other end. It stands in for SO_PEERPIDFD: a process that was given the
// caller's number after the caller had ended does not hold the caller's socket.
func holdsPeer(sock, pid int) error {
	inode, err := peerInode(sock)
	if err != nil {
		return fmt.Errorf("find the socket's other end: %w", err)
	}
	want := "socket:[" + strconv.FormatUint(uint64(inode), 10) + "]"
	folder := procPath(int32(pid), "fd")
	dir, err := os.Open(folder)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	for seen := 0; seen < maxDescriptors; {
		names, err := dir.Readdirnames(512)
		for _, name := range names {
			if target, err := os.Readlink(folder + "/" + name); err == nil && target == want {
				return nil
			}
		}
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("process %d does not hold the socket's other end", pid)
		}
		if err != nil {
			return err
		}
		seen += len(names)
	}
	return fmt.Errorf("process %d holds over %d descriptors", pid, maxDescriptors)
}

// peerInode asks the kernel for the inode of the socket's other end. A socket made by connect belongs to the network namespace of
// who connected: where that is not ours, it is asked in that one.
func peerInode(sock int) (uint32, error) {
	request, err := diagRequest(sock)
	if err != nil {
		return 0, err
	}
	diag, err := diagSocket()
	if err != nil {
		return 0, err
	}
	inode, err := ask(diag, request)
	if !errors.Is(err, unix.ENOENT) {
		return inode, err
	}
	if diag, err = diagSocketOf(sock); err != nil {
		return 0, err
	}
	return ask(diag, request)
}

const (
	showPeer = 0x4 // UDIAG_SHOW_PEER
	peerAttr = 2   // UNIX_DIAG_PEER
	netnsOf  = 0x894c
)

// diagRequest is nlmsghdr and unix_diag_req. The cookie makes the kernel refuse where the number was given to another socket.
func diagRequest(sock int) ([]byte, error) {
	var s unix.Stat_t
	if err := unix.Fstat(sock, &s); err != nil {
		return nil, err
	}
	cookie, err := unix.GetsockoptUint64(sock, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return nil, err
	}
	order := binary.NativeEndian
	out := order.AppendUint32(nil, unix.SizeofNlMsghdr+24)
	out = order.AppendUint16(out, unix.SOCK_DIAG_BY_FAMILY)
	out = order.AppendUint16(out, unix.NLM_F_REQUEST)
	out = append(out, make([]byte, 8)...)         // sequence, port
	out = append(out, unix.AF_UNIX, 0, 0, 0)      // family, protocol, padding
	out = order.AppendUint32(out, 0xffffffff)     // every state
	out = order.AppendUint32(out, uint32(s.Ino))  // socket numbers have 32 bits
	out = order.AppendUint32(out, showPeer)       // what to show
	out = order.AppendUint32(out, uint32(cookie)) // low half first
	return order.AppendUint32(out, uint32(cookie>>32)), nil
}

func diagSocket() (int, error) {
	return unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
}

// diagSocketOf opens it in the socket's own network namespace, on a thread that ends with it.
func diagSocketOf(sock int) (int, error) {
	space, err := unix.IoctlRetInt(sock, netnsOf)
	if err != nil {
		return 0, fmt.Errorf("find the socket's network namespace: %w", err)
	}
	defer func() { _ = unix.Close(space) }()
	type opened struct {
		fd  int
		err error
	}
	result := make(chan opened)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is in the wrong namespace and ends with this goroutine
		if err := unix.Setns(space, unix.CLONE_NEWNET); err != nil {
			result <- opened{err: fmt.Errorf("enter the socket's network namespace: %w", err)}
			return
		}
		fd, err := diagSocket()
		result <- opened{fd, err}
	}()
	r := <-result
	return r.fd, r.err
}

// ask sends the request, reads the one answer and closes the netlink socket.
func ask(diag int, request []byte) (uint32, error) {
	defer func() { _ = unix.Close(diag) }()
	if err := unix.SetsockoptTimeval(diag, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		return 0, err
	}
	if err := unix.Sendto(diag, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, err
	}
	buf := make([]byte, 4096)
	n, _, err := unix.Recvfrom(diag, buf, 0)
	if err != nil {
		return 0, err
	}
	return parsePeer(buf[:n])
}

// parsePeer reads nlmsghdr, then nlmsgerr, or unix_diag_msg and attributes.
func parsePeer(data []byte) (uint32, error) {
	order := binary.NativeEndian
	const header, message = unix.SizeofNlMsghdr, unix.SizeofNlMsghdr + 16
	if len(data) >= header+4 && order.Uint16(data[4:]) == unix.NLMSG_ERROR {
		return 0, unix.Errno(-int32(order.Uint32(data[header:])))
	}
	if len(data) < message || order.Uint16(data[4:]) != unix.SOCK_DIAG_BY_FAMILY {
		return 0, errors.New("answer of sock_diag is cut off")
	}
	for rest := data[message:]; len(rest) >= 4; {
		size, kind := int(order.Uint16(rest)), order.Uint16(rest[2:])
		if size < 4 || size > len(rest) {
			break
		}
		if kind == peerAttr && size >= 8 {
			return order.Uint32(rest[4:]), nil
		}
		rest = rest[min((size+3)&^3, len(rest)):]
	}
	return 0, errors.New("socket has no other end any more")
}
