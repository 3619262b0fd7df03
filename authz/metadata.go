package authz

import (
	"errors"
	"math"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// maxNesting is how many messages may stand in one another in an answer. Readers of protobuf give up below the hundredth, and a
// proxy takes an answer that it cannot read for a failed call, which its failure_mode_allow lets pass. The ten between are for the
// messages in which filters and logs of a proxy pass metadata on.
const maxNesting = 90

var (
	errNesting  = errors.New("dynamic_metadata is nested too deep for a proxy to read")
	errMetadata = errors.New("dynamic_metadata is no object of JSON values")
)

// A part is one of the messages that google.protobuf.Struct is made of, or a value in them.
type part uint8

const (
	noPart part = iota
	structPart
	entryPart
	valuePart
	listPart
	textPart
	doublePart
	wordPart // null, true, false
)

// checkMetadata walks the wire bytes of a Struct: every reader of protobuf must be able to, whatever a client had put into it.
func checkMetadata(b []byte) error {
	if len(b) > maxAnswer {
		return errors.New("dynamic_metadata is too large")
	}
	return structPart.check(b, maxNesting-1)
}

// check walks one message; left is how many may stand in it in one another.
func (p part) check(b []byte, left int) error {
	for len(b) > 0 {
		field, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errMetadata
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(field, wire, b); n < 0 {
			return errMetadata
		}
		if err := p.field(field, wire).value(b[:n], left); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (p part) field(field protowire.Number, wire protowire.Type) part {
	type place struct {
		in    part
		field protowire.Number
		wire  protowire.Type
	}
	switch (place{p, field, wire}) {
	case place{structPart, structFields, protowire.BytesType}:
		return entryPart
	case place{entryPart, pairName, protowire.BytesType}, place{valuePart, valueString, protowire.BytesType}:
		return textPart
	case place{entryPart, pairValue, protowire.BytesType}, place{listPart, listValues, protowire.BytesType}:
		return valuePart
	case place{valuePart, valueNull, protowire.VarintType}, place{valuePart, valueBool, protowire.VarintType}:
		return wordPart
	case place{valuePart, valueNumber, protowire.Fixed64Type}:
		return doublePart
	case place{valuePart, valueStruct, protowire.BytesType}:
		return structPart
	case place{valuePart, valueList, protowire.BytesType}:
		return listPart
	}
	return noPart
}

// value checks the content of a field, of which it is known that it is whole.
func (p part) value(b []byte, left int) error {
	switch p {
	case noPart:
		return errMetadata
	case wordPart:
		return nil
	case doublePart:
		bits, _ := protowire.ConsumeFixed64(b)
		if n := math.Float64frombits(bits); math.IsNaN(n) || math.IsInf(n, 0) {
			return errMetadata
		}
		return nil
	}
	content, _ := protowire.ConsumeBytes(b)
	switch {
	case p == textPart && !utf8.Valid(content):
		return errMetadata
	case p == textPart:
		return nil
	case left == 0:
		return errNesting
	}
	return p.check(content, left-1)
}
