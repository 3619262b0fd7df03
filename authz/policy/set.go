// Package policy turns a folder of Rego into decisions, and is the only importer of OPA. Start with Load, which gives a Set, all
// checked and tested or not at all; Live keeps the newest good Set of a folder and is the authz.Decider.
package policy

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/authz"
	"github.com/writ-dev/writ/registration"
)

// Identities tells what is known of a SPIFFE ID on this node; *agent.Agent does.
type Identities interface {
	Facts(id spiffeid.ID) (registration.Facts, bool)
	// VerifyPeer gives the SPIFFE ID of a certificate that chains to the bundle now.
	VerifyPeer(der []byte) (spiffeid.ID, error)
}

// Config is what sets need. All of it may be left out.
type Config struct {
	Identities Identities // nil: no facts, and no certificate verifies
	Now        func() time.Time
}

// Set is one policy set: compiled, type-checked and tested. It never changes.
type Set struct{ revision string }

// Load reads a folder as one snapshot and gives its set. The error is fault.Invalid and names every fault that was found.
func Load(ctx context.Context, folder string, c Config) (*Set, error) {
	return nil, errors.ErrUnsupported
}

// LoadFS is Load for a tree that is not on disk, such as policies.Example().
func LoadFS(ctx context.Context, files fs.FS, c Config) (*Set, error) {
	return nil, errors.ErrUnsupported
}

// Revision is a hash of everything that was read.
func (s *Set) Revision() string { return s.revision }

// Decide judges the wire bytes of a CheckRequest.
func (s *Set) Decide(ctx context.Context, request []byte) authz.Decision { return authz.Decision{} }

// Evaluate asks the set's decision about any input, as JSON values; the second result is false when it is undefined.
func (s *Set) Evaluate(ctx context.Context, input any) (any, bool, error) {
	return nil, false, errors.ErrUnsupported
}
