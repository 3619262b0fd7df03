package peer

import (
	"slices"
	"sync"

	"github.com/writ-dev/writ/internal/fault"
)

// users bounds the open connections of each uid, so that no local user uses up the agent's descriptors or keeps others out.
type users struct {
	most int // connections of one uid

	mu   sync.Mutex // guards what follows, and answers and answered of every caller
	open map[uint32][]*caller
}

// admit counts a new connection, and gives the one that gives way to it where its user has too many. That is the oldest which
// never got an answer, else the oldest without a call under way that did; where there is none, the new one is refused.
func (u *users) admit(c *caller) (yields *caller, err error) {
	uid := c.Process().UID
	u.mu.Lock()
	defer u.mu.Unlock()
	open := u.open[uid]
	if len(open) >= u.most {
		i := slices.IndexFunc(open, func(o *caller) bool { return !o.answered })
		if i < 0 {
			i = slices.IndexFunc(open, func(o *caller) bool { return o.answers == 0 })
		}
		if i < 0 {
			return nil, fault.New(fault.Throttled, nil, "too many connections of this user are in use")
		}
		yields = open[i]
		open = slices.Delete(open, i, i+1)
	}
	u.open[uid] = append(open, c)
	return yields, nil
}

func (u *users) remove(c *caller) {
	uid := c.Process().UID
	u.mu.Lock()
	defer u.mu.Unlock()
	open := u.open[uid]
	if i := slices.Index(open, c); i >= 0 {
		open = slices.Delete(open, i, i+1)
	}
	if len(open) == 0 {
		delete(u.open, uid)
		return
	}
	u.open[uid] = open
}

func (u *users) hold(c *caller) {
	u.mu.Lock()
	defer u.mu.Unlock()
	c.answers++
	c.answered = true
}

func (u *users) release(c *caller) {
	u.mu.Lock()
	defer u.mu.Unlock()
	c.answers--
}
