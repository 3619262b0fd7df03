package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"go.yaml.in/yaml/v3"
)

// data reads data.json and data.yaml; the folder is the prefix, as in OPA bundles.
func data(s *snapshot) (storage.Store, error) {
	root := map[string]any{}
	values := 0
	for _, name := range s.names {
		var tree map[string]any
		var n int
		var err error
		switch path.Base(name) {
		case "data.json":
			if n = countJSON(s.files[name]); values+n <= s.bounds.values() {
				tree, err = jsonObject(s.files[name])
			}
		case "data.yaml":
			if isCase(name) {
				continue
			}
			tree, err = yamlObject(s.files[name])
			n = countValues(tree)
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if values += n; values > s.bounds.values() {
			return nil, beyond{fmt.Sprintf("%s: the data files of the set have more than %d values in all; %s raises it", name, s.bounds.values(), sizeKey)}
		}
		if dir := path.Dir(name); dir != "." {
			for _, part := range slices.Backward(strings.Split(dir, "/")) {
				tree = map[string]any{part: tree}
			}
		}
		if at := merge(root, tree); at != "" {
			return nil, fmt.Errorf("%s: %s is in another data file too", name, strings.TrimPrefix(at, "."))
		}
	}
	value, err := ast.InterfaceToValue(root)
	if err != nil {
		return nil, fmt.Errorf("read data: %w", err)
	}
	return inmem.NewFromASTObject(value.(ast.Object)), nil
}

func jsonObject(content []byte) (map[string]any, error) {
	var tree map[string]any
	d := json.NewDecoder(bytes.NewReader(content))
	d.UseNumber()
	if err := d.Decode(&tree); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("more than one JSON document")
	}
	return tree, nil
}

// yamlObject reads one document. The parser is OPA's own: it gives up on aliases that multiply and on nesting without end.
func yamlObject(content []byte) (map[string]any, error) {
	d := yaml.NewDecoder(bytes.NewReader(content))
	var document, second yaml.Node
	if err := d.Decode(&document); err == io.EOF {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if err := d.Decode(&second); err != io.EOF {
		return nil, errors.New("more than one YAML document")
	}
	plainTimes(&document)
	var raw any
	if err := document.Decode(&raw); err != nil || raw == nil {
		return nil, err
	}
	plain, err := jsonTree(raw)
	if err != nil {
		return nil, err
	}
	tree, ok := plain.(map[string]any)
	if !ok {
		return nil, errors.New("the document is no object")
	}
	return tree, nil
}

// plainTimes makes texts of what looks like a date: JSON has none, and neither has OPA's data.
func plainTimes(n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!timestamp" {
		n.Tag = "!!str"
	}
	for _, below := range n.Content {
		plainTimes(below)
	}
}

// jsonTree gives every object keys that are texts, and refuses the numbers that JSON has not.
func jsonTree(v any) (_ any, err error) {
	switch v := v.(type) {
	case map[string]any:
		for key, below := range v {
			if v[key], err = jsonTree(below); err != nil {
				return nil, err
			}
		}
	case map[any]any:
		out := make(map[string]any, len(v))
		for key, below := range v {
			if out[fmt.Sprint(key)], err = jsonTree(below); err != nil {
				return nil, err
			}
		}
		return out, nil
	case []any:
		for i, below := range v {
			if v[i], err = jsonTree(below); err != nil {
				return nil, err
			}
		}
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("%v is no number in JSON", v)
		}
	}
	return v, nil
}

// merge adds one tree to another and gives the path of what both have.
func merge(into, from map[string]any) (conflict string) {
	for key, value := range from {
		before, there := into[key]
		if !there {
			into[key] = value
			continue
		}
		a, isTree := before.(map[string]any)
		b, both := value.(map[string]any)
		if !isTree || !both {
			return "." + key
		}
		if at := merge(a, b); at != "" {
			return "." + key + at
		}
	}
	return ""
}
