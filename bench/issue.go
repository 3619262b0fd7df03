package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"

	"github.com/writ-dev/writ/agent/member"
	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/api/registrationv1"
)

// callers is how many calls of Sign are under way at once.
const callers = 4

// issue measures what an X.509-SVID costs the server, from the node API's socket to the disk, beside a bare signature of the same kind.
func (b *bench) issue(ctx context.Context) error {
	d, err := b.newDomain(ctx)
	if err != nil {
		return err
	}
	defer d.server.stop()
	client, err := d.member(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	requests, err := d.signingRequests(ctx, 256)
	if err != nil {
		return err
	}
	if err := until(ctx, 10*time.Second, func() error { return sign(ctx, client, requests) }); err != nil { // the registry follows its store
		return err
	}
	sizes := []*batch{{size: 256, calls: 20}, {size: 16, calls: 120}, {size: 1, calls: 1000}}
	for _, s := range sizes { // once to warm up
		if _, _, err := s.round(ctx, d.server, client, requests); err != nil {
			return err
		}
	}
	var signing, checking []float64
	for range b.rounds {
		for _, s := range sizes { // the yardstick before each, since a shared machine's speed changes by the second
			sign, check, err := bare(4000)
			if err != nil {
				return err
			}
			cpu, rate, err := s.round(ctx, d.server, client, requests)
			if err != nil {
				return err
			}
			signing, checking = append(signing, sign), append(checking, check)
			s.cpu, s.rate, s.ratio, s.both = append(s.cpu, cpu), append(s.rate, rate), append(s.ratio, cpu/sign), append(s.both, cpu/(sign+check))
		}
	}
	rows := [][]string{{"a bare P-256 signature", spread(signing, "%.0f us"), "1", "", "", ""}, {"checking one", spread(checking, "%.0f us"), "", "", "", ""}}
	for _, s := range sizes {
		must := ""
		if s.size > 1 {
			must = "<= 120 us"
		}
		rows = append(rows, []string{fmt.Sprintf("an X.509-SVID, %d in a call", s.size), spread(s.cpu, "%.0f us"), spread(s.ratio, "%.1f"), spread(s.both, "%.1f"), spread(s.rate, "%.0f"), must})
	}
	table(fmt.Sprintf("issuing, %d calls at once", callers), []string{"what", "server CPU", "of a signature", "of signing and checking", "SVIDs/s", "must"}, rows)
	return nil
}

// batch is one size of calls.
type batch struct {
	size, calls            int
	cpu, rate, ratio, both []float64
}

// round makes the calls and gives the server's processor time for one SVID in microseconds, and SVIDs a second.
func (s *batch) round(ctx context.Context, server *daemon, client *member.Server, requests []*nodev1.SigningRequest) (cpu, rate float64, err error) {
	before, err := server.cpu()
	if err != nil {
		return 0, 0, err
	}
	begun := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(callers)
	for i := range s.calls {
		from := i * s.size % len(requests)
		g.Go(func() error { return sign(ctx, client, requests[from:from+s.size]) })
	}
	if err := g.Wait(); err != nil {
		return 0, 0, err
	}
	took := time.Since(begun)
	after, err := server.cpu()
	n := float64(s.size * s.calls)
	return float64((after - before).Microseconds()) / n, n / took.Seconds(), err
}

func sign(ctx context.Context, client *member.Server, requests []*nodev1.SigningRequest) error {
	answer, err := client.Sign(ctx, &nodev1.SignRequest{Requests: requests})
	if err != nil {
		return err
	}
	for _, r := range answer.Results {
		if r.Status != 0 {
			return errors.New(r.Message)
		}
	}
	return nil
}

// member is a node of the domain, with a connection that shows its agent SVID.
func (d *domain) member(ctx context.Context) (*member.Server, error) {
	folder, err := d.agentFiles("", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	if err := d.join(folder); err != nil {
		return nil, err
	}
	node, err := member.New(member.Config{TrustDomain: spiffeid.RequireTrustDomainFromString(benchDomain), DataDir: filepath.Join(folder, "agent"),
		Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	held, _ := node.Current()
	return node.Dial(node.Servers()[0], held)
}

// signingRequests applies entries and gives a request for each. Making the CSRs is the agent's cost, so it is done before.
func (d *domain) signingRequests(ctx context.Context, n int) (out []*nodev1.SigningRequest, err error) {
	var entries []*registrationv1.Entry
	for i := range n {
		e := entry(fmt.Sprintf("signed-%03d", i))
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
		out = append(out, &nodev1.SigningRequest{Entry: e.Name, SpiffeId: e.SpiffeId, Csr: csr})
	}
	return out, d.apply(ctx, entries...)
}

// bare gives the processor time in microseconds, over all cores, of one P-256 signature and of checking one: what no SVID can do
// without, since the key's holder proves itself by a signature of its own.
func bare(n int) (signing, checking float64, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return 0, 0, err
	}
	digest := sha256.Sum256([]byte("to be signed"))
	signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return 0, 0, err
	}
	signing, err = processorTime(n, func() error {
		_, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	checking, err = processorTime(n, func() error {
		if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], signature) {
			return errors.New("a signature does not verify")
		}
		return nil
	})
	return signing, checking, err
}

// processorTime is what one do costs this process, in microseconds.
func processorTime(n int, do func() error) (float64, error) {
	var before, after syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &before); err != nil {
		return 0, err
	}
	var g errgroup.Group
	for range runtime.NumCPU() {
		g.Go(func() error {
			for range n / runtime.NumCPU() {
				if err := do(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	used := func(r syscall.Rusage) int64 { return r.Utime.Nano() + r.Stime.Nano() }
	return float64(used(after)-used(before)) / 1000 / float64(n), err
}
