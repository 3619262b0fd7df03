package policy_test

import (
	"flag"
	"io/fs"
	"testing"
	"testing/fstest"

	"go.uber.org/goleak"

	"github.com/writ-dev/writ/authz/policy"
	"github.com/writ-dev/writ/policies"
)

var _ = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestExampleSetLoads(t *testing.T) {
	set, err := policy.LoadFS(t.Context(), policies.Example(), policy.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if set.Revision() == "" {
		t.Error("no revision")
	}
}

// TestLibrary runs the tests and cases of the shipped helpers as a set that imports them without copying them.
func TestLibrary(t *testing.T) {
	files := fstest.MapFS{"policy.rego": {Data: []byte(`package envoy.authz
import data.writ.identity
default allow := false
allow if {
	identity.in_trust_domain(input.source, "example.org")
	identity.under(input.source, ["ns", "shop"])
}`)}}
	for _, name := range []string{"identity_test.rego", "cases/identity.yaml"} {
		text, err := fs.ReadFile(policies.Library(), name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = &fstest.MapFile{Data: text}
	}
	if _, err := policy.LoadFS(t.Context(), files, policy.Config{}); err != nil {
		t.Error(err)
	}
}
