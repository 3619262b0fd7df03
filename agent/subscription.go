package agent

// Subscription is one caller's share of the agent. It is made by Agent.Subscribe.
type Subscription struct {
	view    func() (View, error)
	changed chan struct{}
	done    chan struct{}
}

// NewSubscription gives a subscription that shows what view gives, and a function that says that view would now give something
// else. It is for tests of the surfaces and for a source of identities other than an Agent. An error of view ends the subscription.
func NewSubscription(view func() (View, error)) (s *Subscription, notify func()) {
	s = &Subscription{view: view, changed: make(chan struct{}, 1), done: make(chan struct{})}
	return s, func() {}
}

// Changed receives after each change of what View gives, once for several changes that nobody looked at in between. The first
// View needs no waiting.
func (s *Subscription) Changed() <-chan struct{} { return s.changed }

// View is what the workload may hold now. It asks first whether the caller is still the process that was attested; if not, the
// subscription ends and the view is empty and not Known.
func (s *Subscription) View() View { return View{} }

// Done is closed when the subscription has ended: by Close, by its context, with the process or with the agent.
func (s *Subscription) Done() <-chan struct{} { return s.done }

// Err says why the subscription ended: nil before that and after Close, fault.Unavailable when the agent stops, fault.Denied when the
// process ended or is no longer what was attested.
func (s *Subscription) Err() error { return nil }

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() {}
