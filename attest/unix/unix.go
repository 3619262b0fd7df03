// Package unix tells what the kernel knows of a process: its user, its groups and its executable. Start with Attestor.Attest.
//
// What it tells of an executable does not tell one process of a user from another: whoever runs as that user can make a process with
// this executable do other things (LD_PRELOAD, ptrace, a user namespace). An entry should name the user too.
package unix

import (
	"context"
	"log/slog"
	"os/user"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/writ-dev/writ/attest"
)

// Method is the method's name, which stands before each of its selectors.
const Method = "unix"

// Config says what an Attestor needs. The zero value works.
type Config struct {
	WantHash func() bool   // says whether an entry of this node asks for unix:sha256; nil: none does
	MaxHash  int64         // bytes; a larger executable has no sha256; 0: 512 MiB
	Deadline time.Duration // for looking at one executable; 0: 10 s
	Log      *slog.Logger
	Now      func() time.Time
}

// Attestor finds the unix selectors of a process. It implements attest.WorkloadAttestor.
type Attestor struct {
	config Config
	turns  turns
	hashes hashes
}

// New gives an Attestor.
func New(c Config) *Attestor {
	if c.WantHash == nil {
		c.WantHash = func() bool { return false }
	}
	if c.MaxHash <= 0 {
		c.MaxHash = 512 << 20
	}
	if c.Deadline <= 0 {
		c.Deadline = 10 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Attestor{config: c, turns: turns{of: map[uint32]*turn{}}, hashes: hashes{sums: map[version]string{}}}
}

// Attest gives uid, gid, user, group and supplementary_gid; of the executable its path, or container_path where that path means
// another file to the agent, and its sha256 if an entry asks for one. An executable that was deleted, or never had a name, has
// neither path. What is not the same process any more at the end gets nothing.
func (a *Attestor) Attest(ctx context.Context, p attest.Peer) ([]attest.Selector, error) {
	found := owner(p.Process())
	more, err := a.look(ctx, p.Process())
	if gone := p.Verify(); gone != nil { // before err: what was read may be another's
		return nil, gone
	}
	if err != nil {
		return nil, err
	}
	return attest.Of(Method, append(found, more...)), nil
}

// overflow is what the kernel shows for a user or group that has no number here; it names nobody.
const overflow = 65534

func owner(p attest.Process) []attest.KeyValue {
	var out []attest.KeyValue
	if p.UID != overflow {
		uid := strconv.FormatUint(uint64(p.UID), 10)
		out = append(out, attest.KeyValue{Key: "uid", Value: uid})
		if u, err := user.LookupId(uid); err == nil && readable(u.Username) {
			out = append(out, attest.KeyValue{Key: "user", Value: u.Username})
		}
	}
	if p.GID != overflow {
		gid := strconv.FormatUint(uint64(p.GID), 10)
		out = append(out, attest.KeyValue{Key: "gid", Value: gid})
		if g, err := user.LookupGroupId(gid); err == nil && readable(g.Name) {
			out = append(out, attest.KeyValue{Key: "group", Value: g.Name})
		}
	}
	return out
}

// readable says whether a value can be a selector's.
func readable(s string) bool {
	return s != "" && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f })
}
