package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// decide measures Check with the P1 policy beside a bare grpc-go server that decodes the request and answers a constant: server on
// one core, generator on the other, rounds taking turns.
func (b *bench) decide(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	floorSocket := filepath.Join(b.folder, "floor.sock")
	floor, err := b.start(1, self, "floor", floorSocket)
	if err != nil {
		return err
	}
	defer floor.stop()
	policy, err := filepath.Abs("bench/p1")
	if err != nil {
		return err
	}
	agent, socket, server, err := b.decider(ctx, policy, "127.0.0.1:0")
	defer server.stop()
	defer agent.stop()
	if err != nil {
		return err
	}
	sides := []*side{{name: "floor", daemon: floor, socket: floorSocket}, {name: "writ, P1", daemon: agent, socket: socket}}
	for _, s := range sides { // once to warm up
		if _, err := s.round(ctx, b, self, 2000); err != nil {
			return err
		}
	}
	for range b.rounds {
		for _, s := range sides {
			got, err := s.round(ctx, b, self, 40000)
			if err != nil {
				return err
			}
			s.rate = append(s.rate, got.Rate)
			s.cpu = append(s.cpu, got.cpu)
			s.p99 = append(s.p99, got.P99)
		}
	}
	report(sides)
	return nil
}

// report prints the table, with the ratio taken round by round.
func report(sides []*side) {
	var ratios []float64
	for i := range sides[0].rate {
		ratios = append(ratios, sides[1].rate[i]/sides[0].rate[i])
	}
	var rows [][]string
	for i, s := range sides {
		ratio, must := "1", ""
		if i == 1 {
			ratio, must = spread(ratios, "%.2f"), ">= 0.4"
		}
		rows = append(rows, []string{s.name, spread(s.rate, "%.0f"), spread(s.cpu, "%.0f us"), spread(s.p99, "%.0f us"), ratio, must})
	}
	table("decisions, c=16, 1,400-byte CheckRequests, Unix socket, records off", []string{"", "requests/s", "server CPU", "p99", "of the floor", "must"}, rows)
}

// side is one of the two servers.
type side struct {
	name, socket   string
	daemon         *daemon
	rate, cpu, p99 []float64
}

// loaded is what one round of the generator found.
type loaded struct {
	Rate float64 `json:"rate"`   // requests a second
	P99  float64 `json:"p99_us"` // microseconds
	cpu  float64 `json:"-"`      // of the server, microseconds a request
}

func (s *side) round(ctx context.Context, b *bench, self string, n int) (loaded, error) {
	before, err := s.daemon.cpu()
	if err != nil {
		return loaded{}, err
	}
	cmd := exec.CommandContext(ctx, "taskset", "-c", "0", self, "load", s.socket, strconv.Itoa(n))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return loaded{}, fmt.Errorf("load %s: %w", s.name, err)
	}
	after, err := s.daemon.cpu()
	if err != nil {
		return loaded{}, err
	}
	var got loaded
	err = json.Unmarshal(out, &got)
	got.cpu = float64((after - before).Microseconds()) / float64(n)
	return got, err
}

// decider starts a server and an agent that decides with a policy and serves its metrics at an address.
func (b *bench) decider(ctx context.Context, policy, metrics string) (agent *daemon, socket string, server *daemon, err error) {
	d, err := b.newDomain(ctx)
	if err != nil {
		return nil, "", nil, err
	}
	folder, err := d.agentFiles(policy, metrics)
	if err != nil {
		return nil, "", d.server, err
	}
	if err := d.join(folder); err != nil {
		return nil, "", d.server, err
	}
	if agent, err = b.start(1, b.writ, "agent", "run", "--config", filepath.Join(folder, "agent.yaml")); err != nil {
		return nil, "", d.server, err
	}
	socket = filepath.Join(folder, "authz.sock")
	err = until(ctx, 10*time.Second, func() error { return checkOnce(ctx, socket) })
	return agent, socket, d.server, err
}
