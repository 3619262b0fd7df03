package main

import (
	"os"
	"runtime"
)

// roomForGarbage is 16 MiB that nothing ever touches, so that they cost addresses only; the garbage collector takes them for held
// and begins that much later. A daemon holds some 10 MiB, and collecting at each 10 MiB of garbage costs decisions a quarter of their
// time. A share of what is held (GOGC) would do the same, and would double a set's data of a gigabyte. More would let strangers make a
// process grow by over 64 MiB. Whoever sets GOGC has decided otherwise. The memory lasts until the daemon ends it.
func roomForGarbage() (end func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	room := make([]byte, 16<<20)
	return func() { runtime.KeepAlive(room) }
}
