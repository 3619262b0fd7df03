// Package policies is the Rego that ships. Library is what every policy set may import; Example is the set that decides in writ
// dev where no other is given, and a pattern to copy.
package policies

import "io/fs"

// Library holds the modules that every set may import without copying them: package writ.identity.
func Library() fs.FS { return nil }

// Example is a whole policy set, with its tests and cases.
func Example() fs.FS { return nil }
