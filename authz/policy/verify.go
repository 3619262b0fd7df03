package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/tester"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/writ-dev/writ/internal/strictyaml"
)

// testsPerDecision is by how many decisions' memory the heap may grow while a set's tests run.
const testsPerDecision = 4

// verifyFor bounds all tests and cases of a set: a set whose tests do not end does not go live.
const verifyFor = 30 * time.Second

// test runs a set's _test.rego.
func test(ctx context.Context, s *snapshot, m manifest, p *program) error {
	if !slices.ContainsFunc(s.names, isTest) {
		return nil
	}
	modules, err := parse(s, m, func(string) bool { return true })
	if err != nil {
		return err
	}
	c, err := newCompiler(m, modules)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch := watchHeap(testsPerDecision*p.memory, cancel)
	defer watch.stop()
	runner := tester.NewRunner().SetCompiler(c).SetStore(p.store).SetModules(modules).SetTimeout(verifyFor)
	results, err := runner.RunTests(ctx, p.txn)
	if err != nil && watch.stop() {
		return fmt.Errorf("the tests: %w", errMemory)
	}
	if err != nil {
		return readable(err)
	}
	var all []error
	for r := range results {
		if why := failure(r); why != "" {
			all = append(all, fmt.Errorf("%s:%d: %s %s", r.Location.File, r.Location.Row, r.Name, why))
		}
	}
	switch {
	case watch.stop():
		return fmt.Errorf("the tests: %w", errMemory)
	case ctx.Err() != nil:
		return fmt.Errorf("the tests: %w", errTime)
	}
	slices.SortFunc(all, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(all...)
}

func failure(r *tester.Result) string {
	switch {
	case r == nil || r.Skip:
		return ""
	case r.Error != nil:
		return "ended with an error: " + r.Error.Error()
	case r.Fail:
		return "failed"
	}
	return ""
}

// A Case is one document of cases/*.yaml: for this input the decision is that. The input may leave out parsed_path,
// parsed_query, source and destination; they follow from its attributes. Want is true, false, or keys that the result must have
// with these values.
type Case struct {
	Description string         `yaml:"description"`
	Input       map[string]any `yaml:"input"`
	Want        any            `yaml:"want"`
}

// check runs a set's cases.
func (s *Set) check(ctx context.Context, snap *snapshot) error {
	var all []error
	for _, name := range snap.names {
		if !isCase(name) {
			continue
		}
		documents, err := strictyaml.Documents(name, snap.files[name])
		if err != nil {
			all = append(all, err)
			continue
		}
		for _, d := range documents {
			var c Case
			err := d.Decode(&c)
			if err == nil {
				if err = s.try(ctx, c); err != nil {
					err = fmt.Errorf("%s:%d: %s: %w", name, d.Line, c.Description, err)
				}
			}
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

func (s *Set) try(ctx context.Context, c Case) error {
	if c.Description == "" || c.Want == nil {
		return errors.New("a case needs description, input and want")
	}
	v, err := ast.InterfaceToValue(c.Input)
	if err != nil {
		return err
	}
	input, ok := v.(ast.Object)
	if !ok {
		return errors.New("input is no object")
	}
	if input, err = s.reader.complete(input); err != nil {
		return err
	}
	got, err := s.program.ask(ctx, input)
	if err != nil {
		return err
	}
	want, err := ast.InterfaceToValue(c.Want)
	if err != nil {
		return err
	}
	return compare(got, want)
}

// compare takes true and false also for an object's allowed, and undefined for false.
func compare(got, want ast.Value) error {
	if got == nil {
		got = ast.Boolean(false)
	}
	keys, isObject := want.(ast.Object)
	if !isObject {
		if o, ok := got.(ast.Object); ok {
			got = ast.Null{}
			if allowed := o.Get(ast.InternedTerm("allowed")); allowed != nil {
				got = allowed.Value
			}
		}
		if ast.Compare(got, want) != 0 {
			return fmt.Errorf("got %v, want %v", got, want)
		}
		return nil
	}
	if b, ok := got.(ast.Boolean); ok {
		got = ast.NewObject([2]*ast.Term{ast.StringTerm("allowed"), ast.BooleanTerm(bool(b))})
	}
	result, ok := got.(ast.Object)
	if !ok {
		return fmt.Errorf("got %v, want %v", got, want)
	}
	return keys.Iter(func(key, value *ast.Term) error {
		if have := result.Get(key); have == nil || ast.Compare(have.Value, value.Value) != 0 {
			return fmt.Errorf("%v: got %v, want %v", key, have, value)
		}
		return nil
	})
}

// errTime says that a set's tests did not end.
var errTime = fmt.Errorf("they do not end within %s", verifyFor)

// errMemory says that an evaluation was ended by its watch.
var errMemory = errors.New("it takes more memory than policy.yaml's limits.memory_megabytes")

// ask evaluates the query. The value is nil when the decision is undefined.
func (p *program) ask(ctx context.Context, input ast.Value) (result ast.Value, err error) {
	cancel := topdown.NewCancel()
	stop := context.AfterFunc(ctx, cancel.Cancel)
	defer stop()
	watch := watchHeap(p.memory, cancel.Cancel)
	defer watch.stop()
	q := topdown.NewQuery(p.query).WithQueryCompiler(p.asker).WithCompiler(p.compiler).WithStore(p.store).WithTransaction(p.txn).
		WithCancel(cancel).WithInput(ast.NewTerm(input))
	err = q.Iter(ctx, func(r topdown.QueryResult) error {
		result = r[answer].Value
		return nil
	})
	switch over := watch.stop(); {
	case over && err != nil:
		return nil, errMemory
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, err
	case result != nil && spend(result, maxResult) < 0:
		return nil, fmt.Errorf("the result has more than %d values", maxResult)
	}
	return result, nil
}
