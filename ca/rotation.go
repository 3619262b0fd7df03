package ca

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/writ-dev/writ/internal/fault"
)

// grace is how long a replaced issuing certificate stays active on record, for what was drafted with it and is being recorded:
// the store takes records of active authorities only.
const grace = time.Minute

// The waits of Run: between two looks at the clock, which may have been set or have stood still while the machine slept, and
// between a failed renewal and the next try.
const longestWait, firstRetry = time.Minute, time.Second

// retiring is an issuing certificate that has been replaced.
type retiring struct {
	*issuer
	at time.Time // when it becomes old
}

// findRoot gives the active root with its key, or makes a root if there never was one, if it ended, or if its key ended with
// the process. A lasting key that is not there is no reason to make a new root: nobody would trust it before the next bundle.
func (a *Authority) findRoot(ctx context.Context) (*issuer, error) {
	for _, k := range a.mine(TierRoot, false) {
		if k.State != StateActive {
			continue
		}
		if k.Server != a.config.Server && k.KeyName == "" {
			return nil, fault.New(fault.Unavailable, nil, "the root's key is with another server").
				Because("server "+k.Server+" holds the key of root "+k.ID).With(fault.AuthorityMissing, "")
		}
		if k.KeyName == "" || !k.NotAfter.After(a.config.Now()) {
			a.config.Log.WarnContext(ctx, "root ended with its key, a new one takes its place", "authority_id", k.ID)
			if err := a.retire(ctx, k, k.KeyName); err != nil {
				return nil, err
			}
			continue
		}
		i, err := a.open(ctx, k)
		if fault.Is(err, fault.NotFound) {
			return nil, fault.New(fault.Unavailable, err, "the root's key is missing").
				Because("root "+k.ID+" was made by server "+k.Server+" and its key is named "+k.KeyName).
				With(fault.AuthorityMissing, "restore the key from the backup, or set ca.keys to what it was")
		}
		return i, err
	}
	return a.make(ctx, rootProfile(), TierRoot, a.config.RootTTL)
}

// findIssuing gives this server's newest issuing certificate under the root, or makes one. All others of this server become old:
// nothing drafted with them can be under way.
func (a *Authority) findIssuing(ctx context.Context) (*issuer, error) {
	var found *issuer
	for _, k := range a.mine(TierIssuing, true) {
		if k.State != StateActive {
			continue
		}
		usable := k.KeyName != "" && k.NotAfter.After(a.config.Now()) && k.cert.CheckSignatureFrom(a.root.cert) == nil
		if found == nil && usable {
			i, err := a.open(ctx, k)
			if err == nil {
				found = i
				continue
			}
			if fault.Is(err, fault.Invalid) { // others may have read it: to go on quietly would leave it trusted
				return nil, err
			}
			a.config.Log.WarnContext(ctx, "issuing certificate cannot be used, a new one takes its place",
				"authority_id", k.ID, "err", err)
		}
		if err := a.retire(ctx, k, k.KeyName); err != nil {
			return nil, err
		}
	}
	if found != nil {
		return found, nil
	}
	return a.make(ctx, issuingProfile(), TierIssuing, a.config.TTL)
}

// mine lists what is on record of a tier, the newest first.
func (a *Authority) mine(tier string, onlyThisServer bool) []known {
	a.mu.RLock()
	defer a.mu.RUnlock()
	var list []known
	for _, k := range sorted(a.known) {
		if k.Tier == tier && (!onlyThisServer || k.Server == a.config.Server) {
			list = append(list, k)
		}
	}
	return list
}

// open loads the key of a recorded authority.
func (a *Authority) open(ctx context.Context, k known) (*issuer, error) {
	key, err := a.config.Keys.Load(ctx, k.KeyName)
	if err != nil {
		return nil, err
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(k.cert.PublicKey) {
		return nil, fault.New(fault.Internal, nil, "key "+k.KeyName+" is not that of authority "+k.ID).With(fault.AuthorityMissing, "")
	}
	i, _, err := newIssuer(k.Tier, k.KeyName, key)
	if err != nil {
		return nil, fmt.Errorf("open authority %s: %w", k.ID, err)
	}
	i.cert, i.name = k.cert, k.cert.RawSubject
	return i, nil
}

// retire records that an authority signs no more, and destroys an issuing certificate's key. Roots' keys stay: to destroy one is
// for a person to decide.
func (a *Authority) retire(ctx context.Context, k known, keyName string) error {
	k.State = StateOld
	if err := a.record(ctx, k); err != nil {
		return err
	}
	if k.Tier != TierIssuing || keyName == "" {
		return nil
	}
	if err := a.config.Keys.Remove(ctx, keyName); err != nil {
		a.config.Log.WarnContext(ctx, "key of an old authority stays in the keystore", "authority_id", k.ID, "err", err)
	}
	return nil
}

// Run renews the issuing certificate at half its life, give or take a twentieth, until ctx ends. A renewal that fails is tried
// again, with the present certificate signing on. Run is called once.
func (a *Authority) Run(ctx context.Context) error {
	jitter, retry := newJitter(), firstRetry
	for {
		wait := longestWait
		switch renewed, err := a.turn(ctx, jitter); {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			a.config.Log.ErrorContext(ctx, "issuing certificate not renewed", "authority_id", a.ID(), "err", err)
			wait, retry = retry, min(2*retry, longestWait)
		case renewed:
			jitter = newJitter()
			fallthrough
		default:
			retry = firstRetry
			wait = a.untilNext(jitter)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// newJitter is a share of a certificate's life.
func newJitter() float64 { return (rand.Float64() - 0.5) / 10 }

// turn does what is due now.
func (a *Authority) turn(ctx context.Context, jitter float64) (renewed bool, err error) {
	if !a.config.Now().Before(a.renewAt(jitter)) {
		if err := a.renew(ctx); err != nil {
			return false, err
		}
		renewed = true
	}
	return renewed, a.retireFormer(ctx)
}

// renewAt is about half life. A certificate that ends with the root has nothing to gain from renewal.
func (a *Authority) renewAt(jitter float64) time.Time {
	cert := a.current().cert
	if !cert.NotAfter.Before(a.root.cert.NotAfter) {
		return cert.NotAfter
	}
	life := cert.NotAfter.Sub(cert.NotBefore)
	return cert.NotBefore.Add(life/2 + time.Duration(jitter*float64(life)))
}

// untilNext is when Run has to look again.
func (a *Authority) untilNext(jitter float64) time.Duration {
	now := a.config.Now()
	wait := min(longestWait, a.renewAt(jitter).Sub(now))
	a.mu.RLock()
	defer a.mu.RUnlock()
	if len(a.former) > 0 {
		wait = min(wait, a.former[0].at.Sub(now))
	}
	return max(wait, 10*time.Millisecond)
}

// renew puts a new issuing certificate in the place of the present one, which goes on signing what was drafted with it.
func (a *Authority) renew(ctx context.Context) error {
	if !a.root.cert.NotAfter.After(a.config.Now()) {
		return errors.New("the root has ended")
	}
	next, err := a.make(ctx, issuingProfile(), TierIssuing, a.config.TTL)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.former = append(a.former, retiring{issuer: a.active, at: a.config.Now().Add(grace)})
	a.active = next
	return nil
}

// retireFormer marks those old whose grace is over.
func (a *Authority) retireFormer(ctx context.Context) error {
	for {
		f, k, due := a.nextFormer()
		if !due {
			return nil
		}
		if k.State == StateActive { // unless somebody has tainted or revoked it meanwhile
			if err := a.retire(ctx, k, f.keyName); err != nil {
				return err
			}
		}
		a.mu.Lock()
		a.former = a.former[1:]
		a.mu.Unlock()
	}
}

func (a *Authority) nextFormer() (f retiring, k known, due bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if len(a.former) == 0 || a.former[0].at.After(a.config.Now()) {
		return retiring{}, known{}, false
	}
	return a.former[0], a.known[a.former[0].id], true
}
