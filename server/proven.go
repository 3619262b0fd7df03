package server

import (
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/svid"
)

// mostProven bounds what is remembered: about a megabyte.
const mostProven = 10_000

// proven remembers agents' chains that verified. A call over an open connection verifies its agent again, since a connection outlives a
// certificate; with this it costs no signature until something that the verdict rests on is another.
type proven struct {
	mu    sync.Mutex
	known map[[sha256.Size]byte]proof // by what was verified; guarded by mu; begun anew when it is full
}

// proof is a verdict with the times between which it must be the same.
type proof struct {
	id          spiffeid.ID
	from, until time.Time
}

// verify is svid.Verify, asked once for the same certificates between two moments at which one of them begins or ends: nothing else
// can change what it says.
func (p *proven) verify(chain []*x509.Certificate, a svid.Anchors, now time.Time) (spiffeid.ID, error) {
	subject := digest(chain, a.Roots, a.Intermediates)
	p.mu.Lock()
	old, there := p.known[subject]
	p.mu.Unlock()
	if there && !now.Before(old.from) && now.Before(old.until) {
		return old.id, nil
	}
	id, err := svid.Verify(chain[0], chain[1:], a, now)
	if err != nil {
		return id, err
	}
	fresh := proof{id: id, from: now, until: now.Add(time.Hour)}
	for _, c := range slices.Concat(chain, a.Roots, a.Intermediates) {
		for _, change := range []time.Time{c.NotBefore, c.NotAfter} {
			if change.After(now) && change.Before(fresh.until) {
				fresh.until = change
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil || len(p.known) >= mostProven {
		p.known = map[[sha256.Size]byte]proof{}
	}
	p.known[subject] = fresh
	return id, nil
}

// digest is of certificates in their places: the same ones as anchors and as what a peer presents are two things.
func digest(lists ...[]*x509.Certificate) (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, list := range lists {
		for _, c := range list {
			one := sha256.Sum256(c.Raw)
			h.Write(one[:])
		}
		h.Write([]byte{0}) // ends a list
	}
	h.Sum(sum[:0])
	return sum
}
