package policy

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// errWire says that bytes are no message of the type they should be.
var errWire = errors.New("malformed message")

// maxFields is how many fields a message may have, so that one message is decoded without a table on the heap.
const maxFields = 16

// A shape is a message type as the decoder needs it: protobuf in, protojson's names and values out.
type shape struct {
	fields []field
	index  [32]int8                            // by field number: position in fields plus one
	whole  func(raw []byte) (ast.Value, error) // for types that JSON writes in a way of their own
}

// A field is one field of a shape. A map's value is message where it is one, otherwise text.
type field struct {
	name    string
	key     *ast.Term
	kind    protoreflect.Kind
	wire    protowire.Type
	message *shape
	enum    protoreflect.EnumValueDescriptors
	isMap   bool
	list    bool
	shown   bool // also when zero
	oneof   int8 // the oneof's index plus one
}

// shapes builds the shapes of a message type and of all that it holds; known ends recursion.
func shapes(d protoreflect.MessageDescriptor, known map[protoreflect.FullName]*shape) (*shape, error) {
	if s, ok := known[d.FullName()]; ok {
		return s, nil
	}
	s := &shape{whole: wholes(d.FullName())}
	known[d.FullName()] = s
	fields := d.Fields()
	if fields.Len() > maxFields {
		return nil, fmt.Errorf("message %s has more than %d fields", d.FullName(), maxFields)
	}
	for i := range fields.Len() {
		f, err := shapeField(fields.Get(i), known)
		if err != nil {
			return nil, err
		}
		if n := int(fields.Get(i).Number()); n < len(s.index) {
			s.index[n] = int8(i + 1)
		} else {
			return nil, fmt.Errorf("message %s has a field number over %d", d.FullName(), len(s.index)-1)
		}
		s.fields = append(s.fields, f)
	}
	return s, nil
}

func shapeField(d protoreflect.FieldDescriptor, known map[protoreflect.FullName]*shape) (field, error) {
	f := field{name: d.JSONName(), key: ast.StringTerm(d.JSONName()), kind: d.Kind(), isMap: d.IsMap(), list: d.IsList(),
		shown: d.HasPresence(), wire: protowire.BytesType}
	if o := d.ContainingOneof(); o != nil {
		f.oneof = int8(o.Index() + 1)
	}
	message := d.Message()
	if f.isMap {
		message = d.MapValue().Message()
		if message == nil && d.MapValue().Kind() != protoreflect.StringKind || d.MapKey().Kind() != protoreflect.StringKind {
			return f, fmt.Errorf("field %s: maps of this kind are not served", d.FullName())
		}
	}
	switch f.kind {
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.MessageKind:
	case protoreflect.BoolKind, protoreflect.Int64Kind, protoreflect.Uint64Kind, protoreflect.Int32Kind, protoreflect.Uint32Kind:
		f.wire = protowire.VarintType
	case protoreflect.EnumKind:
		f.wire, f.enum = protowire.VarintType, d.Enum().Values()
	case protoreflect.DoubleKind:
		f.wire = protowire.Fixed64Type
	default:
		return f, fmt.Errorf("field %s: kind %s is not served", d.FullName(), f.kind)
	}
	if f.list && f.kind != protoreflect.MessageKind && f.kind != protoreflect.StringKind {
		return f, fmt.Errorf("field %s: lists of this kind are not served", d.FullName())
	}
	if message == nil {
		return f, nil
	}
	var err error
	f.message, err = shapes(message, known)
	return f, err
}

// A slot is what was read of one field so far.
type slot struct {
	there bool
	raw   []byte
	num   uint64
	many  [][]byte // list elements and map entries
}

// read decodes one message: what plan wants becomes a value, everything else is only checked. The value is nil where plan is.
func (s *shape) read(b []byte, plan *plan, depth int) (ast.Value, error) {
	if depth <= 0 {
		return nil, errWire
	}
	raw := b
	var slots [maxFields]slot
	for len(b) > 0 {
		number, wire, n := protowire.ConsumeTag(b)
		if n < 0 || number > protowire.MaxValidNumber {
			return nil, errWire
		}
		b = b[n:]
		f := s.field(number)
		if f < 0 || s.fields[f].wire != wire {
			if n = protowire.ConsumeFieldValue(number, wire, b); n < 0 {
				return nil, errWire
			}
		} else if n = s.take(&slots, f, b, plan.field(f), depth); n < 0 {
			return nil, errWire
		}
		b = b[n:]
	}
	switch {
	case plan == nil:
		return nil, nil
	case s.whole != nil:
		return s.whole(raw)
	}
	return s.build(&slots, plan, depth)
}

func (s *shape) field(n protowire.Number) int {
	if n >= protowire.Number(len(s.index)) {
		return -1
	}
	return int(s.index[n]) - 1
}

// take reads one value into its slot and says how long it was. What is not wanted is checked at once.
func (s *shape) take(slots *[maxFields]slot, at int, b []byte, plan *plan, depth int) int {
	f, to := &s.fields[at], &slots[at]
	if f.oneof != 0 {
		for i := range s.fields {
			if i != at && s.fields[i].oneof == f.oneof {
				slots[i] = slot{}
			}
		}
	}
	var n int
	switch f.wire {
	case protowire.VarintType:
		to.num, n = protowire.ConsumeVarint(b)
		if f.kind != protoreflect.Int64Kind && f.kind != protoreflect.Uint64Kind && f.kind != protoreflect.BoolKind {
			to.num = uint64(uint32(to.num))
		}
	case protowire.Fixed64Type:
		to.num, n = protowire.ConsumeFixed64(b)
	default:
		var value []byte
		if value, n = protowire.ConsumeBytes(b); n >= 0 && !f.keep(to, value, plan, depth) {
			return -1
		}
	}
	to.there = true
	return n
}

// keep puts bytes into a slot, checking them now where nothing will be built of them.
func (f *field) keep(to *slot, value []byte, plan *plan, depth int) bool {
	switch {
	case f.kind == protoreflect.StringKind && !utf8.Valid(value):
		return false
	case f.isMap:
		key, content, ok := mapEntry(value, f.message != nil)
		if !ok || !f.checkEntry(content, plan.entry(key), depth) {
			return false
		}
		if plan.entry(key) != nil {
			to.many = append(to.many, value)
		}
	case f.list:
		if plan == nil {
			return f.message == nil || f.message.valid(value, depth)
		}
		to.many = append(to.many, value)
	case f.message != nil && plan == nil:
		return f.message.valid(value, depth)
	case f.message != nil && to.there: // a message in pieces is the concatenation of its pieces
		whole := f.message.valid(to.raw, depth) && f.message.valid(value, depth)
		to.raw = append(to.raw[:len(to.raw):len(to.raw)], value...)
		return whole
	case f.message != nil && f.oneof != 0: // another member may take its place before it is built
		to.raw = value
		return f.message.valid(value, depth)
	default:
		to.raw = value
	}
	return true
}

func (f *field) checkEntry(content []byte, plan *plan, depth int) bool {
	if f.message == nil {
		return utf8.Valid(content)
	}
	if plan != nil {
		return true // read again when it is built
	}
	return f.message.valid(content, depth)
}

// valid checks a message inside another.
func (s *shape) valid(b []byte, depth int) bool {
	_, err := s.read(b, nil, depth-1)
	return err == nil
}

// mapEntry splits a map's entry. Both parts may be left out, the last of each counts, and a message may come in pieces.
func mapEntry(b []byte, message bool) (key, value []byte, ok bool) {
	for len(b) > 0 {
		number, wire, n := protowire.ConsumeTag(b)
		if n < 0 || number > protowire.MaxValidNumber {
			return nil, nil, false
		}
		b = b[n:]
		if wire == protowire.BytesType && (number == 1 || number == 2) {
			var v []byte
			v, n = protowire.ConsumeBytes(b)
			switch {
			case number == 1:
				key = v
			case message:
				value = append(value[:len(value):len(value)], v...)
			default:
				value = v
			}
		} else {
			n = protowire.ConsumeFieldValue(number, wire, b)
		}
		if n < 0 {
			return nil, nil, false
		}
		b = b[n:]
	}
	return key, value, utf8.Valid(key)
}

func (s *shape) build(slots *[maxFields]slot, plan *plan, depth int) (ast.Value, error) {
	var pairs [maxFields][2]*ast.Term
	n := 0
	for i := range s.fields {
		f, from := &s.fields[i], &slots[i]
		if !from.there || plan.field(i) == nil {
			continue
		}
		v, err := f.value(from, plan.field(i), depth)
		if err != nil {
			return nil, err
		}
		if v != nil {
			pairs[n] = [2]*ast.Term{f.key, ast.NewTerm(v)}
			n++
		}
	}
	return ast.NewObject(pairs[:n]...), nil
}

// value is a field's JSON value, nil where JSON leaves it out.
func (f *field) value(from *slot, plan *plan, depth int) (ast.Value, error) {
	switch {
	case f.isMap:
		return f.mapValue(from.many, plan, depth)
	case f.list:
		return f.listValue(from.many, plan, depth)
	case f.kind == protoreflect.MessageKind:
		return f.message.read(from.raw, plan, depth-1)
	case !f.shown && len(from.raw) == 0 && from.num == 0:
		return nil, nil
	}
	switch f.kind {
	case protoreflect.StringKind:
		return ast.String(from.raw), nil
	case protoreflect.BytesKind:
		return ast.String(base64.StdEncoding.EncodeToString(from.raw)), nil
	case protoreflect.BoolKind:
		return ast.Boolean(from.num != 0), nil
	case protoreflect.EnumKind:
		if v := f.enum.ByNumber(protoreflect.EnumNumber(from.num)); v != nil {
			return ast.String(v.Name()), nil
		}
		return ast.Number(strconv.FormatInt(int64(int32(from.num)), 10)), nil
	case protoreflect.Int64Kind:
		return ast.String(strconv.FormatInt(int64(from.num), 10)), nil
	case protoreflect.Uint64Kind:
		return ast.String(strconv.FormatUint(from.num, 10)), nil
	case protoreflect.Int32Kind:
		return ast.Number(strconv.FormatInt(int64(int32(from.num)), 10)), nil
	case protoreflect.Uint32Kind:
		return ast.Number(strconv.FormatUint(uint64(uint32(from.num)), 10)), nil
	}
	return nil, nil // doubles stand in Struct only, which is written whole
}

func (f *field) listValue(many [][]byte, plan *plan, depth int) (ast.Value, error) {
	terms := make([]*ast.Term, 0, len(many))
	for _, raw := range many {
		if f.message == nil {
			terms = append(terms, ast.StringTerm(string(raw)))
			continue
		}
		v, err := f.message.read(raw, plan, depth-1)
		if err != nil {
			return nil, err
		}
		terms = append(terms, ast.NewTerm(v))
	}
	if len(terms) == 0 {
		return nil, nil
	}
	return ast.NewArray(terms...), nil
}

// mapValue keeps the last entry of each key.
func (f *field) mapValue(many [][]byte, plan *plan, depth int) (ast.Value, error) {
	at := make(map[string]int, len(many))
	pairs := make([][2]*ast.Term, 0, len(many))
	for _, raw := range many {
		key, content, _ := mapEntry(raw, f.message != nil)
		v := ast.Value(ast.String(content))
		if f.message != nil {
			var err error
			if v, err = f.message.read(content, plan.entry(key), depth-1); err != nil {
				return nil, err
			}
		}
		if i, again := at[string(key)]; again {
			pairs[i][1] = ast.NewTerm(v)
			continue
		}
		at[string(key)] = len(pairs)
		pairs = append(pairs, [2]*ast.Term{ast.StringTerm(string(key)), ast.NewTerm(v)})
	}
	if len(pairs) == 0 {
		return nil, nil
	}
	return ast.NewObject(pairs...), nil
}
