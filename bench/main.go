// Bench measures writ beside the bare operation it cannot do without, in one run, so that ratios mean something on any machine. It
// prints the tables of docs/performance.md. Start with main; identity.go, issue.go, decide.go and overload.go are its parts, load.go and
// flood.go the generators that the last two run as processes of their own.
//
//	go run ./bench [-rounds 5] [-writ bin/writ] [identity | issue | decide | overload]
//
// Nothing here is a test: a slow machine fails nothing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
)

func main() {
	var b bench
	flag.StringVar(&b.writ, "writ", "bin/writ", "the writ binary")
	flag.IntVar(&b.rounds, "rounds", 5, "interleaved rounds of each measurement")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := b.run(ctx, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run of the measurements.
type bench struct {
	writ   string
	rounds int
	folder string // temporary
}

func (b *bench) run(ctx context.Context, args []string) (err error) {
	if len(args) > 0 {
		switch args[0] { // what this program runs of itself, pinned to a core
		case "floor":
			return serveFloor(ctx, args[1])
		case "load":
			return load(ctx, args[1:])
		case "flood":
			return flood(ctx, args[1:])
		}
	}
	if b.folder, err = os.MkdirTemp("", "writ-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.folder)
	fmt.Println(machine())
	want := func(part string) bool { return len(args) == 0 || args[0] == part }
	if want("identity") {
		err = errors.Join(err, b.identity(ctx))
	}
	if want("issue") {
		err = errors.Join(err, b.issue(ctx))
	}
	if want("decide") {
		err = errors.Join(err, b.decide(ctx))
	}
	if want("overload") {
		err = errors.Join(err, b.overloaded(ctx))
	}
	return err
}
