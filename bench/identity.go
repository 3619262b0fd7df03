package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/api/registrationv1"
)

// identity measures the three figures of issuing.
func (b *bench) identity(ctx context.Context) error {
	d, err := b.newDomain(ctx)
	if err != nil {
		return err
	}
	defer d.server.stop()
	if err := d.apply(ctx, entry("warm")); err != nil {
		return err
	}
	fresh, err := b.freshAgents(ctx, d)
	if err != nil {
		return err
	}
	folder, err := d.agentFiles("", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := d.join(folder); err != nil {
		return err
	}
	agent, err := b.start(-1, b.writ, "agent", "run", "--config", filepath.Join(folder, "agent.yaml"))
	if err != nil {
		return err
	}
	defer agent.stop()
	socket := filepath.Join(folder, "agent.sock")
	warm, err := b.warmFetches(ctx, agent, socket, fetchOver)
	if err != nil {
		return err
	}
	tokens, err := b.warmFetches(ctx, agent, socket, fetchJWTOver)
	if err != nil {
		return err
	}
	pushed, err := b.pushes(ctx, d, socket)
	if err != nil {
		return err
	}
	table("identity", []string{"what", "n", "p50", "p99", "max", "must"}, [][]string{
		pushed.row("entry created -> SVID held by a watching workload", "p99 <= 250 ms"),
		fresh.row("fresh agent: `agent join`, `agent run`, first SVID", "<= 300 ms"),
		warm.latency.row("FetchX509SVID, warm, c=16", ""),
		tokens.latency.row("FetchJWTSVID, held, c=16", ""),
	})
	table("identity, processor", []string{"what", "agent CPU", "must"}, [][]string{
		{"FetchX509SVID, warm, per stream", warm.cpu.String(), "<= 150us"},
		{"FetchJWTSVID, held, per call", tokens.cpu.String(), "<= 150us"}})
	return nil
}

func entry(name string) *registrationv1.Entry {
	return &registrationv1.Entry{Name: name, SpiffeId: "spiffe://" + benchDomain + "/" + name, Any: true,
		Match: []string{fmt.Sprintf("unix:uid:%d", os.Getuid())}}
}

func (d *domain) apply(ctx context.Context, entries ...*registrationv1.Entry) error {
	conn, err := dial(d.admin)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = adminv1.NewAdminClient(conn).ApplyEntries(ctx, &adminv1.ApplyEntriesRequest{Owner: "bench", Entries: entries})
	return err
}

func dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// workloadContext carries the header that the Workload API asks for.
func workloadContext(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
}

// pushes creates entries one after the other and times each until a stream that was open all along brings its SVID.
func (b *bench) pushes(ctx context.Context, d *domain, socket string) (samples, error) {
	conn, err := dial(socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(workloadContext(ctx), &workload.X509SVIDRequest{})
	if err != nil {
		return nil, err
	}
	var out samples
	for i := range 99 { // with the one that is there, as many as a message has room for
		e := entry(fmt.Sprintf("e%03d", i))
		begun := time.Now()
		if err := d.apply(ctx, e); err != nil {
			return nil, err
		}
		for held := false; !held; {
			response, err := stream.Recv()
			if err != nil {
				return nil, err
			}
			for _, s := range response.Svids {
				held = held || s.SpiffeId == e.SpiffeId
			}
		}
		out = append(out, time.Since(begun))
	}
	return out, nil
}

// freshAgents times two processes, one that joins and one that runs, until a workload holds its first SVID.
func (b *bench) freshAgents(ctx context.Context, d *domain) (samples, error) {
	var out samples
	for range b.rounds * 2 {
		folder, err := d.agentFiles("", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		begun := time.Now()
		if err := d.join(folder); err != nil {
			return nil, err
		}
		agent, err := b.start(-1, b.writ, "agent", "run", "--config", filepath.Join(folder, "agent.yaml"))
		if err != nil {
			return nil, err
		}
		err = until(ctx, 10*time.Second, func() error { return fetch(ctx, filepath.Join(folder, "agent.sock"), fetchOver) })
		took := time.Since(begun)
		agent.stop()
		if err != nil {
			return nil, err
		}
		out = append(out, took)
	}
	return out, nil
}

func fetch(ctx context.Context, socket string, over fetcher) error {
	conn, err := dial(socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	return over(ctx, conn)
}

// fetcher makes one call over a connection.
type fetcher func(context.Context, *grpc.ClientConn) error

// fetchOver opens one stream, takes its first message and lets go.
func fetchOver(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(workloadContext(ctx), 10*time.Second)
	defer cancel()
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

// fetchJWTOver takes a token for the one audience that all ask for.
func fetchJWTOver(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(workloadContext(ctx), 10*time.Second)
	defer cancel()
	_, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"bench"}})
	return err
}

// warmFetch is the cost of calls whose answer is held already.
type warmFetch struct {
	latency samples
	cpu     time.Duration // of the agent, for one call
}

// warmFetches calls over 16 kept connections, one call at a time each.
func (b *bench) warmFetches(ctx context.Context, agent *daemon, socket string, over fetcher) (warmFetch, error) {
	const clients, calls = 16, 1250
	if err := until(ctx, 10*time.Second, func() error { return fetch(ctx, socket, over) }); err != nil {
		return warmFetch{}, err
	}
	before, err := agent.cpu()
	if err != nil {
		return warmFetch{}, err
	}
	var all samples
	var failed error
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			took, err := fetchMany(ctx, socket, calls, over)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			if err != nil {
				failed = err
			}
		})
	}
	wg.Wait()
	if failed != nil {
		return warmFetch{}, failed
	}
	after, err := agent.cpu()
	return warmFetch{latency: all, cpu: (after - before) / time.Duration(len(all))}, err
}

func fetchMany(ctx context.Context, socket string, n int, over fetcher) (samples, error) {
	conn, err := dial(socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var out samples
	for range n {
		begun := time.Now()
		if err := over(ctx, conn); err != nil {
			return nil, err
		}
		out = append(out, time.Since(begun))
	}
	return out, nil
}
