// Envoy shows the whole of writ on one machine: two plain HTTP services, web and api, each behind an Envoy of its own. The Envoys
// speak mutual TLS with certificates that come by SDS, and ask writ whether each request may pass. It makes one call that is
// allowed and one that is denied, says why, and goes on until it is interrupted.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	var s scenario
	flag.StringVar(&s.writ, "writ", "bin/writ", "the writ binary")
	flag.StringVar(&s.envoy, "envoy", "envoy", "the Envoy binary")
	flag.StringVar(&s.files, "files", "examples/envoy", "the folder with entries.yaml, proxy.yaml and policy/")
	flag.BoolVar(&s.once, "once", false, "end after the two calls")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, orphaned := context.WithCancel(ctx)
	go watchParent(ctx, orphaned)
	if err := s.run(ctx); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// run is the scenario: 1 writ, 2 the services, 3 their proxies, 4 the calls.
func (s *scenario) run(ctx context.Context) error {
	if err := s.prepare(); err != nil {
		return err
	}
	defer s.cleanUp()
	ready, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	if err := s.startWrit(ready); err != nil {
		return err
	}
	if err := s.startServices(); err != nil {
		return err
	}
	if err := s.startProxies(ready); err != nil {
		return err
	}
	if err := s.makeCalls(ready); err != nil {
		return err
	}
	if s.once {
		return nil
	}
	fmt.Print("\nCtrl-C ends it and cleans up.\n")
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.ended:
		return err
	}
}
