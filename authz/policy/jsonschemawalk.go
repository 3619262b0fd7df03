package policy

import (
	"encoding/json"
	"errors"
	"regexp/syntax"
	"strings"
)

// This file walks an instance as validation does, and reckons what that takes.

// An instance is a value that is judged, and all in it.
type instance struct {
	kind    string // of JSON schema
	text    string
	slow    bool // a number that is costly to read
	size    int  // about how many bytes it has, written out
	where   int  // and its path
	members map[string]*instance
	items   []*instance
}

func newInstance(document any, where int) (i *instance, err error) {
	i = &instance{size: 5, where: where}
	switch v := document.(type) {
	case nil:
		i.kind = "null"
	case bool:
		i.kind = "boolean"
	case string:
		i.kind, i.text, i.size = "string", v, len(v)+2
	case json.Number:
		i.kind, i.size, i.slow = "number", len(v), len(v) > 20 || strings.ContainsAny(string(v), "eE")
		return i, fitsSchema(v)
	case []any:
		i.kind, i.items = "array", make([]*instance, len(v))
		for n, below := range v {
			if i.items[n], err = newInstance(below, where+6); err != nil {
				return nil, err
			}
			i.size += i.items[n].size + 1
		}
	case map[string]any:
		i.kind, i.members = "object", make(map[string]*instance, len(v))
		for key, below := range v {
			if i.members[key], err = newInstance(below, where+len(key)+1); err != nil {
				return nil, err
			}
			i.size += i.members[key].size + len(key) + 4
		}
	}
	return i, nil
}

// fitsSchema is for numbers which the library makes fractions of, with all digits that an exponent means.
func fitsSchema(n json.Number) error {
	_, err := readNumber(string(n))
	if err != nil {
		return errors.New("a number fits no double")
	}
	return nil
}

// A schemaWalk goes where validation goes, and counts.
type schemaWalk struct{ left int }

func (w *schemaWalk) pay(n int) error {
	if w.left -= n; w.left < 0 {
		return errSchemaCost
	}
	return nil
}

// faults pays for so many that may be found with a value.
func (w *schemaWalk) faults(n int, i *instance) error {
	return w.pay(n * (costFault + costByte*(i.size+3*i.where)))
}

func (w *schemaWalk) visit(s *subschema, i *instance, steps int) error {
	if steps++; steps > maxSchemaSteps {
		return errSchemaDeep
	}
	if err := w.pay(costVisit + i.where/8); err != nil {
		return err
	}
	if s.refers != nil {
		return w.visit(s.refers, i, steps)
	}
	if !s.takes(i.kind) {
		return w.faults(1, i)
	}
	for _, next := range s.here {
		if err := w.visit(next, i, steps); err != nil {
			return err
		}
	}
	if err := w.own(s, i); err != nil {
		return err
	}
	if err := w.members(s, i, steps); err != nil {
		return err
	}
	return w.items(s, i, steps)
}

func (s *subschema) takes(kind string) bool {
	for _, t := range s.types {
		if t == kind || t == "integer" && kind == "number" {
			return true
		}
	}
	return len(s.types) == 0
}

// own pays for what a schema asks of a value itself.
func (w *schemaWalk) own(s *subschema, i *instance) error {
	n := len(i.text) / 8
	if i.slow {
		n += costNumber
	}
	if s.format {
		n += 100 * len(i.text)
	}
	if s.expresses {
		n += operations(i.text) * costOp
	}
	n += s.expression * len(i.text)
	if s.written > 0 {
		n += costByte*i.size + s.written
	}
	missing := 0
	for _, name := range s.required {
		if i.members[name] == nil {
			missing++
		}
	}
	if err := w.pay(n + len(s.required)); err != nil {
		return err
	}
	if i.kind != "object" {
		missing = 0
	}
	faults := s.faults + missing
	if s.written > 0 { // each item may be one that is not unique, and the fault of an enumeration names all of it
		faults += len(i.items)
		if err := w.pay(costByte * s.written); err != nil {
			return err
		}
	}
	return w.faults(faults, i)
}

func (w *schemaWalk) members(s *subschema, i *instance, steps int) error {
	if i.kind != "object" {
		return nil
	}
	if err := w.pay(len(i.members) * (10 + len(s.properties)/4)); err != nil {
		return err
	}
	for name, below := range i.members {
		next := s.properties[name]
		if next == nil {
			next = s.others
		}
		if next != nil {
			if err := w.visit(next, below, steps); err != nil {
				return err
			}
		}
		for _, p := range s.patterns {
			if err := w.pay(p.expression * (costOp + len(name))); err != nil {
				return err
			}
			if err := w.visit(p.schema, below, steps); err != nil {
				return err
			}
		}
		if s.names != nil {
			if err := w.visit(s.names, &instance{kind: "string", text: name, size: len(name), where: i.where}, steps); err != nil {
				return err
			}
			if err := w.faults(1, i); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *schemaWalk) items(s *subschema, i *instance, steps int) error {
	for n, below := range i.items {
		next := s.rest
		switch {
		case s.each:
			next = s.items[0]
		case n < len(s.items):
			next = s.items[n]
		}
		for _, next := range []*subschema{next, s.contains} {
			if next == nil {
				continue
			}
			if err := w.visit(next, below, steps); err != nil {
				return err
			}
		}
	}
	return nil
}

// operations is how many operations a regular expression is compiled to, about; the length of what is none.
func operations(expression string) int {
	e, err := syntax.Parse(expression, syntax.Perl)
	if err != nil {
		return len(expression)
	}
	var count func(e *syntax.Regexp) int
	count = func(e *syntax.Regexp) int {
		n := 1 + len(e.Rune)/8
		for _, below := range e.Sub {
			n += count(below)
		}
		if e.Op == syntax.OpLiteral {
			n = len(e.Rune)
		}
		if e.Op == syntax.OpRepeat {
			n *= max(e.Min, e.Max, 1)
		}
		return n
	}
	return count(e)
}
