package testdomain_test

import (
	"os"
	"testing"

	"github.com/writ-dev/writ/internal/testdomain"
)

func TestMain(m *testing.M) {
	code := m.Run()
	testdomain.RemoveBuilt()
	os.Exit(code)
}
