package unix

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
	"golang.org/x/sys/unix"
)

// look reads /proc/PID. That it was this process's is for the caller to check afterwards.
func (a *Attestor) look(ctx context.Context, p attest.Process) ([]attest.KeyValue, error) {
	out, err := groups(p)
	if err != nil {
		return nil, err
	}
	if p.Executable == (attest.FileID{}) { // an agent without privileges, and another user's process
		return out, nil
	}
	more, err := a.executable(ctx, p)
	return append(out, more...), err
}

func procPath(p attest.Process, name string) string {
	return "/proc/" + strconv.Itoa(int(p.PID)) + "/" + name
}

func groups(p attest.Process) ([]attest.KeyValue, error) {
	status, err := os.ReadFile(procPath(p, "status"))
	if err != nil {
		return nil, fmt.Errorf("read groups: %w", err)
	}
	var out []attest.KeyValue
	for line := range bytes.Lines(status) {
		list, ok := bytes.CutPrefix(line, []byte("Groups:"))
		if !ok {
			continue
		}
		for gid := range strings.FieldsSeq(string(list)) {
			if gid != strconv.Itoa(overflow) {
				out = append(out, attest.KeyValue{Key: "supplementary_gid", Value: gid})
			}
		}
		return out, nil
	}
	return nil, errors.New("read groups: status has none")
}

// executable looks at the executable, one at a time for each user and under a deadline: its file system may be one that the user
// serves, and that never answers. A look that is stuck keeps its user's turn, and so does not become two.
func (a *Attestor) executable(ctx context.Context, p attest.Process) ([]attest.KeyValue, error) {
	ctx, cancel := context.WithTimeout(ctx, a.config.Deadline)
	defer cancel()
	if err := a.turns.take(ctx, p.UID); err != nil {
		return nil, late(err)
	}
	type looked struct {
		found []attest.KeyValue
		err   error
	}
	result := make(chan looked, 1)
	go func() { // ends with the look; nobody waits longer than the deadline
		defer a.turns.give(p.UID)
		found := path(p)
		sum, err := a.sha256(ctx, p)
		if sum != "" {
			found = append(found, attest.KeyValue{Key: "sha256", Value: sum})
		}
		result <- looked{found, err}
	}()
	select {
	case r := <-result:
		return r.found, r.err
	case <-ctx.Done():
		return nil, late(ctx.Err())
	}
}

func late(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	return fault.New(fault.Unavailable, err, "executable could not be read in time")
}

// path is the selector of an executable's path, if it has one. A process may live where its path leads elsewhere: only a path that
// leads the agent to the same file is path.
func path(p attest.Process) []attest.KeyValue {
	if !strings.HasPrefix(p.Path, "/") || strings.HasSuffix(p.Path, " (deleted)") || !readable(p.Path) {
		return nil
	}
	var s unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, p.Path, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_INO, &s)
	if err == nil && fileID(&s) == p.Executable {
		return []attest.KeyValue{{Key: "path", Value: p.Path}}
	}
	return []attest.KeyValue{{Key: "container_path", Value: p.Path}}
}

func fileID(s *unix.Statx_t) attest.FileID {
	return attest.FileID{Device: unix.Mkdev(s.Dev_major, s.Dev_minor), Inode: s.Ino}
}
