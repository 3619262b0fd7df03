package policy

// This file reckons what validating a query takes: what each rule of the library would compare with what.

// validate reckons what validation takes.
func (d *graphQLDocument) validate(s graphQLSchemaShape) error {
	if err := d.pay(d.values*costLook + d.variables*d.variables); err != nil {
		return err
	}
	for _, set := range d.order {
		if err := d.loops(set, map[*selectionSet]bool{}); err != nil {
			return err
		}
	}
	for _, set := range d.operations {
		d.seen = map[*selectionSet]bool{}
		if err := d.walk(set, true, s); err != nil {
			return err
		}
		if err := d.within(set); err != nil {
			return err
		}
	}
	for _, set := range d.order {
		d.seen = map[*selectionSet]bool{}
		if err := d.walk(set, false, s); err != nil {
			return err
		}
		if err := d.within(set); err != nil {
			return err
		}
	}
	return nil
}

func (d *graphQLDocument) pay(n int) error {
	if d.cost += n; d.cost > maxGraphQLCost {
		return errGraphQLCost
	}
	return nil
}

// loops refuses fragments that come back to themselves. above are those that lead here; what was found free of loops is remembered.
func (d *graphQLDocument) loops(set *selectionSet, above map[*selectionSet]bool) error {
	if above[set] {
		return errGraphQLSpread
	}
	if d.seen == nil {
		d.seen = map[*selectionSet]bool{}
	}
	if d.seen[set] {
		return nil
	}
	above[set] = true
	if err := d.spreads(set, above); err != nil {
		return err
	}
	delete(above, set)
	d.seen[set] = true
	return nil
}

func (d *graphQLDocument) spreads(set *selectionSet, above map[*selectionSet]bool) error {
	for _, s := range set.list {
		var err error
		switch {
		case s.kind == '.' && d.fragments[s.name] != nil:
			err = d.loops(d.fragments[s.name], above)
		case s.below != nil:
			err = d.spreads(s.below, above)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// walk goes as the library's walker: into each fragment once.
func (d *graphQLDocument) walk(set *selectionSet, operation bool, shape graphQLSchemaShape) error {
	for _, s := range set.list {
		// Each name may be a mistake, for which all names that could stand there are compared with it. Few are, so this takes a third
		// of what it would.
		n := costLook + (35+len(s.real)+20*s.tokens)*shape.widest
		if s.kind != 'f' {
			n += 2*len(d.order) + shape.links*shape.links/4
		} else {
			n += shape.links * 2
		}
		if err := d.pay(n); err != nil {
			return err
		}
		if s.below != nil {
			if err := d.walk(s.below, operation, shape); err != nil {
				return err
			}
		}
		if s.real == "__schema" || s.real == "__type" {
			if err := d.expand(s.below); err != nil {
				return err
			}
		}
		if f := d.fragments[s.name]; s.kind == '.' && f != nil && !d.seen[f] {
			d.seen[f] = true
			if err := d.walk(f, operation, shape); err != nil {
				return err
			}
		}
		if s.kind == '{' || s.kind == 'f' && operation {
			if err := d.within(s.below); err != nil {
				return err
			}
		}
	}
	return nil
}

// expand goes into each spread anew: so does the rule on how deep the schema may be asked about.
func (d *graphQLDocument) expand(set *selectionSet) error {
	if set == nil {
		return nil
	}
	for _, s := range set.list {
		if err := d.pay(costLook); err != nil {
			return err
		}
		below := s.below
		if s.kind == '.' {
			below = d.fragments[s.name]
		}
		if err := d.expand(below); err != nil {
			return err
		}
	}
	return nil
}

// look collects a set's fields, which the library does each time.
func (d *graphQLDocument) look(set *selectionSet) error {
	if !set.flat {
		set.flat, set.fields = true, map[string][]*selection{}
		set.collect(set)
	}
	return d.pay(costLook * (5 + set.size))
}

func (set *selectionSet) collect(from *selectionSet) {
	for _, s := range from.list {
		set.size++
		switch {
		case s.kind == 'f':
			set.fields[s.name] = append(set.fields[s.name], s)
		case s.kind == '.':
			set.spreads = append(set.spreads, s)
		case s.below != nil:
			set.collect(s.below)
		}
	}
}

// within is what the rule does that fields of one name are the same: it compares all pairs of them, in fragments too, and all below.
func (d *graphQLDocument) within(set *selectionSet) error {
	if set == nil {
		return nil
	}
	if err := d.look(set); err != nil {
		return err
	}
	for _, fields := range set.fields {
		for i, a := range fields {
			for _, b := range fields[i+1:] {
				if err := d.pair(a, b); err != nil {
					return err
				}
			}
		}
	}
	d.met = map[string]bool{}
	for i, a := range set.spreads {
		if err := d.against(set, a.name); err != nil {
			return err
		}
		for _, b := range set.spreads[i+1:] {
			if err := d.fragmentPair(a.name, b.name); err != nil {
				return err
			}
		}
	}
	return nil
}

// against compares fields with those of a fragment and of all that it spreads.
func (d *graphQLDocument) against(set *selectionSet, name string) error {
	f := d.fragments[name]
	if err := d.pay(costLook); err != nil || f == nil || d.met[name] {
		return err
	}
	d.met[name] = true
	if err := d.between(set, f); err != nil {
		return err
	}
	for _, s := range f.spreads {
		if err := d.against(set, s.name); err != nil {
			return err
		}
	}
	return nil
}

func (d *graphQLDocument) between(a, b *selectionSet) error {
	if err := d.look(a); err != nil {
		return err
	}
	if err := d.look(b); err != nil {
		return err
	}
	for name, fields := range a.fields {
		others := b.fields[name]
		if err := d.pay(costLook); err != nil {
			return err
		}
		for _, x := range fields {
			for _, y := range others {
				if err := d.pair(x, y); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// fragmentPair compares two fragments, once as such and once as of types that exclude each other.
func (d *graphQLDocument) fragmentPair(a, b string) error {
	x, y := d.fragments[a], d.fragments[b]
	if err := d.pay(2 * costLook); err != nil || x == nil || y == nil || x == y || d.compared[[2]*selectionSet{x, y}] {
		return err
	}
	d.compared[[2]*selectionSet{x, y}], d.compared[[2]*selectionSet{y, x}] = true, true
	before := d.cost
	if err := d.between(x, y); err != nil {
		return err
	}
	if err := d.pay(d.cost - before); err != nil {
		return err
	}
	for _, s := range y.spreads {
		if err := d.fragmentPair(a, s.name); err != nil {
			return err
		}
	}
	for _, s := range x.spreads {
		if err := d.fragmentPair(s.name, b); err != nil {
			return err
		}
	}
	return nil
}

func (d *graphQLDocument) pair(a, b *selection) error {
	if err := d.pay(costPair + a.tokens*b.tokens/2); err != nil {
		return err
	}
	empty := &selectionSet{}
	x, y := a.below, b.below
	if x == nil && y == nil {
		return nil
	}
	if x == nil {
		x = empty
	}
	if y == nil {
		y = empty
	}
	if err := d.between(x, y); err != nil {
		return err
	}
	for _, s := range y.spreads {
		d.met = map[string]bool{}
		if err := d.against(x, s.name); err != nil {
			return err
		}
	}
	for _, s := range x.spreads {
		d.met = map[string]bool{}
		if err := d.against(y, s.name); err != nil {
			return err
		}
	}
	for _, s := range x.spreads {
		for _, t := range y.spreads {
			if err := d.fragmentPair(s.name, t.name); err != nil {
				return err
			}
		}
	}
	return nil
}
