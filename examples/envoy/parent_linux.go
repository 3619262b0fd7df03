package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// endWithParent lets the kernel end a child should the demo itself be killed.
func endWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }

// watchParent calls end when make, our parent, is gone or was interrupted: a SIGINT that reaches make alone makes it wait for us
// without telling us. It then has no handler for SIGINT any more, which /proc shows.
func watchParent(ctx context.Context, end func()) {
	parent := os.Getppid()
	handled := handlesInterrupt(parent)
	for tick := time.NewTicker(200 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
			if os.Getppid() != parent || handled && !handlesInterrupt(parent) {
				end()
				return
			}
		}
	}
}

// handlesInterrupt says whether a process has a handler for SIGINT (proc_pid_status(5), SigCgt).
func handlesInterrupt(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(data), "SigCgt:\t")
	mask, err := strconv.ParseUint(strings.SplitN(rest, "\n", 2)[0], 16, 64)
	return err == nil && mask&(1<<(uint(syscall.SIGINT)-1)) != 0
}
