package strictyaml

import (
	"encoding"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
)

// Decode reads a file of one document into what into points to. Keys are the yaml tags of its fields, or the field's name in
// lower case; what the file does not name, or gives no value, stays as it was, so defaults can be set before. A file without a
// document changes nothing. Text is taken as written, a time.Duration is text such as 1h30m, and a type that implements
// encoding.TextUnmarshaler reads itself; a struct that does may also stand as its keys. The error is Mistakes.
func Decode(name string, data []byte, into any) error {
	documents, err := Documents(name, data)
	if err != nil {
		return err
	}
	switch len(documents) {
	case 0:
		return nil
	case 1:
		return documents[0].Decode(into)
	}
	return Mistakes{{name, documents[1].Line, 1, fmt.Sprintf("the file holds %d documents, not one", len(documents))}}
}

// Decode reads the document into what into points to, as the function Decode does. Lines are the file's.
func (d Document) Decode(into any) error {
	target := reflect.ValueOf(into)
	if target.Kind() != reflect.Pointer || target.IsNil() {
		return fmt.Errorf("decode %s: target %T is no pointer", d.Name, into)
	}
	root, mistakes := d.parse()
	if root == nil || len(mistakes) > 0 && pairs(root) == nil {
		return mistakes.sorted()
	}
	w := decoder{doc: d, mistakes: mistakes}
	w.value(root, target.Elem())
	return w.mistakes.sorted()
}

// At says where a key stands, as file:line:col; inner keys follow a dot. A key that is not there is the document's beginning.
func (d Document) At(key string) string {
	node, _ := d.parse()
	at := d.mistake(first(node), "")
	for part := range strings.SplitSeq(key, ".") {
		found := slices.IndexFunc(pairs(node), func(p *ast.MappingValueNode) bool { text, _ := keyText(p.Key); return text == part })
		if found < 0 {
			break
		}
		at, node = d.mistake(first(pairs(node)[found].Key), ""), pairs(node)[found].Value
	}
	return fmt.Sprintf("%s:%d:%d", at.File, at.Line, at.Col)
}

// decoder walks document and target together, and goes on after a mistake.
type decoder struct {
	doc      Document
	mistakes Mistakes
}

func (w *decoder) wrong(node ast.Node, format string, args ...any) {
	w.mistakes = append(w.mistakes, w.doc.mistake(first(node), format, args...))
}

var durationType = reflect.TypeFor[time.Duration]()

func (w *decoder) value(node ast.Node, v reflect.Value) {
	if _, null, _ := scalarText(node); null {
		return
	}
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		w.value(node, v.Elem())
		return
	}
	if reader, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok && (v.Kind() != reflect.Struct || pairs(node) == nil) {
		w.text(node, func(s string) error { return reader.UnmarshalText([]byte(s)) })
		return
	}
	if v.Type() == durationType {
		w.text(node, func(s string) error { return setDuration(v, s) })
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		w.fields(node, v)
	case reflect.Map:
		w.entries(node, v)
	case reflect.Slice:
		w.elements(node, v)
	case reflect.String:
		w.text(node, func(s string) error { v.SetString(s); return nil })
	case reflect.Bool:
		w.text(node, func(s string) error { return setBool(v, node, s) })
	default:
		w.other(node, v)
	}
}

func (w *decoder) text(node ast.Node, set func(string) error) {
	text, _, ok := scalarText(node)
	if !ok {
		w.wrong(node, "a single value must stand here")
		return
	}
	if err := set(text); err != nil {
		w.wrong(node, "%v", err)
	}
}

func (w *decoder) fields(node ast.Node, v reflect.Value) {
	if !w.isMapping(node) {
		return
	}
	known := fieldsOf(v)
	for _, pair := range pairs(node) {
		key, ok := keyText(pair.Key)
		if !ok {
			continue // checkKeys has named it
		}
		if field, there := known[key]; there {
			w.value(pair.Value, field)
			continue
		}
		w.wrong(pair.Key, "unknown key %q; known here: %s", key, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
	}
}

func (w *decoder) entries(node ast.Node, v reflect.Value) {
	if !w.isMapping(node) {
		return
	}
	if v.Type().Key().Kind() != reflect.String {
		w.wrong(node, "keys of type %s cannot be decoded", v.Type().Key())
		return
	}
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	for _, pair := range pairs(node) {
		if key, ok := keyText(pair.Key); ok {
			element := reflect.New(v.Type().Elem()).Elem()
			w.value(pair.Value, element)
			v.SetMapIndex(reflect.ValueOf(key).Convert(v.Type().Key()), element)
		}
	}
}

func (w *decoder) elements(node ast.Node, v reflect.Value) {
	list, ok := node.(*ast.SequenceNode)
	if !ok {
		w.wrong(node, "a list must stand here")
		return
	}
	out := reflect.MakeSlice(v.Type(), len(list.Values), len(list.Values))
	for i, element := range list.Values {
		if _, null, _ := scalarText(element); null {
			w.wrong(element, "element %d of the list is empty", i+1)
		}
		w.value(element, out.Index(i))
	}
	v.Set(out)
}

// other leaves numbers and values of any type to goccy/go-yaml.
func (w *decoder) other(node ast.Node, v reflect.Value) {
	if err := toValue(node, v); err != nil {
		w.wrong(node, "a value of type %s must stand here", v.Type())
	}
}

func toValue(node ast.Node, v reflect.Value) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("decode: %v", r)
		}
	}()
	return yaml.NodeToValue(node, v.Addr().Interface(), yaml.Strict())
}

func (w *decoder) isMapping(node ast.Node) bool {
	if _, ok := node.(*ast.MappingNode); ok || pairs(node) != nil {
		return true
	}
	w.wrong(node, "keys with values must stand here")
	return false
}

func setDuration(v reflect.Value, s string) error {
	d, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("%q is no duration such as 1h or 90s", s)
	}
	v.SetInt(int64(d))
	return nil
}

// setBool takes true and false unquoted; yes, on and 1 mean different things to different readers.
func setBool(v reflect.Value, node ast.Node, s string) error {
	b, ok := node.(*ast.BoolNode)
	if !ok {
		return fmt.Errorf("%q is neither true nor false", s)
	}
	v.SetBool(b.Value)
	return nil
}

// fieldsOf gives a struct's fields by their keys; those of an embedded struct without a key of its own stand beside them.
func fieldsOf(v reflect.Value) map[string]reflect.Value {
	fields := map[string]reflect.Value{}
	for i := range v.NumField() {
		field := v.Type().Field(i)
		key, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		switch {
		case field.Anonymous && key == "" && field.Type.Kind() == reflect.Struct:
			maps.Copy(fields, fieldsOf(v.Field(i)))
		case !field.IsExported() || key == "-":
		case key == "":
			fields[strings.ToLower(field.Name)] = v.Field(i)
		default:
			fields[key] = v.Field(i)
		}
	}
	return fields
}
