package policy_test

import (
	"encoding/json"
	"flag"
	"os"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/writ-dev/writ/policies"
)

const schemaFile = "../../policies/schema/input.json"

// TestInputSchemaCoversTheMessage keeps the schema at the message of go.mod's Envoy protos: a field that is missing there would
// make a good policy a compile error. Run with -update after they moved.
func TestInputSchemaCoversTheMessage(t *testing.T) {
	want := inputSchema()
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(schemaFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(want), string(policies.InputSchema())); diff != "" {
		t.Error("policies/schema/input.json is not what the message has (-want +got):\n", diff)
	}
}

type object = map[string]any

func inputSchema() []byte {
	text := object{"type": "string"}
	list := func(of object) object { return object{"type": "array", "items": of} }
	peer := object{"type": "object", "properties": object{"spiffe_id": text, "trust_domain": text, "path": list(text),
		"selectors": list(text), "entry": text, "node": text, "hint": text, "assurance": object{"type": "integer"},
		"certificate": object{"type": "boolean"}}}
	root := messageSchema((&authv3.CheckRequest{}).ProtoReflect().Descriptor())
	root["$schema"] = "http://json-schema.org/draft-07/schema#"
	root["title"] = "What a policy gets as input"
	for key, schema := range map[string]object{
		"parsed_path": list(text), "parsed_query": {"type": "object"}, "parsed_body": {}, "truncated_body": {"type": "boolean"},
		"version": {"type": "object", "properties": object{"ext_authz": text, "encoding": text}}, "source_principal": text,
		"source": peer, "destination": peer,
		"token": {"type": "object", "properties": object{"spiffe_id": text, "trust_domain": text, "path": list(text), "audience": list(text),
			"expires": object{"type": "integer"}}},
	} {
		root["properties"].(object)[key] = schema
	}
	out, _ := json.MarshalIndent(root, "", "  ")
	return append(out, '\n')
}

func messageSchema(d protoreflect.MessageDescriptor) object {
	switch d.FullName() {
	case "google.protobuf.Timestamp":
		return object{"type": "string"}
	case "google.protobuf.Struct", "google.protobuf.Any":
		return object{"type": "object"}
	}
	properties := object{}
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		properties[f.JSONName()] = fieldSchema(f)
	}
	return object{"type": "object", "properties": properties}
}

func fieldSchema(f protoreflect.FieldDescriptor) object {
	one := object{"type": "string"} // as protojson writes bytes, enums and 64-bit numbers too
	switch {
	case f.IsMap():
		return object{"type": "object"}
	case f.Kind() == protoreflect.MessageKind:
		one = messageSchema(f.Message())
	case f.Kind() == protoreflect.BoolKind:
		one = object{"type": "boolean"}
	case f.Kind() == protoreflect.Uint32Kind || f.Kind() == protoreflect.Int32Kind:
		one = object{"type": "integer"}
	}
	if f.IsList() {
		return object{"type": "array", "items": one}
	}
	return one
}
