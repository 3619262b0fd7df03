package policy

import (
	"fmt"

	"github.com/open-policy-agent/opa/v1/ast"
)

// What one call may compare or change, each of some with each of others.
const (
	maxPatched = 4_000_000   // operations of a patch times values of what is patched and of the patch
	maxCopies  = 100         // operations of a patch that copy or move: each may hold those before
	maxCIDRs   = 300_000     // networks times addresses
	maxSubset  = 256_000_000 // items of a list that is looked for in another one, times its items
)

func pairBounds() map[string]bound {
	return map[string]bound{
		ast.JSONPatch.Name:              patch,
		ast.NetCIDRContainsMatches.Name: networks,
		ast.ObjectSubset.Name:           subset,
	}
}

// values is how many values there are in some, up to most.
func values(most int, some ...*ast.Term) int {
	left := most
	for _, t := range some {
		left = spend(t.Value, max(left, 0))
	}
	return most - max(left, 0)
}

func patch(operands []*ast.Term) error {
	operations := operand[*ast.Array](operands, 1)
	if operations == nil {
		return nil
	}
	n := values(maxPatched, operands...)
	if operations.Len()*n > maxPatched {
		return fmt.Errorf("the operations times the values are more than %d", maxPatched)
	}
	copies := 0
	operations.Foreach(func(t *ast.Term) {
		if o, ok := t.Value.(ast.Object); ok {
			if op := o.Get(ast.InternedTerm("op")); op != nil && (op.Equal(ast.InternedTerm("copy")) || op.Equal(ast.InternedTerm("move"))) {
				copies++
			}
		}
	})
	if copies > maxCopies {
		return fmt.Errorf("the patch copies or moves more than %d times", maxCopies)
	}
	return nil
}

func networks(operands []*ast.Term) error {
	if values(maxCIDRs, operands[0])*values(maxCIDRs, operands[1]) > maxCIDRs {
		return fmt.Errorf("the networks times the addresses are more than %d", maxCIDRs)
	}
	return nil
}

func subset(operands []*ast.Term) error {
	all, some := operand[*ast.Array](operands, 0), operand[*ast.Array](operands, 1)
	if all != nil && some != nil && all.Len()*some.Len() > maxSubset {
		return fmt.Errorf("the items times the items looked for are more than %d", maxSubset)
	}
	return nil
}
