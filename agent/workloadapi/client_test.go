package workloadapi_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	client "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-dev/writ/agent/agenttest"
)

// denials counts what go-spiffe says of denials.
type denials struct {
	t     *testing.T
	count atomic.Int32
}

func (d *denials) say(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	if strings.Contains(line, "PermissionDenied") && strings.Contains(line, "no identity issued") {
		d.count.Add(1)
	}
	d.t.Log("go-spiffe: " + line)
}

func (d *denials) Debugf(format string, args ...any) { d.say(format, args...) }
func (d *denials) Infof(format string, args ...any)  { d.say(format, args...) }
func (d *denials) Warnf(format string, args ...any)  { d.say(format, args...) }
func (d *denials) Errorf(format string, args ...any) { d.say(format, args...) }

// soon retries without go-spiffe's own back-off of seconds.
type soon struct{}

func (soon) NewBackoff() client.Backoff { return soon{} }
func (soon) Next() time.Duration        { return 50 * time.Millisecond }
func (soon) Reset()                     {}

// go-spiffe's source, which nearly every Go workload uses, through a life of a workload.
func TestWEP_02_WEP_09_WEP_14_INT_01_GoSpiffeLivesThrough(t *testing.T) {
	t.Parallel() // it waits
	n := started(t)
	said := &denials{t: t}
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	type made struct {
		source *client.X509Source
		err    error
	}
	making := make(chan made, 1)
	go func() {
		source, err := client.NewX509Source(ctx, client.WithClientOptions(client.WithAddr("unix://"+n.path), client.WithLogger(said),
			client.WithBackoffStrategy(soon{})))
		making <- made{source, err}
	}()
	agenttest.Await(t, "a denial before there is an entry", func() bool { return said.count.Load() > 0 })

	short := entry("web")
	short.Ttl = durationpb.New(5 * time.Second)
	n.server.Apply(short)
	m := <-making
	if m.err != nil {
		t.Fatal(m.err)
	}
	defer func() { _ = m.source.Close() }()
	held := func() *x509svid.SVID {
		t.Helper()
		s, err := m.source.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	other := func(than *x509svid.SVID) func() bool {
		return func() bool { return !bytes.Equal(held().Certificates[0].Raw, than.Certificates[0].Raw) }
	}
	first := held()
	if first.ID.String() != "spiffe://example.org/web" {
		t.Errorf("it is %s", first.ID)
	}
	if b, err := m.source.GetX509BundleForTrustDomain(first.ID.TrustDomain()); err != nil || !b.HasX509Authority(n.server.Root) {
		t.Errorf("its bundle: %v, %v", b, err)
	}
	agenttest.Await(t, "the rotation", other(first))

	n.server.Apply(entry("web")) // for an hour
	agenttest.Await(t, "the longer life", func() bool { return time.Until(held().Certificates[0].NotAfter) > 10*time.Minute })

	before, denied := held(), said.count.Load()
	n.server.Remove("web")
	agenttest.Await(t, "the withdrawal", func() bool { return said.count.Load() > denied })
	if other(before)() {
		t.Error("it lost what it held")
	}
	n.server.Apply(entry("web"))
	agenttest.Await(t, "the entry's return", other(before))

	before = held()
	n.stop()
	n.start()
	agenttest.Await(t, "another SVID after a restart of the agent", other(before))
}
