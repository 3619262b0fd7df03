package agent

import (
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/internal/fault"
)

// Remedy is what gives a process an identity that has none.
type Remedy struct {
	Fix string   `json:"fix"`           // a command that does it, or what is to be done before one can
	Or  string   `json:"or,omitempty"`  // another way
	Why []string `json:"why,omitempty"` // why it is not simply the entry that is suggested
}

// remedy tries what is to be typed before it says so: whoever follows it must not be refused.
func (a *Agent) remedy(s Sighting) Remedy {
	if over := a.cache.explain(s.Selectors, Status{}, a.now()); len(over) > 0 {
		return Remedy{Fix: "apply it with a later `expires`, or without"}
	}
	var r Remedy
	everyNode, flags := false, ""
	_, err := a.Suggest(s, spiffeid.ID{}, everyNode)
	if f := faultOf(err); f != nil && f.Code == fault.NodeIndistinct {
		r.Why = append(r.Why, f.What+", so the entry would hold on every node")
		r.Or = "join the node anew with a token that names it: writ token create --node NAME"
		everyNode, flags = true, " --any"
		_, err = a.Suggest(s, spiffeid.ID{}, everyNode)
	}
	if f := faultOf(err); f != nil && f.Kind == fault.Conflict {
		r.Why = append(r.Why, f.What)
		flags += " --path /NAME"
		_, err = a.Suggest(s, placeholder(a.node.Domain()), everyNode)
	}
	if f := faultOf(err); f != nil {
		return Remedy{Fix: f.Fix, Why: append([]string{f.What}, f.Why...)}
	}
	r.Fix = fmt.Sprintf("writ entry suggest --pid %d%s | writ entry apply -f -", s.Process.PID, flags)
	return r
}

// placeholder is an ID that somebody might name.
func placeholder(domain spiffeid.TrustDomain) spiffeid.ID {
	id, _ := spiffeid.FromSegments(domain, "NAME") // letters are always taken
	return id
}

// faultOf is nil where there is none; what has no kind is said as it is.
func faultOf(err error) *fault.Error {
	var f *fault.Error
	if err != nil && !errors.As(err, &f) {
		f = fault.New(fault.Internal, nil, err.Error())
	}
	return f
}
