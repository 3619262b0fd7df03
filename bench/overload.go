package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// What a round of overload does, in this order.
const (
	peakCallers = 6 // so few that nobody is refused, and enough that the server never waits for them
	peakFor     = 3 * time.Second
	overload    = 3 // times the peak
	overFor     = 15 * time.Second
	restFor     = 3 * time.Second // at half the peak
	// bindings is how long the list is that the policy looks through: about 0.4 ms.
	bindings = 600
)

// scanning is a policy that looks through a list, so that a decision costs many times what refusing one does.
const scanning = `package envoy.authz

import input.attributes.request.http as http

default allow := false

allow if {
	some b in data.bindings
	b.principal == input.attributes.source.principal
	startswith(http.path, b.prefix)
}
`

// overloaded measures three times the load that the server can carry: server on one core, generator on the other.
func (b *bench) overloaded(ctx context.Context) error {
	policy, err := b.scanPolicy()
	if err != nil {
		return err
	}
	metrics, err := freePort()
	if err != nil {
		return err
	}
	agent, socket, server, err := b.decider(ctx, policy, metrics)
	defer server.stop()
	defer agent.stop()
	if err != nil {
		return err
	}
	if _, err := b.generate(ctx, socket, "closed", fmt.Sprint(peakCallers), "1s"); err != nil { // once to warm up
		return err
	}
	var found overloadResult
	for range b.rounds {
		if err := found.round(ctx, b, agent, socket, metrics); err != nil {
			return err
		}
	}
	found.report()
	return nil
}

// overloadResult is what the rounds found, an element for each: milliseconds, MiB, or a part of the peak.
type overloadResult struct {
	peak, goodput, p50, p99, refused50, refused99, late, memory, recovery, rest []float64
	refused, shed, unsent, errors                                               int
}

func (r *overloadResult) round(ctx context.Context, b *bench, agent *daemon, socket, metrics string) error {
	before, err := shedCount(ctx, metrics)
	if err != nil {
		return err
	}
	peak, err := b.generate(ctx, socket, "closed", fmt.Sprint(peakCallers), peakFor.String())
	if err != nil {
		return err
	}
	rate := peak[0].rate()
	got, err := b.generate(ctx, socket, "open", fmt.Sprint(overload*rate), overFor.String(), "open", fmt.Sprint(rate/2), restFor.String())
	if err != nil {
		return err
	}
	after, err := shedCount(ctx, metrics)
	if err != nil {
		return err
	}
	memory, err := agent.mostMemory()
	if err != nil {
		return err
	}
	over, rest := got[0], got[1]
	for _, v := range []struct {
		to    *[]float64
		value float64
	}{
		{&r.peak, rate}, {&r.goodput, over.rate() / rate}, {&r.p50, over.AcceptedP50 / 1000}, {&r.p99, over.AcceptedP99 / 1000},
		{&r.refused50, over.RefusedP50 / 1000}, {&r.refused99, over.RefusedP99 / 1000}, {&r.late, over.LateP99 / 1000},
		{&r.memory, memory}, {&r.recovery, rest.LastRefused / 1000}, {&r.rest, rest.AcceptedP99 / 1000},
	} {
		*v.to = append(*v.to, v.value)
	}
	r.refused += peak[0].Refused + over.Refused + rest.Refused
	r.shed += after - before
	r.unsent += over.Unsent + rest.Unsent
	r.errors += peak[0].Errors + over.Errors + rest.Errors
	return nil
}

func (r *overloadResult) report() {
	table(fmt.Sprintf("overload: %d times the peak for %s, a list of %d bindings, Unix socket, records off", overload, overFor, bindings),
		[]string{"", "median (least to most)", "must"}, [][]string{
			{fmt.Sprintf("peak, %d callers", peakCallers), spread(r.peak, "%.0f/s"), ""},
			{"accepted, of the peak", spread(r.goodput, "%.2f"), ">= 0.8"},
			{"accepted, p50", spread(r.p50, "%.1f ms"), ""},
			{"accepted, p99", spread(r.p99, "%.1f ms"), "<= 10 ms"},
			{"refused, p50", spread(r.refused50, "%.1f ms"), ""},
			{"refused, p99", spread(r.refused99, "%.1f ms"), "<= 5 ms"},
			{"the generator was late, p99, in all of these", spread(r.late, "%.1f ms"), ""},
			{"half the peak afterwards: the last one refused came after", spread(r.recovery, "%.0f ms"), "<= 2 s"},
			{"half the peak afterwards: accepted, p99", spread(r.rest, "%.1f ms"), ""},
			{"agent, most memory so far", spread(r.memory, "%.0f MiB"), ""},
			{"answers with 503; counted as shed; failed; not sent", fmt.Sprintf("%d; %d; %d; %d", r.refused, r.shed, r.errors, r.unsent), "equal; 0; 0"},
		})
}

// scanPolicy writes the policy with its list, whose last binding fits some requests.
func (b *bench) scanPolicy() (string, error) {
	folder, err := os.MkdirTemp(b.folder, "scan")
	if err != nil {
		return "", err
	}
	var list []map[string]string
	for i := range bindings - 1 {
		list = append(list, map[string]string{"principal": fmt.Sprintf("spiffe://%s/ns/team-%d/sa/web", benchDomain, i), "prefix": "/api/"})
	}
	list = append(list, map[string]string{"principal": "spiffe://" + benchDomain + "/ns/shop/sa/web", "prefix": "/api/"})
	data, err := json.Marshal(map[string]any{"bindings": list})
	return folder, errors.Join(err, os.WriteFile(filepath.Join(folder, "data.json"), data, 0o600),
		os.WriteFile(filepath.Join(folder, "authz.rego"), []byte(scanning), 0o600))
}

// generate runs flood on the first core.
func (b *bench) generate(ctx context.Context, socket string, phases ...string) ([]flooded, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "taskset", append([]string{"-c", "0", self, "flood", socket}, phases...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("flood: %w", err)
	}
	var got []flooded
	return got, json.Unmarshal(out, &got)
}

var shedLine = regexp.MustCompile(`(?m)^writ_decisions_total\{.*reason="shed".*\} (\d+)$`)

// shedCount is how many requests the agent says it shed.
func shedCount(ctx context.Context, metrics string) (int, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metrics+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err
	}
	m := shedLine.FindSubmatch(text)
	if m == nil {
		return 0, nil // none yet
	}
	return strconv.Atoi(string(m[1]))
}

// freePort gives an address that nobody listens at.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
