package authz

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/protobuf/encoding/protowire"
)

// IDHeader carries the decision id: to the upstream when allowed, to the client when denied.
const IDHeader = "x-writ-decision-id"

// ReasonHeader carries the reason to a denied client, where the set says so.
const ReasonHeader = "x-writ-reason"

// maxReason bounds what a policy's reason may add to headers and metadata.
const maxReason = 1024

// Field numbers of envoy.service.auth.v3 and what it embeds.
const (
	responseStatus, responseDenied, responseOK, responseMetadata = 1, 2, 3, 4
	deniedStatus, deniedHeaders, deniedBody                      = 1, 2, 3
	okHeaders, okRemove, okResponseHeaders                       = 2, 5, 6
	okSetQuery, okRemoveQuery                                    = 7, 8
	optionHeader, optionAppend, optionAction                     = 1, 2, 3
	pairName, pairValue                                          = 1, 2
	structFields, listValues                                     = 1, 1
	valueNull, valueNumber, valueString, valueBool               = 1, 2, 3, 4
	valueStruct, valueList                                       = 5, 6
)

type action = corev3.HeaderValueOption_HeaderAppendAction

const (
	overwrite = corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
	add       = corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD
	// appendToRequest is add as Envoy 1.40 takes it for a request's headers, of whose two fields for this it reads the older only.
	appendToRequest action = -1
)

// Encode gives the wire bytes of d's CheckResponse. An error means that d holds a value that no proxy may be handed; a
// Decision that holds nothing of the policy always encodes.
func Encode(d Decision, id string) ([]byte, error) {
	if err := usable(d); err != nil {
		return nil, err
	}
	out := make([]byte, 0, 512)
	if d.Outcome == Allowed {
		out = message(out, responseStatus, func(b []byte) []byte { return b })
		out = message(out, responseOK, func(b []byte) []byte { return appendOK(b, d, id) })
	} else {
		out = message(out, responseStatus, func(b []byte) []byte { return number(b, 1, uint64(code.Code_PERMISSION_DENIED)) })
		out = message(out, responseDenied, func(b []byte) []byte { return appendDenied(b, d, id) })
	}
	out = message(out, responseMetadata, func(b []byte) []byte { return appendMetadata(b, d, id) })
	if len(out) > maxAnswer {
		return nil, fmt.Errorf("an answer of %d bytes is unusable", len(out))
	}
	return out, nil
}

func appendOK(b []byte, d Decision, id string) []byte {
	b = appendHeaders(b, okHeaders, d.Headers, overwrite, appendToRequest)
	b = appendHeader(b, okHeaders, Header{IDHeader, id}, overwrite)
	for _, name := range d.RemoveHeaders {
		if !ours(name) { // Envoy removes after it sets
			b = text(b, okRemove, name)
		}
	}
	b = appendHeaders(b, okResponseHeaders, d.ResponseHeaders, add, add)
	for _, p := range d.SetQuery {
		b = message(b, okSetQuery, func(b []byte) []byte {
			return text(text(b, pairName, escapeQuery(p.Name, "=")), pairValue, escapeQuery(p.Value, ""))
		})
	}
	for _, name := range removedQuery(d) {
		b = text(b, okRemoveQuery, name)
	}
	return b
}

func appendDenied(b []byte, d Decision, id string) []byte {
	status, body := d.Status, d.Body
	switch {
	case d.Outcome == Refused:
		status, body = int(typev3.StatusCode_BadRequest), "request refused\n"
	case d.Outcome != Denied:
		status, body = int(typev3.StatusCode_ServiceUnavailable), "no decision could be made\n"
	case status == 0:
		status = int(typev3.StatusCode_Forbidden)
	}
	b = message(b, deniedStatus, func(b []byte) []byte { return number(b, 1, uint64(status)) })
	if d.Outcome == Denied {
		b = appendHeaders(b, deniedHeaders, d.Headers, overwrite, add)
	}
	b = appendHeader(b, deniedHeaders, Header{IDHeader, id}, overwrite)
	if d.ShowReason && d.Reason != "" {
		b = appendHeader(b, deniedHeaders, Header{ReasonHeader, oneLine(d.Reason)}, overwrite)
	}
	if body != "" && !bodiless(status) {
		b = text(b, deniedBody, body)
	}
	return b
}

// bodiless says whether an answer has no body, RFC 9110 sections 15.3.5, 15.3.6 and 15.4.5: a proxy that sends one nevertheless has
// its client read it as the beginning of the next answer.
func bodiless(status int) bool {
	return status == http.StatusNoContent || status == http.StatusResetContent || status == http.StatusNotModified
}

// appendHeaders sends several values of one name so that all arrive: the first as first says, the others as rest does. Our own
// headers are not a policy's to set.
func appendHeaders(b []byte, field protowire.Number, headers []Header, first, rest action) []byte {
	for i, h := range headers {
		how := first
		if slices.ContainsFunc(headers[:i], func(before Header) bool { return strings.EqualFold(before.Name, h.Name) }) {
			how = rest
		}
		if !ours(h.Name) {
			b = appendHeader(b, field, h, how)
		}
	}
	return b
}

func appendHeader(b []byte, field protowire.Number, h Header, how action) []byte {
	return message(b, field, func(b []byte) []byte {
		b = message(b, optionHeader, func(b []byte) []byte { return text(text(b, pairName, h.Name), pairValue, h.Value) })
		if how == appendToRequest {
			b = message(b, optionAppend, func(b []byte) []byte { return number(b, 1, 1) })
			how = add
		}
		return number(b, optionAction, uint64(how))
	})
}

func ours(name string) bool {
	return strings.EqualFold(name, IDHeader) || strings.EqualFold(name, ReasonHeader)
}

// appendMetadata puts ours last: of two equal keys of a map, readers of protobuf take the last.
func appendMetadata(b []byte, d Decision, id string) []byte {
	b = append(b, d.Metadata...)
	b = textEntry(b, "decision_id", id)
	return entry(b, "writ", func(b []byte) []byte {
		return message(b, valueStruct, func(b []byte) []byte {
			b = textEntry(b, "revision", d.Revision)
			b = textEntry(b, "rule", oneLine(d.Rule))
			return textEntry(b, "reason", oneLine(d.Reason))
		})
	})
}

func textEntry(b []byte, key, value string) []byte {
	if value == "" {
		return b
	}
	return entry(b, key, func(b []byte) []byte { return text(b, valueString, value) })
}

func entry(b []byte, key string, value func([]byte) []byte) []byte {
	return message(b, structFields, func(b []byte) []byte { return message(text(b, pairName, key), pairValue, value) })
}

// message appends a nested message: its length is known only after its content, so that is moved when it takes more than a byte.
func message(b []byte, field protowire.Number, content func([]byte) []byte) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	start := len(b)
	b = content(append(b, 0))
	size := len(b) - start - 1
	if more := protowire.SizeVarint(uint64(size)) - 1; more > 0 {
		b = append(b, make([]byte, more)...)
		copy(b[start+1+more:], b[start+1:start+1+size])
	}
	protowire.AppendVarint(b[:start], uint64(size))
	return b
}

func text(b []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

func number(b []byte, field protowire.Number, n uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), n)
}

// oneLine makes a text fit for a header and a terminal: one line of printable characters, of bounded length.
func oneLine(s string) string {
	if len(s) > maxReason {
		s = s[:maxReason]
	}
	return strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s), "")
}
