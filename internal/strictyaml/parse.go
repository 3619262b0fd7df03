package strictyaml

import (
	"errors"
	"fmt"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// maxDepth bounds nesting: the parser takes the square of it in time and its own stack in space.
const maxDepth = 100

// parse gives the document's root, with keys that are each given once. A nil node without mistakes is an empty document.
func (d Document) parse() (root ast.Node, mistakes Mistakes) {
	defer func() {
		if r := recover(); r != nil { // the parser's fault, on input that is ours to answer for
			root, mistakes = nil, Mistakes{{d.Name, d.Line, 1, fmt.Sprintf("document cannot be parsed: %v", r)}}
		}
	}()
	tokens := lexer.Tokenize(string(d.Data))
	if mistakes = d.checkTokens(tokens); len(mistakes) > 0 {
		return nil, mistakes
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey()) // checkKeys names every repeated key, the parser one
	if err != nil {
		return nil, Mistakes{d.syntax(err)}
	}
	for _, part := range file.Docs {
		if part.Body == nil {
			continue
		}
		if root != nil {
			return nil, Mistakes{d.mistake(first(part.Body), "document is not closed before another begins")}
		}
		root = part.Body
	}
	return root, d.checkKeys(root)
}

// checkTokens refuses what configuration can do without: anchors (a few lines of them unfold into gigabytes), tags, merge keys,
// complex keys, and nesting that only an attacker writes.
func (d Document) checkTokens(tokens token.Tokens) Mistakes {
	var mistakes Mistakes
	depth, dashes, line := 0, 0, 0
	for _, t := range tokens {
		if t.Position.Line != line {
			dashes, line = 0, t.Position.Line
		}
		switch t.Type {
		case token.AnchorType, token.AliasType:
			mistakes = append(mistakes, d.mistake(t, "anchors and aliases are not taken; put a value that begins with %s in quotes", t.Value))
		case token.TagType:
			mistakes = append(mistakes, d.mistake(t, "tags are not taken; put a value that begins with ! in quotes"))
		case token.MergeKeyType:
			mistakes = append(mistakes, d.mistake(t, "merge keys are not taken"))
		case token.MappingKeyType:
			mistakes = append(mistakes, d.mistake(t, "complex keys are not taken"))
		case token.DirectiveType:
			mistakes = append(mistakes, d.mistake(t, "directives are not taken"))
		case token.InvalidType:
			mistakes = append(mistakes, d.mistake(t, "%s", t.Error))
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth--
		case token.SequenceEntryType:
			dashes++
		}
		if depth > maxDepth || dashes > maxDepth {
			return append(mistakes, d.mistake(t, "nested deeper than %d", maxDepth))
		}
	}
	return mistakes
}

// checkKeys names each key that is given twice in one mapping, wherever it stands.
func (d Document) checkKeys(node ast.Node) Mistakes {
	var mistakes Mistakes
	seen := map[string]int{}
	for _, pair := range pairs(node) {
		key, ok := keyText(pair.Key)
		line, again := seen[key]
		switch {
		case !ok:
			mistakes = append(mistakes, d.mistake(first(pair.Key), "a key must be text"))
		case again:
			mistakes = append(mistakes, d.mistake(first(pair.Key), "key %q is given twice, first in line %d", key, line))
		default:
			seen[key] = d.mistake(first(pair.Key), "").Line
		}
		mistakes = append(mistakes, d.checkKeys(pair.Value)...)
	}
	if list, ok := node.(*ast.SequenceNode); ok {
		for _, element := range list.Values {
			mistakes = append(mistakes, d.checkKeys(element)...)
		}
	}
	return mistakes
}

func (d Document) syntax(err error) Mistake {
	var located yaml.Error
	if errors.As(err, &located) && located.GetToken() != nil {
		return d.mistake(located.GetToken(), "%s", located.GetMessage())
	}
	return Mistake{d.Name, d.Line, 1, err.Error()}
}

// mistake stands at the token, in the file's lines.
func (d Document) mistake(at *token.Token, format string, args ...any) Mistake {
	m := Mistake{File: d.Name, Line: d.Line, Col: 1, What: fmt.Sprintf(format, args...)}
	if at != nil && at.Position != nil {
		m.Line, m.Col = d.Line+max(at.Position.Line, 1)-1, max(at.Position.Column, 1)
	}
	return m
}

// first is where a node begins; goccy/go-yaml's own token of a mapping is its first colon.
func first(node ast.Node) *token.Token {
	switch n := node.(type) {
	case nil:
		return nil
	case *ast.MappingNode:
		if !n.IsFlowStyle && len(n.Values) > 0 {
			return first(n.Values[0].Key)
		}
		return n.Start
	case *ast.MappingValueNode:
		return first(n.Key)
	}
	return node.GetToken()
}

// pairs gives a mapping's keys and values, none for another node.
func pairs(node ast.Node) []*ast.MappingValueNode {
	switch n := node.(type) {
	case *ast.MappingNode:
		return n.Values
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}
	}
	return nil
}

func keyText(key ast.MapKeyNode) (string, bool) {
	text, null, ok := scalarText(key)
	return text, ok && !null
}

// scalarText gives a scalar as it was written: 0x10 is those four characters, not 16.
func scalarText(node ast.Node) (text string, null, ok bool) {
	switch n := node.(type) {
	case nil, *ast.NullNode:
		return "", true, true
	case *ast.StringNode:
		return n.Value, false, true
	case *ast.LiteralNode:
		return n.Value.Value, false, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, false, true
	}
	return "", false, false
}
