package policy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// services are the methods whose requests a set can read: those of its descriptors. nil has none.
type services struct {
	files *protoregistry.Files
	types *dynamicpb.Types
}

// isDescriptor says whether a file of a set may be one of its descriptors, by the names that compilers' users give them.
func isDescriptor(name string) bool {
	return slices.Contains([]string{".pb", ".binpb", ".protoset", ".desc"}, path.Ext(name))
}

// readServices reads the FileDescriptorSets that policy.yaml names. A file that two of them hold must be the same in both.
func readServices(s *snapshot, m manifest) (*services, error) {
	if len(m.Descriptors) == 0 {
		return nil, nil
	}
	var all descriptorpb.FileDescriptorSet
	known := map[string]*descriptorpb.FileDescriptorProto{}
	for _, name := range m.Descriptors {
		content, ok := s.files[path.Clean(name)]
		if !ok || !isDescriptor(name) {
			return nil, fmt.Errorf("policy.yaml: descriptors: no file %s in the folder that ends in .pb, .binpb, .protoset or .desc", name)
		}
		var one descriptorpb.FileDescriptorSet
		if err := proto.Unmarshal(content, &one); err != nil || len(one.GetFile()) == 0 {
			return nil, fmt.Errorf("%s: no FileDescriptorSet", name)
		}
		for _, f := range one.GetFile() {
			if before, again := known[f.GetName()]; again && !proto.Equal(before, f) {
				return nil, fmt.Errorf("%s: %s is another file in another descriptor set", name, f.GetName())
			} else if !again {
				known[f.GetName()] = f
				all.File = append(all.File, f)
			}
		}
	}
	files, err := protodesc.NewFiles(&all)
	if err != nil {
		return nil, fmt.Errorf("policy.yaml: descriptors: %w (compile them with their imports)", err)
	}
	return &services{files, dynamicpb.NewTypes(files)}, nil
}

// grpcBody reads the one message of a unary call. null is a call that the descriptors do not know as unary.
func (g *glance) grpcBody(wanted bool, raw []byte, target string, s *services, most int) (ast.Value, bool, error) {
	if g.partial() {
		return ast.Null{}, true, nil
	}
	if s == nil {
		return ast.Null{}, false, nil
	}
	segments := strings.Split(strings.TrimLeft(target, "/"), "/")
	if len(segments) != 2 {
		return nil, false, errors.New("the path of a gRPC call is not /service/method")
	}
	content, packed, rest, err := frame(raw)
	switch {
	case err != nil:
		return nil, false, err
	case content == nil:
		return ast.Null{}, true, nil
	}
	input := s.input(segments[0], segments[1])
	switch {
	case input == nil || !wanted:
		return ast.Null{}, false, nil
	case len(rest) > 0:
		return nil, false, errors.New("a unary gRPC call has more than one message")
	case !plainGRPC(g.header("content-type")):
		return nil, false, errors.New("gRPC in an encoding that is not read")
	}
	if packed {
		if g.header("grpc-encoding") != "gzip" {
			return nil, false, errors.New("the gRPC message has a grpc-encoding that is not read")
		}
		if content, err = gunzip(content, most); err != nil {
			return nil, false, err
		}
	}
	if len(content) > most {
		return nil, false, errBodySize
	}
	v, err := s.read(input, content)
	return v, false, err
}

// frame splits off the first message: a flag, its length in four bytes, its bytes. Content is nil where the body ends before it.
func frame(raw []byte) (content []byte, packed bool, rest []byte, err error) {
	if len(raw) < 5 || raw[0] > 1 {
		return nil, false, nil, errors.New("the body is no gRPC message")
	}
	size := uint64(binary.BigEndian.Uint32(raw[1:5]))
	if size > uint64(len(raw)-5) {
		return nil, false, nil, nil
	}
	return raw[5 : 5+size : 5+size], raw[0] == 1, raw[5+size:], nil
}

// plainGRPC says whether messages are protobuf's bytes.
func plainGRPC(contentType string) bool {
	kind, _, _ := strings.Cut(strings.ToLower(contentType), ";")
	return slices.Contains([]string{"application/grpc", "application/grpc+proto", "application/grpc-web", "application/grpc-web+proto"},
		strings.TrimSpace(kind))
}

// input is the message type that a unary method takes; nil where there is no such method.
func (s *services) input(service, method string) protoreflect.MessageDescriptor {
	found, err := s.files.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return nil
	}
	known, ok := found.(protoreflect.ServiceDescriptor)
	if !ok {
		return nil
	}
	m := known.Methods().ByName(protoreflect.Name(method))
	if m == nil || m.IsStreamingClient() {
		return nil
	}
	return m.Input()
}

// read writes a message as protojson does.
func (s *services) read(of protoreflect.MessageDescriptor, content []byte) (ast.Value, error) {
	m := dynamicpb.NewMessage(of)
	if err := (proto.UnmarshalOptions{Resolver: s.types, RecursionLimit: maxNested}).Unmarshal(content, m); err != nil {
		return nil, fmt.Errorf("the body is no %s", of.FullName())
	}
	text, err := protojson.MarshalOptions{Resolver: s.types}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("the %s in the body has no JSON form", of.FullName())
	}
	return jsonValue(text)
}
