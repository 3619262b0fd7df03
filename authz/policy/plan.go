package policy

import (
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/dependencies"
)

// reads is the part of the input that a decision can see: a tree of keys below input. The zero reads sees nothing.
type reads struct {
	all  bool
	keys map[string]*reads
}

// readSet lists what a query can read, through every rule below it. It may name too much, never too little.
func readSet(c *ast.Compiler, query ast.Body) (*reads, error) {
	refs, err := dependencies.Base(c, query)
	if err != nil {
		return nil, err
	}
	r := &reads{}
	for _, ref := range refs {
		if ref.HasPrefix(ast.InputRootRef) {
			r.add(ref[1:])
		}
	}
	return r, nil
}

func (r *reads) add(ref ast.Ref) {
	if r.all {
		return
	}
	if len(ref) == 0 {
		r.all, r.keys = true, nil
		return
	}
	key, ok := ref[0].Value.(ast.String)
	if !ok {
		r.add(nil) // an index or a variable: any of them
		return
	}
	if r.keys == nil {
		r.keys = map[string]*reads{}
	}
	if r.keys[string(key)] == nil {
		r.keys[string(key)] = &reads{}
	}
	r.keys[string(key)].add(ref[1:])
}

// key is what is read below a key; nil for nothing.
func (r *reads) key(name string) *reads {
	if r == nil || r.all {
		return r
	}
	return r.keys[name]
}

// A plan says what to build of a message; nil is nothing of it.
type plan struct {
	all    bool
	fields []*plan          // by position in the shape
	names  map[string]*plan // by key, for a map
}

func (p *plan) field(i int) *plan {
	if p == nil || p.all {
		return p
	}
	return p.fields[i]
}

func (p *plan) entry(key []byte) *plan {
	if p == nil || p.all {
		return p
	}
	return p.names[string(key)]
}

// plan fits what is read to a shape.
func (s *shape) plan(r *reads) *plan {
	if r == nil {
		return nil
	}
	if r.all || s.whole != nil {
		return &plan{all: true}
	}
	p := &plan{fields: make([]*plan, len(s.fields))}
	for i := range s.fields {
		p.fields[i] = s.fields[i].plan(r.key(s.fields[i].name))
	}
	return p
}

func (f *field) plan(r *reads) *plan {
	switch {
	case r == nil:
		return nil
	case f.isMap && !r.all:
		p := &plan{names: map[string]*plan{}}
		for name, below := range r.keys {
			p.names[name] = &plan{all: true}
			if f.message != nil {
				p.names[name] = f.message.plan(below)
			}
		}
		return p
	case f.message != nil && !f.list && !f.isMap:
		return f.message.plan(r)
	}
	return &plan{all: true}
}
