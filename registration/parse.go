package registration

import (
	"errors"
	"io"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Parse reads the YAML documents of one file. The error lists every fault.
func Parse(name string, data []byte, td spiffeid.TrustDomain) ([]Entry, error) {
	return nil, errors.ErrUnsupported
}

// ReadPath reads a file or a folder of files.
func ReadPath(path string, td spiffeid.TrustDomain) ([]Entry, error) { return nil, errors.ErrUnsupported }

// Read is Parse for an open stream, such as standard input.
func Read(name string, r io.Reader, td spiffeid.TrustDomain) ([]Entry, error) {
	return nil, errors.ErrUnsupported
}

// YAML writes the entry as one document that Parse reads.
func YAML(e Entry) ([]byte, error) { return nil, errors.ErrUnsupported }
