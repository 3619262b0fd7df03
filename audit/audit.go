// Package audit is the evidence that stays: one record per attestation, issuance, decision and admin act. Start with Issuance;
// Row is how a record stands in the store and in a file, Lines is the file, Ring carries decisions off the request path.
//
// Attestations, issuances and admin acts are rows of the store, written in the transaction that they are about; files are fed
// from the rows. Decisions go to their file alone. No record holds a key, a token or a signature.
package audit

import (
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// The kinds of a Row.
const (
	KindIssuance    = "issuance"
	KindAttestation = "attestation"
	KindAdmin       = "admin"
)

// Row is a record as it stands in the store and as one line of a file.
type Row struct {
	ID     uint64          `json:"id"` // goes up; never given twice
	Time   time.Time       `json:"time"`
	Server string          `json:"server"`
	Kind   string          `json:"kind"`
	Record json.RawMessage `json:"record"` // an Issuance, an Attestation or an Admin
}

// Digest is a SHA-256, written in lower-case hex.
type Digest [32]byte

// MarshalText is lower-case hex.
func (d Digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText reads 64 hex digits.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(d)) {
		return hex.ErrLength
	}
	_, err := hex.Decode(d[:], text)
	return err
}

// Issuance is the intent to sign one certificate or token, recorded before the key moves. One without is not ours.
type Issuance struct {
	Time           time.Time `json:"time"`
	Server         string    `json:"server"`
	Serial         string    `json:"serial"` // lower-case hex; unique in the store. A token does not hold its own: Draft finds it
	SPIFFEID       string    `json:"spiffe_id"`
	Entry          string    `json:"entry,omitempty"` // empty for what has no entry: agent and server SVIDs
	EntryRevision  uint64    `json:"entry_revision,omitempty"`
	Node           string    `json:"node,omitempty"`            // the agent ID; empty for server SVIDs
	NodeGeneration uint64    `json:"node_generation,omitempty"` // as it was read; 0: whichever
	AuthorityID    string    `json:"authority_id"`
	Profile        string    `json:"profile"`
	Audience       []string  `json:"audience,omitempty"` // of a token
	NotBefore      time.Time `json:"not_before"`
	NotAfter       time.Time `json:"not_after"`
	Draft          Digest    `json:"draft"` // of the exact to-be-signed certificate; of a token's header and claims as they stand in it
	RequestID      string    `json:"request_id,omitempty"`
}

// The outcomes of an Attestation.
const (
	Admitted = "admitted" // a node came, or proved its evidence anew
	Renewed  = "renewed"  // by its node key
	Locked   = "locked"   // two copies of one data directory: nothing more is issued
)

// Attestation is what a node proved, and what came of it. Strangers that were refused are counted by the server, not recorded.
type Attestation struct {
	Time       time.Time `json:"time"`
	Server     string    `json:"server"`
	AgentID    string    `json:"agent_id"`
	Method     string    `json:"method"` // methods joined by plus signs; "renewal"
	Selectors  []string  `json:"selectors,omitempty"`
	Assurance  uint8     `json:"assurance"`
	Evidence   Digest    `json:"evidence"` // digest of what was judged
	NodeKey    Digest    `json:"node_key"` // SHA-256 of the node key's PKIX DER
	Generation uint64    `json:"generation"`
	From       string    `json:"from,omitempty"` // the address
	Outcome    string    `json:"outcome"`
	RequestID  string    `json:"request_id,omitempty"`
}

// The acts of an Admin.
const (
	ActApply = "entry apply"
	ActToken = "token create"
	ActBan   = "node ban"
	ActEvict = "node evict"
)

// Admin is one act of an operator. Whoever serves the call names the Principal and the RequestID; the store fills the rest.
type Admin struct {
	Time      time.Time `json:"time"`
	Server    string    `json:"server"`
	Principal string    `json:"principal"` // uid:1000, or a SPIFFE ID
	Act       string    `json:"act"`
	Subject   string    `json:"subject,omitempty"` // what it was done to: owner, token id, agent ID, selector
	Changes   []string  `json:"changes,omitempty"` // "created orders", "banned spiffe://..."
	Reason    string    `json:"reason,omitempty"`  // as the operator gave it
	Revision  uint64    `json:"revision,omitempty"`
	RequestID string    `json:"request_id,omitempty"`
}

// Decision is the record of one decided request. Its JSON names are part of the product.
type Decision struct {
	Time        time.Time `json:"time"`
	DecisionID  string    `json:"decision_id"`
	Set         string    `json:"set,omitempty"` // name of the policy set that decided
	Revision    string    `json:"revision"`      // of the policy set
	Source      string    `json:"source"`        // the principal that asks; empty where none is proved
	Destination string    `json:"destination"`   // likewise
	Method      string    `json:"method"`
	Path        string    `json:"path"` // raw, without its query
	Host        string    `json:"host"`
	Allow       bool      `json:"allow"`
	Reason      string    `json:"reason"` // never empty on a denial by failure
	Rule        string    `json:"rule"`
	Shadow      bool      `json:"shadow"`
	ElapsedUS   int64     `json:"elapsed_us"`
	Input       any       `json:"input,omitempty"`      // what the policy reads, masked; a Lazy is asked for it
	Outcome     string    `json:"outcome"`              // allowed, denied, refused (400) or failed (503)
	Erased      []string  `json:"erased,omitempty"`     // what the set's own masking rules took out, as JSON pointers
	Masked      []string  `json:"masked,omitempty"`     // what they put another value for
	MaskError   string    `json:"mask_error,omitempty"` // the rules failed: nothing of the request is shown
	TraceID     string    `json:"trace_id,omitempty"`   // of the trace that the proxy counts the request to; 32 hex digits

	Weight int `json:"-"` // of the ring's size, about a KiB each; 0: one
}

// Lazy is an Input that is made when the record is written, off the request's path. It must not change once it is recorded.
type Lazy interface {
	Render() (Rendered, error)
}

// Rendered is what masking left of an input.
type Rendered struct {
	Input          json.RawMessage
	Erased, Masked []string
	Failed         string // why the masking rules gave nothing to go by
}

// withheld stands where masking took a value out of a record's own fields.
const withheld = "[masked]"

// rendered is the record as it is written. What masking hides of the input, the fields that repeat it do not show either.
func (d *Decision) rendered() *Decision {
	lazy, ok := d.Input.(Lazy)
	if !ok {
		return d
	}
	out := *d
	r, err := lazy.Render()
	if err != nil {
		r = Rendered{Erased: []string{"/input"}, Failed: err.Error()}
	}
	out.Input, out.Erased, out.Masked, out.MaskError = nil, r.Erased, r.Masked, r.Failed
	if len(r.Input) > 0 {
		out.Input = r.Input
	}
	if len(r.Erased) == 0 && len(r.Masked) == 0 {
		return &out
	}
	for at, field := range map[string]*string{
		"/input/attributes/source/principal":      &out.Source,
		"/input/attributes/destination/principal": &out.Destination,
		"/input/attributes/request/http/method":   &out.Method,
		"/input/attributes/request/http/path":     &out.Path,
		"/input/attributes/request/http/host":     &out.Host,
		"/result/reason":                          &out.Reason,
	} {
		if *field != "" && (covers(r.Erased, at) || covers(r.Masked, at)) {
			*field = withheld
		}
	}
	return &out
}

// covers says whether one of the pointers is at, or leads to it.
func covers(pointers []string, at string) bool {
	return slices.ContainsFunc(pointers, func(p string) bool { return at == p || strings.HasPrefix(at, p+"/") })
}
