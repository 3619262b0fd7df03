package policy

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-dev/writ/authz"
	"github.com/writ-dev/writ/internal/fault"
)

const (
	lookEvery = 100 * time.Millisecond
	// A folder that just changed is looked at again after this long, until it stands still, at most settleTries times.
	settle      = 10 * time.Millisecond
	settleTries = 5
	// A file may change twice within the clock tick of its file system: what is younger than this is read again.
	young = 2 * time.Second
	// A set whose tests found no time or no memory is tried again after this long.
	retryAfter = 30 * time.Second
)

// LiveConfig says which folder is followed.
type LiveConfig struct {
	Name       string // of the set, in metrics and records; empty: default
	Folder     string
	Files      fs.FS // instead of Folder, for a tree that is not on disk
	Config           // what its sets need
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Live is the newest good set of a folder, and answers 503 while there is none.
type Live struct {
	config     LiveConfig
	identities *identities
	checker    *reader // finds malformed requests while there is no set
	set        atomic.Pointer[Set]
	revision   *prometheus.GaugeVec
	failures   prometheus.Counter

	mu  sync.Mutex // guards err
	err error

	// Of the goroutine that looks.
	last  sighting
	tried string    // the digest that was last tried, or the error that kept it from being read
	again time.Time // when that may be tried once more; zero: it will not be better
}

// NewLive reads the folder once. A set that is broken is no error: Live denies, LastError says why, and Watch goes on looking.
func NewLive(ctx context.Context, c LiveConfig) (*Live, error) {
	if c.Name == "" {
		c.Name = "default"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Files == nil {
		c.Files = os.DirFS(c.Folder)
	}
	ids, err := newIdentities(c.Config)
	if err != nil {
		return nil, err
	}
	checker, err := newReader(nil, false, nil, ids)
	if err != nil {
		return nil, err
	}
	l := &Live{config: c, identities: ids, checker: checker}
	if err := l.measure(); err != nil {
		return nil, err
	}
	l.look(ctx)
	return l, nil
}

func (l *Live) measure() error {
	set := prometheus.Labels{"set": l.config.Name}
	l.revision = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "writ_policy_revision_info",
		Help: "1 for the live revision of a policy set.", ConstLabels: set}, []string{"revision"})
	l.failures = prometheus.NewCounter(prometheus.CounterOpts{Name: "writ_policy_reload_failures_total",
		Help: "Changes of a policy set that did not go live.", ConstLabels: set})
	if l.config.Registerer == nil {
		return nil
	}
	return errors.Join(l.config.Registerer.Register(l.revision), l.config.Registerer.Register(l.failures))
}

// Watch looks at the folder every 100 ms until ctx ends, and swaps in what is new and good.
func (l *Live) Watch(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			l.look(ctx)
		}
	}
}

// look loads what changed.
func (l *Live) look(ctx context.Context) {
	now, err := sight(l.config.Files)
	due := !l.again.IsZero() && time.Now().After(l.again)
	if err == nil && l.last != nil && now.equal(l.last) && !now.young(time.Now()) && !due {
		return
	}
	if !now.equal(l.last) {
		l.settle(now)
	}
	s, err := take(ctx, l.config.Files, l.config.bounds())
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		if _, named := os.ReadDir(l.config.Folder); l.config.Folder != "" && named != nil {
			err = named // which of all folders
		}
		l.last = nil
		l.fail(ctx, err.Error(), bad(err))
		return
	}
	l.last = s.sighting
	if s.digest == l.tried && !due {
		return
	}
	l.again = time.Time{}
	set, err := load(ctx, s, l.identities)
	if errors.Is(err, errMemory) || errors.Is(err, errTime) || errors.Is(err, context.DeadlineExceeded) {
		l.again = time.Now().Add(retryAfter) // others may have had the machine
	}
	switch {
	case ctx.Err() != nil:
	case err != nil:
		l.fail(ctx, s.digest, err)
	default:
		l.swap(ctx, s.digest, set)
	}
}

// settle waits while a folder is being written.
func (l *Live) settle(now sighting) {
	for range settleTries {
		time.Sleep(settle)
		next, err := sight(l.config.Files)
		if err == nil && next.equal(now) {
			return
		}
		now = next
	}
}

func (l *Live) fail(ctx context.Context, tried string, err error) {
	if tried == l.tried {
		return
	}
	l.tried = tried
	l.failures.Inc()
	l.config.Log.ErrorContext(ctx, "policy set refused", "policy_set", l.config.Name, "revision", tried, "err", err)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

func (l *Live) swap(ctx context.Context, digest string, set *Set) {
	l.tried = digest
	if before := l.set.Load(); before != nil {
		before.gate.resize(set.manifest.places()) // its requests still hold places
		set.gate = before.gate
		l.revision.DeleteLabelValues(before.revision)
	}
	l.set.Store(set)
	l.revision.WithLabelValues(set.revision).Set(1)
	l.config.Log.InfoContext(ctx, "policy set live", "policy_set", l.config.Name, "revision", set.revision)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = nil
}

// Decide implements authz.Decider. Another set's name than its own has no set.
func (l *Live) Decide(ctx context.Context, set string, request []byte) authz.Decision {
	g := look(request)
	if set == "" || set == l.config.Name {
		return l.decide(ctx, request, g)
	}
	if _, err := l.checker.attributes(request); err != nil {
		return malformed(err)
	}
	d := authz.Fail(authz.NoSet, "there is no policy set of that name")
	d.Request = g.Request
	return d
}

// decide gives the live set's decision about a request and its glance.
func (l *Live) decide(ctx context.Context, request []byte, g *glance) (d authz.Decision) {
	if set := l.set.Load(); set != nil {
		d = set.decide(ctx, request, g)
	} else if _, err := l.checker.attributes(request); err != nil {
		d = malformed(err)
	} else {
		d = authz.Fail(authz.NoPolicy, string(fault.NoPolicy)+": no policy set is live")
		d.Request = g.Request
	}
	d.Set = l.config.Name
	return d
}

// Revision is the live set's, empty while there is none.
func (l *Live) Revision() string {
	if set := l.set.Load(); set != nil {
		return set.revision
	}
	return ""
}

// LastError says why the folder as it stands is not what is live; nil when it is.
func (l *Live) LastError() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
