// Package authz answers Envoy's ext_authz Check. Start with Decider, which judges a request, and Decision, its answer as a plain
// value; Encode turns one into CheckResponse bytes, CheckPath is the path rule, and Server joins them to gRPC.
//
// Bytes come in and bytes go out: nothing below the transport knows of one. A failure is an answer too, denied with 503, because a
// gRPC error would leave the choice to the proxy's failure_mode_allow.
package authz

import "context"

// A Decider judges one request: the wire bytes of an envoy.service.auth.v3.CheckRequest, for the policy set of that name (empty:
// the only one). It keeps nothing of request after it returned, gives up when ctx ends, and is safe to call concurrently.
type Decider interface {
	Decide(ctx context.Context, set string, request []byte) Decision
}

// Outcome is what became of a request. The zero Outcome denies.
type Outcome uint8

// The outcomes.
const (
	Failed    Outcome = iota // no decision could be made: denied, 503
	Allowed                  // the policy lets it pass
	Denied                   // the policy does not, or says nothing
	Refused                  // the request cannot be read in one way only: denied, 400
	Malformed                // the bytes are no CheckRequest: the one outcome without a CheckResponse
)

// String names the outcome as metrics show it.
func (o Outcome) String() string {
	names := [...]string{"failed", "allowed", "denied", "refused", "malformed"}
	if int(o) < len(names) {
		return names[o]
	}
	return names[Failed]
}

// Cause is what led to an outcome, from a closed list that metrics can count; Decision.Reason says it in words. The zero Cause is
// what should not happen.
type Cause uint8

// The causes.
const (
	Internal   Cause = iota // a fault of ours
	ByPolicy                // a rule allows or denies it
	Undefined               // the policy says nothing
	BadMessage              // the bytes are no CheckRequest
	BadTarget               // path or query
	BadMethod               // a header names another method
	BadBody                 // a body that the policy reads does not parse
	TooLarge                // the request is larger than its set takes
	TimedOut                // out of time
	CallerLeft              // the caller went away
	OverMemory              // the policy takes more memory than its set allows
	Evaluation              // the policy failed
	Unusable                // its result cannot be sent
	NoSet                   // no set is chosen for such a request
	NoPolicy                // the set is not live
	Shed                    // more requests than can be decided in time
	Unrecorded              // no room for a required record
	causes
)

// String names the cause as metrics show it.
func (c Cause) String() string {
	names := [causes]string{"internal", "policy", "undefined", "message", "target", "method", "body", "size", "timeout", "caller_left",
		"memory", "evaluation", "unusable", "no_set", "no_policy", "shed", "unrecorded"}
	if c < causes {
		return names[c]
	}
	return names[Internal]
}

// Decision is the answer to one request. The zero Decision denies with 503.
type Decision struct {
	Outcome    Outcome
	Cause      Cause
	Set        string // name of the policy set that decided; empty: none was found
	Status     int    // of a denial by policy; 0: 403
	Reason     string // for the record; never empty on Refused and Failed
	ShowReason bool   // the set lets a denied client see Reason
	Rule       string
	Revision   string // of the policy set

	Headers         []Header // allowed: to the upstream; denied: to the client
	RemoveHeaders   []string // allowed only, as are all below but Body
	ResponseHeaders []Header // to the client, with the upstream's answer
	SetQuery        []Parameter
	RemoveQuery     []string
	Body            string // denied only
	Metadata        []byte // dynamic metadata: the wire bytes of a google.protobuf.Struct

	Request Request // whatever could be read of it
	Input   any     // what the policy read, masked, for the record; it must not change any more
	Masked  bool    // the set masks its records by rules of its own: spans leave Request out
}

// Header is one header line. Several of one name all reach the other side.
type Header struct{ Name, Value string }

// Parameter is one parameter of a query.
type Parameter struct{ Name, Value string }

// Request is what every record says of a request.
type Request struct {
	Method      string
	Path        string // raw, with its query
	Host        string
	Source      string // the principal as the proxy gives it
	Destination string
}

// Fail is the decision that could not be made.
func Fail(c Cause, reason string) Decision {
	return Decision{Outcome: Failed, Cause: c, Reason: reason}
}

// Refuse is the answer to a request that two readers may read differently.
func Refuse(c Cause, reason string) Decision {
	return Decision{Outcome: Refused, Cause: c, Reason: reason}
}
