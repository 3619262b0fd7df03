package policy

import (
	"io/fs"
	"syscall"
	"time"
)

// changed is when a file's content or its times were last set.
func changed(info fs.FileInfo) time.Time {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(s.Ctim.Unix())
	}
	return info.ModTime()
}
