// Package policies is the Rego that ships. Library is what every policy set may import; Example is the set that decides in writ
// dev where no other is given, and a pattern to copy. The schemas are for editors and for the compiler of authz/policy.
package policies

import (
	"embed"
	"io/fs"
)

//go:embed identity
var library embed.FS

//go:embed example
var example embed.FS

//go:embed schema/input.json
var inputSchema []byte

// Library holds the modules that every set may import without copying them: package writ.identity.
func Library() fs.FS { return sub(library, "identity") }

// Example is a whole policy set, with its tests and cases.
func Example() fs.FS { return sub(example, "example") }

// InputSchema is the JSON Schema of what a policy gets as input.
func InputSchema() []byte { return inputSchema }

// sub opens a folder that the embedding directive names.
func sub(files embed.FS, folder string) fs.FS {
	below, err := fs.Sub(files, folder)
	if err != nil {
		return files
	}
	return below
}
