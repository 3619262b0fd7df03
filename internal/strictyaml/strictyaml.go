// Package strictyaml decodes configuration: unknown and repeated keys are errors, and every error names file, line and column.
// Start with Decode; Documents is for files that hold several.
package strictyaml

import "errors"

// Decode reads exactly one document.
func Decode(name string, data []byte, into any) error { return errors.ErrUnsupported }

// Document is one of a file's YAML documents.
type Document struct {
	Name string // the file
	Line int    // of the file where Data begins, from 1
	Data []byte
}

// Documents splits a file into its documents.
func Documents(name string, data []byte) ([]Document, error) { return nil, errors.ErrUnsupported }

// Decode reads the document; lines in errors are the file's.
func (d Document) Decode(into any) error { return errors.ErrUnsupported }
