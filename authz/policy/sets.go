package policy

import (
	"context"
	"errors"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/writ-dev/writ/authz"
)

// Sets is several policy sets, each of which decides the requests that are for it. A request that is for none is denied with 503.
type Sets struct {
	chooser *chooser
	live    map[string]*Live
	checker *reader // finds malformed requests that are for no set
}

// NewSets gives an authz.Decider over sets that are followed, by name, and the requests that each of them is for. It owns them.
func NewSets(live map[string]*Live, choices map[string]Choice) (*Sets, error) {
	c, err := newChooser(choices)
	if err != nil {
		return nil, err
	}
	if len(live) == 0 || !slices.Equal(slices.Sorted(maps.Keys(live)), slices.Sorted(maps.Keys(choices))) {
		return nil, errors.New("sets and choices have different names")
	}
	s := &Sets{chooser: c, live: live}
	for _, l := range live {
		s.checker = l.checker
	}
	return s, nil
}

// Watch follows the folders of all sets until ctx ends.
func (s *Sets) Watch(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range s.live {
		g.Go(func() error { return l.Watch(ctx) })
	}
	return g.Wait()
}

// Decide implements authz.Decider: by the set of that name, or else by the one that is chosen for the request.
func (s *Sets) Decide(ctx context.Context, set string, request []byte) authz.Decision {
	g := look(request)
	why := "there is no policy set of that name"
	if set == "" {
		set, why = s.chooser.choose(g)
	}
	if l := s.live[set]; l != nil {
		return l.decide(ctx, request, g)
	}
	if _, err := s.checker.attributes(request); err != nil {
		return malformed(err)
	}
	d := authz.Fail(authz.NoSet, why)
	d.Request = g.Request
	return d
}

// Each visits the sets in the order of their names.
func (s *Sets) Each(visit func(name string, l *Live)) {
	for _, name := range slices.Sorted(maps.Keys(s.live)) {
		visit(name, s.live[name])
	}
}
