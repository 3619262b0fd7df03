// Package fault is the closed list of failure kinds that both ends of a connection share, the gRPC code of each, and the
// P codes by which a person looks an explanation up. Start with New; KindOf and Status are what surfaces call.
//
// A kind says what the caller may do about a failure and picks the wire code; a code (P2004) picks the explanation. An error
// without a kind is Internal: its text is logged and never sent.
package fault

import (
	"context"
	"errors"
	"strings"
)

// Kind says what a failure means to whoever caused it. The zero Kind is Internal.
type Kind uint8

const (
	Internal        Kind = iota // ours to mend; the caller learns only that
	Invalid                     // the request itself is wrong; the same again fails again
	Unauthenticated             // the caller did not prove who it is
	Denied                      // the caller is known and may not
	NotFound                    // what was named does not exist
	Conflict                    // what was to be made exists already
	Stale                       // it was used up or changed meanwhile
	Throttled                   // too much for now; try again later
	Unavailable                 // nobody can answer right now; try again
	Unreachable                 // the other side did not answer; told apart from Unavailable for the exit code only
)

var names = [...]string{"internal", "invalid", "unauthenticated", "denied", "not found", "conflict", "stale", "throttled",
	"unavailable", "unreachable"}

// String names the kind in lower case, as logs and metrics show it.
func (k Kind) String() string {
	if int(k) < len(names) {
		return names[k]
	}
	return "internal"
}

// KindNamed is the other end of String; a name that is none is Internal.
func KindNamed(name string) Kind {
	for k, known := range names {
		if name == known {
			return Kind(k)
		}
	}
	return Internal
}

// Error is a failure of a known kind. What is a plain sentence that may be shown to whoever caused it; the cause is for the log.
type Error struct {
	Kind Kind
	Code Code     // the P code, empty where there is no page about it
	What string   // what failed, lower case, no period; safe to send to the caller
	Why  []string // the facts that led there, one line each; safe to send to the caller
	Fix  string   // the command or the edit that mends it

	cause error
}

// New gives an error of a kind. The cause may be nil; it is kept for errors.Is and the log and never sent.
func New(kind Kind, cause error, what string) *Error {
	return &Error{Kind: kind, What: what, cause: cause}
}

// With sets the P code and the fix, and returns the same error.
func (e *Error) With(code Code, fix string) *Error {
	e.Code, e.Fix = code, fix
	return e
}

// Because adds lines of explanation, and returns the same error.
func (e *Error) Because(why ...string) *Error {
	e.Why = append(e.Why, why...)
	return e
}

// Error is the whole chain on one line, for logs.
func (e *Error) Error() string {
	s := e.What
	if len(e.Why) > 0 {
		s += " (" + strings.Join(e.Why, "; ") + ")"
	}
	if e.cause != nil {
		s += ": " + e.cause.Error()
	}
	return s
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.cause }

// KindOf gives the kind of the outermost Error in err's chain, Internal where there is none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// Is says whether err is a failure of that kind.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }

// cancelled says that the caller went away or ran out of time: no failure of ours.
func cancelled(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
