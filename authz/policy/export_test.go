package policy

import (
	"context"
	"crypto/rand"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/writ-dev/writ/authz"
)

// Gate is a gate as its tests see it: a policy cannot be made to hold a place for a given time.
type Gate struct{ g *gate }

// The bounds that tests count with.
const (
	Patience = patience
	Soon     = soon
	MinLine  = minLine
	MaxLine  = maxLine
	MaxHeld  = maxHeld
)

// ErrShed is what Enter gives to who is refused.
var ErrShed = errShed

// NewGate gives a gate with so many places.
func NewGate(places int) Gate { return Gate{newGate(places)} }

// GateOf is the gate of a set, LiveGate that of the live one.
func GateOf(s *Set) Gate    { return Gate{s.gate} }
func LiveGate(l *Live) Gate { return GateOf(l.set.Load()) }

// Enter, Leave and Resize are the gate's.
func (g Gate) Enter(ctx context.Context) error { return g.g.enter(ctx, 0) }
func (g Gate) Leave()                          { g.g.leave() }
func (g Gate) Resize(places int)               { g.g.resize(places) }

// EnterWith is Enter with a request of so many bytes.
func (g Gate) EnterWith(ctx context.Context, size int) error { return g.g.enter(ctx, size) }

// State is how many are inside, how many may be, and how many are in line.
func (g Gate) State() (inside, places, line int) {
	g.g.mu.Lock()
	defer g.g.mu.Unlock()
	return g.g.inside, g.g.places, g.g.line.Len()
}

// Look looks at the folder once, as Watch does.
func Look(ctx context.Context, l *Live) { l.look(ctx) }

// Call calls a built-in function as an evaluation does, behind its bound.
func Call(ctx context.Context, name string, operands ...*ast.Term) error {
	var result *ast.Term
	return Result(ctx, name, &result, operands...)
}

// Result is Call with what the function gives.
func Result(ctx context.Context, name string, result **ast.Term, operands ...*ast.Term) error {
	bindBuiltins()
	cancel := topdown.NewCancel()
	defer context.AfterFunc(ctx, cancel.Cancel)()
	b := topdown.BuiltinContext{Context: ctx, Cancel: cancel, Time: ast.NumberTerm("1"), Seed: rand.Reader, Capabilities: capabilities(manifest{})}
	return topdown.GetBuiltin(name)(b, operands, func(t *ast.Term) error { *result = t; return nil })
}

// DecisionOf is what becomes of a policy's value, given for a request.
func DecisionOf(v ast.Value, request []byte) authz.Decision { return decision(v, look(request)) }

// Functions are what a set may call.
func Functions() (names []string) {
	for _, b := range capabilities(manifest{Network: []string{"example.org"}}).Builtins {
		if topdown.GetBuiltin(b.Name) != nil && b.Name != "http.send" && b.Name != "net.lookup_ip_addr" {
			names = append(names, b.Name)
		}
	}
	return names
}
