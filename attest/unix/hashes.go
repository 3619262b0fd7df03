package unix

import (
	"sync"
	"time"
)

// maxHashes bounds how many are remembered.
const maxHashes = 4096

// settled is how old a file's last change must be before its hash is remembered: file systems count time in ticks, and a second
// change within one tick would not show.
const settled = 2 * time.Second

// version names one content of one file.
type version struct {
	device, inode uint64
	size          int64
	changed       time.Time // ctime, which nobody can set back
}

// hashes remembers what was hashed. The oldest is forgotten first.
type hashes struct {
	mu    sync.Mutex
	sums  map[version]string
	order []version
}

func (h *hashes) get(v version) (string, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	sum, ok := h.sums[v]
	return sum, ok
}

func (h *hashes) put(v version, sum string, now time.Time) {
	if now.Sub(v.changed) < settled {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.sums[v]; ok {
		return
	}
	if len(h.order) == maxHashes {
		delete(h.sums, h.order[0])
		h.order = h.order[1:]
	}
	h.sums[v] = sum
	h.order = append(h.order, v)
}
