package writ_test

import (
	"bufio"
	"bytes"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/writ-dev/writ/"

// floors says on which floor a package stands; /... names all below a folder. Imports point down, never sideways: two packages of
// one floor meet in cmd, through the caller's interface.
var floors = []struct {
	pattern string
	floor   int
}{
	// 0: tools
	{"api/...", 0}, {"svid", 0}, {"internal/fault", 0}, {"internal/strictyaml", 0}, {"internal/durable", 0}, {"internal/crowd", 0}, {"policies", 0},
	// 1: words
	{"attest", 1}, {"audit", 1}, {"ca/keystore", 1},
	// 2: rules
	{"ca", 2}, {"ca/upstream", 2}, {"registration", 2}, {"authz", 2}, {"attest/...", 2}, {"agent/peer", 2}, {"agent/member", 2},
	// 3: services and implementers
	{"server", 3}, {"agent", 3}, {"store", 3}, {"authz/policy", 3}, {"federation", 3},
	// 4: surfaces
	{"agent/workloadapi", 4}, {"agent/sds", 4}, {"console", 4},
	// 5: wiring
	{"cmd/...", 5}, {"internal/testdomain", 5}, {"agent/agenttest", 5}, {"bench/...", 5}, {"examples/...", 5}, {"tools/...", 5},
}

// never says what a package must not reach by any path, and why.
var never = []struct{ from, to, reason string }{
	{"agent/...", module + "ca", "a node that could sign would be an authority"},
	{"agent/...", module + "store", "a node knows what the server told it, and nothing else"},
	{"agent/...", module + "server", "agent and server are deployed apart and upgraded apart"},
	{"authz/...", module + "ca", "deciding a request must not need the authority's code"},
	{"authz/...", module + "store", "deciding a request must not wait for a database"},
	{"authz/...", module + "server", "decisions go on while the server is down"},
	{"server", module + "store", "the server asks for one or two methods; engines are chosen in cmd"},
	{"server", module + "attest/", "which methods there are is decided in cmd, in one line each"},
	{"ca", module + "attest", "the authority signs what it is asked to; why is for others to judge"},
	{"ca", "google.golang.org/grpc", "the authority has no wire"},
	{"svid", module, "the strict parser stands on go-spiffe alone"},
	{"registration", "net/http", "rules are pure functions"},
}

// only says which packages of ours may import something directly.
var only = []struct{ imported, by, reason string }{
	{"github.com/open-policy-agent/opa/", "authz/policy", "one package knows which policy engine it is"},
	{"modernc.org/sqlite", "store", "one package speaks SQL"},
	{"go.opentelemetry.io/otel/sdk", "cmd/writ", "decisions know the API of spans; where those go is wiring"},
}

// opaAllowed is what may be imported of OPA: the rest brings a server, plugins and a package-level state of its own.
var opaAllowed = []string{"ast", "rego", "topdown", "dependencies", "bundle", "storage", "tester", "cover", "format", "compile", "loader", "util", "types", "metrics"}

// goPackage is what `go list` says of one of our packages; names of our own come without the module's.
type goPackage struct {
	name          string
	imports, deps []string
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	command := exec.Command("go", "list", "-e", "-f", "{{.ImportPath}}|{{join .Imports \" \"}}|{{join .Deps \" \"}}", "./...")
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var packages []goPackage
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		parts := strings.Split(lines.Text(), "|")
		if name, ours := strings.CutPrefix(parts[0], module); ours && len(parts) == 3 {
			packages = append(packages, goPackage{name, strings.Fields(parts[1]), strings.Fields(parts[2])})
		}
	}
	if len(packages) == 0 {
		t.Fatal("go list names no packages")
	}
	return packages
}

func TestFloors(t *testing.T) {
	for _, p := range listPackages(t) {
		from, known := floorOf(p.name)
		if !known {
			t.Errorf("%s stands on no floor: give it one here and in the design", p.name)
			continue
		}
		for _, imported := range p.imports {
			name, ours := strings.CutPrefix(imported, module)
			if !ours {
				continue
			}
			// Inside one folder of generated code, sideways is allowed.
			if to, _ := floorOf(name); to >= from && !(within("api/...", p.name) && within("api/...", name)) {
				t.Errorf("%s (floor %d) imports %s (floor %d): imports point down", p.name, from, name, to)
			}
		}
	}
}

func TestNeverReached(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, rule := range never {
			if !within(rule.from, p.name) {
				continue
			}
			for _, dep := range p.deps {
				if reaches(rule.to, dep) {
					t.Errorf("%s reaches %s: %s", p.name, dep, rule.reason)
				}
			}
		}
	}
}

func TestOnlyImporters(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, imported := range p.imports {
			for _, rule := range only {
				if strings.HasPrefix(imported, rule.imported) && p.name != rule.by {
					t.Errorf("%s imports %s, which only %s may: %s", p.name, imported, rule.by, rule.reason)
				}
			}
			rest, opa := strings.CutPrefix(imported, "github.com/open-policy-agent/opa/")
			part, _, _ := strings.Cut(strings.TrimPrefix(rest, "v1/"), "/")
			if opa && !slices.Contains(opaAllowed, part) {
				t.Errorf("%s imports %s: of OPA only v1/{%s}", p.name, imported, strings.Join(opaAllowed, ","))
			}
		}
	}
}

// Two packages of one name make a reader ask which is meant.
func TestPackageNamesAreUnique(t *testing.T) {
	seen := map[string]string{}
	for _, p := range listPackages(t) {
		last := p.name[strings.LastIndex(p.name, "/")+1:]
		if other, there := seen[last]; there {
			t.Errorf("%s and %s share a name", other, p.name)
		}
		seen[last] = p.name
	}
}

// floorOf prefers the whole name to a folder's.
func floorOf(name string) (int, bool) {
	for _, f := range floors {
		if f.pattern == name {
			return f.floor, true
		}
	}
	for _, f := range floors {
		if within(f.pattern, name) {
			return f.floor, true
		}
	}
	return 0, false
}

// within holds for a package of that name; a pattern with /... takes the folder and all below it.
func within(pattern, name string) bool {
	folder, all := strings.CutSuffix(pattern, "/...")
	return name == folder || all && strings.HasPrefix(name, folder+"/")
}

// reaches holds for the package itself, or for all below it when the rule ends in a slash.
func reaches(rule, dep string) bool {
	return dep == rule || strings.HasSuffix(rule, "/") && strings.HasPrefix(dep, rule)
}
