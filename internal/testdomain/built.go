package testdomain

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// Built gives the one binary of this run of the tests, built at the first call. TestMain calls RemoveBuilt.
func Built(t testing.TB) Binary {
	t.Helper()
	b, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var built = sync.OnceValues(func() (Binary, error) {
	out := filepath.Join(builtFolder(), "writ")
	cmd := exec.Command("go", "build", "-trimpath", "-o", out, "github.com/writ-dev/writ/cmd/writ") // as make does, for one build cache
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build writ: %w\n%s", err, text)
	}
	return Binary(out), nil
})

func builtFolder() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("writ-built-%d", os.Getpid()))
}

// RemoveBuilt removes what Built built.
func RemoveBuilt() { os.RemoveAll(builtFolder()) }
