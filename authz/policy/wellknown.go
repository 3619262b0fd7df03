package policy

import (
	"encoding/base64"
	"math"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// wholes gives the types that protojson does not write field by field.
func wholes(name protoreflect.FullName) func(raw []byte) (ast.Value, error) {
	switch name {
	case "google.protobuf.Timestamp":
		return readTimestamp
	case "google.protobuf.Struct":
		return readStruct
	case "google.protobuf.Any":
		return readAny
	}
	return nil
}

// readTimestamp writes RFC 3339 with as many digits as are needed, in threes. A time that has no such form is left out.
func readTimestamp(raw []byte) (ast.Value, error) {
	var t timestamppb.Timestamp
	if err := proto.Unmarshal(raw, &t); err != nil {
		return nil, errWire
	}
	if t.CheckValid() != nil {
		return nil, nil
	}
	s := t.AsTime().Format("2006-01-02T15:04:05.000000000")
	for strings.HasSuffix(s, "000") && strings.Contains(s, ".") {
		s = strings.TrimSuffix(strings.TrimSuffix(s, "000"), ".")
	}
	return ast.String(s + "Z"), nil
}

func readStruct(raw []byte) (ast.Value, error) {
	var s structpb.Struct
	if err := proto.Unmarshal(raw, &s); err != nil {
		return nil, errWire
	}
	return structObject(&s), nil
}

func structObject(s *structpb.Struct) ast.Value {
	pairs := make([][2]*ast.Term, 0, len(s.GetFields()))
	for key, v := range s.GetFields() {
		pairs = append(pairs, [2]*ast.Term{ast.StringTerm(key), ast.NewTerm(structValue(v))})
	}
	return ast.NewObject(pairs...)
}

// structValue reads what JSON cannot say, such as NaN, as null.
func structValue(v *structpb.Value) ast.Value {
	switch kind := v.GetKind().(type) {
	case *structpb.Value_NumberValue:
		if n := kind.NumberValue; !math.IsNaN(n) && !math.IsInf(n, 0) {
			return ast.FloatNumberTerm(n).Value
		}
	case *structpb.Value_StringValue:
		return ast.String(kind.StringValue)
	case *structpb.Value_BoolValue:
		return ast.Boolean(kind.BoolValue)
	case *structpb.Value_StructValue:
		return structObject(kind.StructValue)
	case *structpb.Value_ListValue:
		terms := make([]*ast.Term, 0, len(kind.ListValue.GetValues()))
		for _, element := range kind.ListValue.GetValues() {
			terms = append(terms, ast.NewTerm(structValue(element)))
		}
		return ast.NewArray(terms...)
	}
	return ast.Null{}
}

// readAny writes types that this binary knows as protojson does, and of others the type's name and the bytes.
func readAny(raw []byte) (ast.Value, error) {
	var a anypb.Any
	if err := proto.Unmarshal(raw, &a); err != nil {
		return nil, errWire
	}
	if text, err := protojson.Marshal(&a); err == nil {
		return ast.ValueFromReader(strings.NewReader(string(text)))
	}
	return ast.NewObject([2]*ast.Term{ast.StringTerm("@type"), ast.StringTerm(a.GetTypeUrl())},
		[2]*ast.Term{ast.StringTerm("value"), ast.StringTerm(base64.StdEncoding.EncodeToString(a.GetValue()))}), nil
}
