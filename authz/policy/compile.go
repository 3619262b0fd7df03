package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"

	"github.com/writ-dev/writ/policies"
)

// closed are the built-ins by which a policy would see more than its input and data, or reach out; network opens the first two.
var closed = []string{"http.send", "net.lookup_ip_addr", "opa.runtime"}

// A program is Rego and data, compiled, ready to be asked.
type program struct {
	compiler *ast.Compiler
	store    storage.Store
	txn      storage.Transaction // one for all: the store never changes
	query    ast.Body
	asker    ast.QueryCompiler
	memory   uint64 // bytes by which the heap may grow while it is asked
}

// answer is the variable of a program's query.
const answer = ast.Var("answer")

func isTest(name string) bool { return strings.HasSuffix(name, "_test.rego") }

// compile builds the program of a snapshot, without its tests.
func compile(ctx context.Context, s *snapshot, m manifest) (*program, error) {
	modules, err := parse(s, m, func(name string) bool { return !isTest(name) })
	if err != nil {
		return nil, err
	}
	store, err := data(s)
	if err != nil {
		return nil, err
	}
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return nil, err
	}
	c, err := newCompiler(m, modules)
	if err != nil {
		return nil, err
	}
	c.WithPathConflictsCheck(storage.NonEmpty(ctx, store, txn))
	if c.Compile(modules); c.Failed() {
		return nil, readable(c.Errors)
	}
	p := &program{compiler: c, store: store, txn: txn, asker: c.QueryCompiler(), memory: uint64(m.Limits.Memory) << 20}
	ref, _ := m.ref()
	if !hasRule(c, ref) {
		return nil, fmt.Errorf("decision %s names no rule", m.Decision)
	}
	question := ast.NewBody(ast.Equality.Expr(ast.NewTerm(answer), ast.NewTerm(ref)))
	p.query, err = p.asker.Compile(question)
	return p, err
}

func parse(s *snapshot, m manifest, want func(name string) bool) (map[string]*ast.Module, error) {
	modules, err := library()
	if err != nil {
		return nil, err
	}
	var all []error
	own := 0
	for _, name := range s.names {
		if !strings.HasSuffix(name, ".rego") || !want(name) {
			continue
		}
		module, err := ast.ParseModuleWithOpts(name, string(s.files[name]), ast.ParserOptions{RegoVersion: m.regoVersion(),
			Capabilities: capabilities(m), ProcessAnnotation: true})
		if err != nil {
			all = append(all, readable(err))
			continue
		}
		if module == nil {
			continue // comments only
		}
		modules[name] = module
		own++
	}
	if own == 0 && len(all) == 0 {
		all = append(all, errors.New("no .rego files"))
	}
	return modules, errors.Join(all...)
}

// library adds what every set may import.
func library() (map[string]*ast.Module, error) {
	modules := map[string]*ast.Module{}
	err := fs.WalkDir(policies.Library(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".rego") || isTest(name) {
			return err
		}
		text, err := fs.ReadFile(policies.Library(), name)
		if err == nil {
			name = "writ/" + name // a folder of that name may hold other files: the colon cannot stand in ours
			modules["builtin:"+name], err = ast.ParseModule(name, string(text))
		}
		return err
	})
	return modules, err
}

func newCompiler(m manifest, modules map[string]*ast.Module) (*ast.Compiler, error) {
	bindBuiltins()
	var schema any
	if err := json.Unmarshal(policies.InputSchema(), &schema); err != nil {
		return nil, fmt.Errorf("read input schema: %w", err)
	}
	withEvent(schema, modules)
	schemas := ast.NewSchemaSet()
	schemas.Put(ast.SchemaRootRef, schema)
	return ast.NewCompiler().WithCapabilities(capabilities(m)).WithSchemas(schemas).WithDefaultRegoVersion(m.regoVersion()).
		SetErrorLimit(0), nil
}

// capabilities leaves out what is closed. An empty AllowNet, unlike none, also keeps JSON schemas from fetching what they refer to.
func capabilities(m manifest) *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion()
	c.AllowNet = append([]string{}, m.Network...)
	c.Builtins = slices.DeleteFunc(slices.Clone(c.Builtins), func(b *ast.Builtin) bool {
		return slices.Contains(closed, b.Name) && (len(m.Network) == 0 || b.Name == "opa.runtime")
	})
	return c
}

// hasRule says whether a ref is a rule, or an object that rules with longer heads make up, and not a whole package.
func hasRule(c *ast.Compiler, ref ast.Ref) bool {
	if len(c.GetRulesExact(ref)) > 0 {
		return true
	}
	for _, m := range c.Modules {
		if m.Package.Path.HasPrefix(ref) {
			return false
		}
	}
	return len(c.GetRulesWithPrefix(ref)) > 0
}

// readable puts OPA's errors as file:line: reason.
func readable(err error) error {
	var list ast.Errors
	if !errors.As(err, &list) {
		return err
	}
	var all []error
	for _, e := range list {
		text := e.Message
		if e.Location != nil {
			text = fmt.Sprintf("%s:%d: %s", e.Location.File, e.Location.Row, e.Message)
		}
		if e.Details != nil {
			text += ": " + strings.Join(e.Details.Lines(), "; ")
		}
		all = append(all, errors.New(text))
	}
	return errors.Join(all...)
}
