package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/writ-dev/writ/internal/fault"
)

// jwtFormer is a key that has been replaced. It stays active on record for the grace, for what was drafted with it.
type jwtFormer struct {
	*jwtSigner
	at time.Time // when it becomes old
}

// find takes up this server's keys where the last process left them, and prepares one where there is none.
func (a *JWTAuthority) find(ctx context.Context) error {
	all := a.all()
	for _, k := range all {
		if k.Server != a.config.Server || k.State != StateActive && k.State != StatePrepared {
			continue
		}
		s, err := a.open(ctx, k)
		switch {
		case err != nil:
			return err
		case s != nil && k.State == StateActive && a.active == nil:
			a.active = s
		case s != nil && k.State == StatePrepared && a.next == nil:
			a.next = s
		case k.State == StatePrepared: // it never signed
			k.State = StateRemoved
			err = a.record(ctx, k)
		default:
			err = a.retire(ctx, k, k.KeyName, k.NotAfter)
		}
		if err != nil {
			return err
		}
	}
	if a.active != nil || a.next != nil {
		return nil
	}
	if err := a.prepare(ctx); err != nil || len(all) > 0 {
		return err
	}
	return a.activate(ctx)
}

// open loads the key of a record; none, without an error, where it ended or is gone: a JWT key is easily replaced. What it signed
// before is not known, so its last token may end as late as it does.
func (a *JWTAuthority) open(ctx context.Context, k jwtKnown) (*jwtSigner, error) {
	if k.KeyName == "" || !k.NotAfter.After(a.config.Now()) {
		return nil, nil
	}
	key, err := a.config.Keys.Load(ctx, k.KeyName)
	if fault.Is(err, fault.Invalid) { // others may have read it: to go on quietly would leave it trusted
		return nil, err
	}
	if err == nil {
		public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
		if !ok || !public.Equal(k.public) {
			err = fmt.Errorf("key %s is another", k.KeyName)
		}
	}
	if err != nil {
		a.config.Log.WarnContext(ctx, "JWT key cannot be used, a new one takes its place", "authority_id", k.ID, "err", err)
		return nil, nil
	}
	s, err := newJWTSigner(k, key, k.KeyName)
	if err != nil {
		return nil, err
	}
	s.last.Store(k.NotAfter.Unix())
	return s, nil
}

func newJWTSigner(k jwtKnown, key crypto.Signer, keyName string) (*jwtSigner, error) {
	algorithm, err := jwtAlgorithmOf(key.Public())
	if err != nil {
		return nil, err
	}
	header := fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":"JWT"}`, algorithm.name, k.ID) // nothing else: some clients refuse what they do not know
	return &jwtSigner{id: k.ID, key: key, keyName: keyName, algorithm: algorithm, since: k.NotBefore, notAfter: k.NotAfter,
		header: base64.RawURLEncoding.EncodeToString([]byte(header)) + "."}, nil
}

// prepare makes a key and puts it into the bundle. It signs nothing yet.
func (a *JWTAuthority) prepare(ctx context.Context) error {
	keyName := "jwt-" + hex.EncodeToString(randomBytes(8))
	key, err := a.config.Keys.Create(ctx, keyName)
	if err != nil {
		return err
	}
	k, err := a.opening(key, keyName)
	var next *jwtSigner
	if err == nil {
		next, err = newJWTSigner(k, key, keyName)
	}
	if err == nil {
		err = a.record(ctx, k)
	}
	if err != nil { // not with ctx, which may be what ended; a key that stays behind is never used
		if gone := a.config.Keys.Remove(context.WithoutCancel(ctx), keyName); gone != nil {
			a.config.Log.WarnContext(ctx, "unused key stays in the keystore", "err", gone)
		}
		return err
	}
	a.mu.Lock()
	a.next, a.acked = next, ""
	a.mu.Unlock()
	a.config.Log.InfoContext(ctx, "JWT key prepared", "authority_id", k.ID, "not_after", k.NotAfter)
	return nil
}

// opening is the record of a new key.
func (a *JWTAuthority) opening(key crypto.Signer, keyName string) (jwtKnown, error) {
	id, err := jwtKeyID(key.Public())
	if err != nil {
		return jwtKnown{}, err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return jwtKnown{}, err
	}
	now := a.config.Now().Truncate(time.Second).UTC()
	r := AuthorityRecord{ID: id, Server: a.config.Server, Use: UseJWT, State: StatePrepared, Certificate: der, NotBefore: now,
		NotAfter: now.Add(a.config.KeyTTL)}
	if a.config.Keys.Lasting() {
		r.KeyName = keyName
	}
	return jwtKnown{AuthorityRecord: r, public: key.Public()}, nil
}

// activate lets the prepared key sign, once that is on record; the one before goes on with what it drafted.
func (a *JWTAuthority) activate(ctx context.Context) error {
	a.mu.RLock()
	next, k := a.next, a.known[a.next.id]
	a.mu.RUnlock()
	if k.State != StatePrepared { // somebody has revoked it
		a.mu.Lock()
		defer a.mu.Unlock()
		a.next = nil
		return nil
	}
	k.State = StateActive
	if err := a.record(ctx, k); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.active != nil {
		a.former = append(a.former, jwtFormer{a.active, a.config.Now().Add(grace)})
	}
	a.active, a.next = next, nil
	a.config.Log.InfoContext(ctx, "JWT key signs", "authority_id", k.ID, "not_after", k.NotAfter)
	return nil
}

// retire records that a key signs no more, and until when its tokens may live, and destroys it. Its public half stays in the bundle
// until then.
func (a *JWTAuthority) retire(ctx context.Context, k jwtKnown, keyName string, last time.Time) error {
	k.State = StateOld
	k.NotAfter = earlier(k.NotAfter, last)
	if err := a.record(ctx, k); err != nil {
		return err
	}
	if keyName == "" {
		return nil
	}
	if err := a.config.Keys.Remove(ctx, keyName); err != nil {
		a.config.Log.WarnContext(ctx, "key of an old JWT authority stays in the keystore", "authority_id", k.ID, "err", err)
	}
	return nil
}

// current gives the key that signs; nil where none may, or where its record says that it no longer does.
func (a *JWTAuthority) current() *jwtSigner {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.active == nil || a.known[a.active.id].State != StateActive {
		return nil
	}
	return a.active
}

// Waiting gives the ID of a key that is in the Bundle and waits for the agents to hold it; empty where none does.
func (a *JWTAuthority) Waiting() string {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.next == nil || a.next.id == a.acked {
		return ""
	}
	return a.next.id
}

// Acknowledge says that every connected agent of this server holds a key. With several servers that says nothing about the others'
// agents: then a key waits for two refresh hints.
func (a *JWTAuthority) Acknowledge(id string) {
	a.mu.Lock()
	a.acked = id
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Run prepares, activates, retires and removes keys as it is time for each, until ctx ends. What fails is tried again. Run is
// called once.
func (a *JWTAuthority) Run(ctx context.Context) error {
	jitter, retry := newJitter(), firstRetry
	for {
		wait := a.untilNext(jitter)
		if err := a.turn(ctx, jitter); err == nil {
			wait, retry = a.untilNext(jitter), firstRetry
		} else if ctx.Err() == nil {
			a.config.Log.ErrorContext(ctx, "JWT keys not renewed", "err", err)
			wait, retry = retry, min(2*retry, longestWait)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-a.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// turn does what is due now.
func (a *JWTAuthority) turn(ctx context.Context, jitter float64) error {
	now := a.config.Now()
	a.dropEnded(now)
	a.mu.RLock()
	active, next := a.active, a.next
	a.mu.RUnlock()
	if next == nil && (active == nil || !now.Before(a.renewAt(active, jitter))) {
		if err := a.prepare(ctx); err != nil {
			return err
		}
	}
	if a.ripe(now) {
		if err := a.activate(ctx); err != nil {
			return err
		}
	}
	if err := a.retireFormer(ctx, now); err != nil {
		return err
	}
	return a.removeEnded(ctx, now)
}

// dropEnded lets go of an active key whose time is over, or which somebody else has taken out of service.
func (a *JWTAuthority) dropEnded(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.active != nil && (!a.active.notAfter.After(now) || a.known[a.active.id].State != StateActive) {
		a.former = append(a.former, jwtFormer{a.active, now})
		a.active = nil
	}
}

// renewAt is about half life.
func (a *JWTAuthority) renewAt(s *jwtSigner, jitter float64) time.Time {
	return s.since.Add(a.config.KeyTTL/2 + time.Duration(jitter*float64(a.config.KeyTTL)))
}

// ripe says whether the prepared key may sign: everybody read the bundle twice over, or every agent said that it holds it and caches
// elsewhere had their time. Where no key signs, nobody waits for those caches.
func (a *JWTAuthority) ripe(now time.Time) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.next == nil {
		return false
	}
	published := now.Sub(a.next.since)
	if published >= 2*a.config.Hint {
		return true
	}
	for _, k := range a.known {
		if k.Server != a.config.Server && k.inBundle(now) {
			return false
		}
	}
	return a.acked == a.next.id && (a.active == nil || published >= a.config.Settle)
}

// retireFormer marks those old whose grace is over.
func (a *JWTAuthority) retireFormer(ctx context.Context, now time.Time) error {
	for {
		a.mu.RLock()
		due := len(a.former) > 0 && !a.former[0].at.After(now)
		var f jwtFormer
		var k jwtKnown
		if due {
			f, k = a.former[0], a.known[a.former[0].id]
		}
		a.mu.RUnlock()
		if !due {
			return nil
		}
		if k.State == StateActive {
			last := time.Unix(max(f.last.Load(), now.Unix()), 0).UTC()
			if err := a.retire(ctx, k, f.keyName, last); err != nil {
				return err
			}
		}
		a.mu.Lock()
		a.former = a.former[1:]
		a.mu.Unlock()
	}
}

// removeEnded takes keys out of the bundle whose last token has ended, whichever server they were: one that is gone does not.
func (a *JWTAuthority) removeEnded(ctx context.Context, now time.Time) error {
	for _, k := range a.all() {
		if k.State == StateRevoked || k.State == StateRemoved || k.inBundle(now) {
			continue
		}
		k.State = StateRemoved
		if err := a.record(ctx, k); err != nil {
			return err
		}
		a.config.Log.InfoContext(ctx, "JWT key removed", "authority_id", k.ID)
	}
	return nil
}

// untilNext is when Run has to look again.
func (a *JWTAuthority) untilNext(jitter float64) time.Duration {
	now := a.config.Now()
	a.mu.RLock()
	defer a.mu.RUnlock()
	wait := longestWait
	due := func(at time.Time) { wait = min(wait, at.Sub(now)) }
	if a.active != nil {
		due(a.active.notAfter)
		if a.next == nil {
			due(a.renewAt(a.active, jitter))
		}
	}
	if a.next != nil {
		due(a.next.since.Add(2 * a.config.Hint))
		if settled := a.next.since.Add(a.config.Settle); a.acked == a.next.id && settled.After(now) {
			due(settled)
		}
	}
	for _, f := range a.former {
		due(f.at)
	}
	for _, k := range a.known {
		if k.inBundle(now) {
			due(k.NotAfter.Add(jwtSlack))
		}
	}
	return max(wait, 10*time.Millisecond)
}
