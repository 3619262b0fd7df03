package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/audit"
)

// A set may say by a rule what else its records hide: data.system.log.mask, as OPA's decision log has it. The rule sees the event
// (input.input is what the decision read, input.result what it gave) and lists JSON pointers, or objects of op, path and value.
var maskRef = ast.MustParseRef("data.system.log.mask")

// maskFor bounds the rule: a record whose masking takes longer shows nothing of its request.
const maskFor = 250 * time.Millisecond

// masking gives the program that asks the rule, nil where the set has none.
func (p *program) masking() (*program, error) {
	if !hasRule(p.compiler, maskRef) {
		return nil, nil
	}
	m := &program{compiler: p.compiler, store: p.store, txn: p.txn, asker: p.compiler.QueryCompiler(), memory: p.memory}
	var err error
	m.query, err = m.asker.Compile(ast.NewBody(ast.Equality.Expr(ast.NewTerm(answer), ast.NewTerm(maskRef))))
	return m, err
}

// maskReads adds what the rule reads of the input, so that it is there when the rule looks at it.
func maskReads(r *reads, m *program) error {
	event, err := readSet(m.compiler, m.query)
	if err == nil && event.key("input") != nil {
		r.join(event.key("input"))
	}
	return err
}

// join adds what other sees.
func (r *reads) join(other *reads) {
	if other.all || len(other.keys) == 0 {
		r.add(nil)
		return
	}
	for key, below := range other.keys {
		r.addBelow(key, below)
	}
}

func (r *reads) addBelow(key string, below *reads) {
	if r.all {
		return
	}
	if r.keys == nil {
		r.keys = map[string]*reads{}
	}
	if r.keys[key] == nil {
		r.keys[key] = &reads{}
	}
	r.keys[key].join(below)
}

// withEvent lets modules of the package that masks see an event where others see the input.
func withEvent(schema any, modules map[string]*ast.Module) {
	root, _ := schema.(map[string]any)
	properties, _ := root["properties"].(map[string]any)
	for _, m := range modules {
		if properties != nil && m.Package.Path.HasPrefix(maskRef[:len(maskRef)-1]) {
			for _, key := range []string{"input", "result", "path", "revision"} {
				properties[key] = map[string]any{}
			}
		}
	}
}

// A rule is one element of what data.system.log.mask gives.
type maskRule struct {
	pointer string
	value   any
	upsert  bool
}

// maskRules asks the set's rule about an event. An error says that nothing may be shown.
func (s *Set) maskRules(r recorded, input any) ([]maskRule, error) {
	event := map[string]any{"input": input, "path": s.manifest.Decision, "revision": s.revision}
	if r.result != nil {
		result, err := ast.JSON(r.result)
		if err != nil {
			return nil, err
		}
		event["result"] = result
	}
	v, err := ast.InterfaceToValue(event)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), maskFor)
	defer cancel()
	answer, err := s.masker.ask(ctx, v)
	if err != nil || answer == nil {
		return nil, err // undefined: nothing more to hide
	}
	list, err := ast.JSON(answer)
	if err != nil {
		return nil, err
	}
	elements, ok := list.([]any)
	if !ok {
		return nil, errors.New("system.log.mask is neither a set nor an array")
	}
	out := make([]maskRule, len(elements))
	for i, e := range elements {
		if out[i], err = readMaskRule(e); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func readMaskRule(element any) (maskRule, error) {
	var r maskRule
	switch e := element.(type) {
	case string:
		r.pointer = e
	case map[string]any:
		r.pointer, _ = e["path"].(string)
		op, _ := e["op"].(string)
		if op != "remove" && op != "upsert" {
			return r, fmt.Errorf("mask op %v is neither remove nor upsert", e["op"])
		}
		r.upsert, r.value = op == "upsert", e["value"]
	default:
		return r, fmt.Errorf("a mask rule of type %T", element)
	}
	for _, root := range []string{"/input", "/result", "/nd_builtin_cache"} {
		if r.pointer == root || strings.HasPrefix(r.pointer, root+"/") {
			return r, nil
		}
	}
	return r, fmt.Errorf("mask path %q begins with neither /input nor /result", r.pointer)
}

// apply changes the event and says whether the pointer led to anything. A removed element of a list leaves a mark in its place, so
// that the pointers after it still lead where they led.
func (r maskRule) apply(event map[string]any) bool {
	parts := strings.Split(r.pointer[1:], "/")
	var at any = event
	for i, part := range parts {
		last := i == len(parts)-1
		switch node := at.(type) {
		case map[string]any:
			key := keyOf(node, part)
			below, there := node[key]
			switch {
			case last && r.upsert:
				node[key] = r.value
				return true
			case !there && (!r.upsert || i == 0):
				return false
			case last:
				delete(node, key)
				return true
			case !there:
				below = map[string]any{}
				node[key] = below
			}
			at = below
		case []any:
			n, err := strconv.Atoi(part)
			if err != nil || n < 0 || n >= len(node) {
				return false
			}
			if last {
				node[n] = masked
				if r.upsert {
					node[n] = r.value
				}
				return true
			}
			at = node[n]
		default:
			return false
		}
	}
	return false
}

// keyOf finds the key that part of a pointer names: as it stands, else with its escapes undone, those of JSON pointers and of URLs.
func keyOf(node map[string]any, part string) string {
	if _, there := node[part]; there {
		return part
	}
	plain, err := url.PathUnescape(part)
	if err != nil {
		plain = part
	}
	plain = strings.NewReplacer("~1", "/", "~0", "~").Replace(plain)
	return plain
}

// Render implements audit.Lazy. The set's own rules see all that was read; what is hidden without them is hidden first, then
// what they say.
func (r recorded) Render() (out audit.Rendered, err error) {
	input, err := ast.JSON(r.input)
	if err != nil {
		return out, err
	}
	var rules []maskRule
	if r.set.masker != nil {
		if rules, err = r.set.maskRules(r, input); err != nil {
			return out, fmt.Errorf("mask the record: %w", err)
		}
	}
	if object, ok := input.(map[string]any); ok {
		r.mask(object)
	}
	event := map[string]any{"input": input}
	for _, rule := range rules {
		hit := rule.apply(event)
		if strings.HasPrefix(rule.pointer, "/result") || repeated(rule.pointer) {
			hit = true // the record's own fields show it, read by the policy or not
		}
		switch {
		case hit && rule.upsert:
			out.Masked = append(out.Masked, rule.pointer)
		case hit:
			out.Erased = append(out.Erased, rule.pointer)
		}
	}
	slices.Sort(out.Erased)
	slices.Sort(out.Masked)
	if left, there := event["input"]; there {
		out.Input, err = json.Marshal(left)
	}
	return out, err
}

// repeated says that the record shows what a pointer leads to in a field of its own.
func repeated(pointer string) bool {
	for _, at := range []string{"/input/attributes/source/principal", "/input/attributes/destination/principal",
		"/input/attributes/request/http/method", "/input/attributes/request/http/path", "/input/attributes/request/http/host"} {
		if at == pointer || strings.HasPrefix(at, pointer+"/") {
			return true
		}
	}
	return false
}
