//go:build !linux

package main

import (
	"context"
	"syscall"
)

// endWithParent is Linux's; elsewhere a killed demo leaves its children.
func endWithParent() *syscall.SysProcAttr { return nil }

// watchParent is Linux's; elsewhere the demo waits for its own signal.
func watchParent(context.Context, func()) {}
