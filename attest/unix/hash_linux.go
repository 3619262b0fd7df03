package unix

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/writ-dev/writ/attest"
	"golang.org/x/sys/unix"
)

// sha256 is the executable's digest, empty where none is wanted or none can be relied on.
func (a *Attestor) sha256(ctx context.Context, p attest.Process) (string, error) {
	if !a.config.WantHash() {
		return "", nil
	}
	kind, err := fileSystem(p)
	if err != nil {
		return "", err
	}
	if !slices.Contains(local(), kind) || kind == "overlay" && !sameUsers(p) {
		a.config.Log.InfoContext(ctx, "executable not hashed", "peer_pid", p.PID, "err", "file system "+kind+" is not local")
		return "", nil
	}
	f, err := os.OpenFile(procPath(p, "exe"), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return "", fmt.Errorf("open executable: %w", err)
	}
	defer func() { _ = f.Close() }()
	v, err := versionOf(f)
	if err != nil {
		return "", err
	}
	if (attest.FileID{Device: v.device, Inode: v.inode}) != p.Executable {
		return "", errors.New("executable is not the one that connected")
	}
	if v.size > a.config.MaxHash {
		a.config.Log.InfoContext(ctx, "executable not hashed", "peer_pid", p.PID, "err", "it has "+strconv.FormatInt(v.size, 10)+" bytes")
		return "", nil
	}
	if sum, ok := a.hashes.get(v); ok {
		return sum, nil
	}
	sum, err := hash(ctx, f, v)
	if err == nil {
		a.hashes.put(v, sum, a.config.Now())
	}
	return sum, err
}

// local are the file systems whose bytes the kernel answers for: they show the hasher what they show the loader.
func local() []string {
	return []string{"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "tmpfs", "ramfs", "rootfs", "squashfs", "erofs",
		"iso9660", "overlay"}
}

// fileSystem is the kind that the executable lies on, found without asking it anything; empty where that cannot be said, as for a
// mount that the process itself does not see.
func fileSystem(p attest.Process) (string, error) {
	var s unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, procPath(p, "exe"), unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_INO|unix.STATX_MNT_ID, &s)
	if err != nil {
		return "", fmt.Errorf("look at executable: %w", err)
	}
	if s.Mask&unix.STATX_MNT_ID == 0 { // before Linux 5.8
		return "", nil
	}
	mounts, err := os.ReadFile(procPath(p, "mountinfo"))
	if err != nil {
		return "", fmt.Errorf("read mounts: %w", err)
	}
	return kindOf(string(mounts), s.Mnt_id), nil
}

// kindOf finds the file system of a mount in mountinfo: its number is the first field, the kind stands after the lone dash.
func kindOf(mounts string, id uint64) string {
	want := strconv.FormatUint(id, 10)
	for line := range strings.Lines(mounts) {
		if number, rest, _ := strings.Cut(line, " "); number == want {
			_, rest, _ = strings.Cut(rest, " - ")
			kind, _, _ := strings.Cut(rest, " ")
			return kind
		}
	}
	return ""
}

// sameUsers says whether a process is in the agent's user namespace. Elsewhere an overlay may have been laid by the user himself,
// over files that he serves.
func sameUsers(p attest.Process) bool {
	ours, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		return false
	}
	theirs, err := os.Readlink(procPath(p, "ns/user"))
	return err == nil && ours == theirs
}

func versionOf(f *os.File) (version, error) {
	var s unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &s); err != nil {
		return version{}, fmt.Errorf("look at executable: %w", err)
	}
	return version{device: s.Dev, inode: s.Ino, size: s.Size, changed: time.Unix(s.Ctim.Unix())}, nil
}

// hash reads the file through, no further than its size, and refuses one that changes meanwhile.
func hash(ctx context.Context, f *os.File, v version) (string, error) {
	sum, buf := sha256.New(), make([]byte, 256<<10)
	for left := v.size; left > 0; {
		if err := ctx.Err(); err != nil {
			return "", late(err)
		}
		n, err := f.Read(buf[:min(left, int64(len(buf)))])
		sum.Write(buf[:n])
		left -= int64(n)
		if err != nil && !(errors.Is(err, io.EOF) && left == 0) {
			return "", fmt.Errorf("read executable: %w", err)
		}
	}
	now, err := versionOf(f)
	if err != nil {
		return "", err
	}
	if now != v {
		return "", errors.New("executable changed while it was read")
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
