// Package policy turns a folder of Rego into decisions, and is the only importer of OPA. Start with Load, which gives a Set, all
// checked and tested or not at all; Live keeps the newest good Set of a folder and is the authz.Decider.
package policy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/authz"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
	"github.com/writ-dev/writ/svid"
)

// Identities tells what is known of a SPIFFE ID on this node; *agent.Agent does.
type Identities interface {
	Facts(id spiffeid.ID) (registration.Facts, bool)
	// VerifyPeer gives the SPIFFE ID of a certificate that chains to the bundle now.
	VerifyPeer(der []byte) (spiffeid.ID, error)
	// VerifyToken reads a JWT-SVID that verifies with the bundle of its trust domain now, for one of the audiences.
	VerifyToken(token string, audience []string) (*svid.JWT, error)
}

// Config is what sets need. All of it may be left out.
type Config struct {
	Identities Identities // nil: no facts, and no certificate verifies
	Now        func() time.Time
	Megabytes  int // that the files of a set may have in all; 0: StandardMegabytes
}

// Set is one policy set: compiled, type-checked and tested. It never changes.
type Set struct {
	gate     *gate
	revision string
	manifest manifest
	program  *program
	masker   *program // asks the set's own masking rules; nil without them
	reader   *reader
}

// Load reads a folder as one snapshot and gives its set. The error is fault.Invalid and names every fault that was found.
func Load(ctx context.Context, folder string, c Config) (*Set, error) {
	if _, err := os.ReadDir(folder); err != nil { // one that is read as "." names no folder
		return nil, bad(err)
	}
	return LoadFS(ctx, os.DirFS(folder), c)
}

// LoadFS is Load for a tree that is not on disk, such as policies.Example().
func LoadFS(ctx context.Context, files fs.FS, c Config) (*Set, error) {
	ids, err := newIdentities(c)
	if err != nil {
		return nil, err
	}
	s, err := take(ctx, files, c.bounds())
	if err != nil {
		return nil, bad(err)
	}
	return load(ctx, s, ids)
}

func load(ctx context.Context, s *snapshot, ids *identities) (*Set, error) {
	set, err := build(ctx, s, ids)
	if err != nil {
		return nil, bad(err)
	}
	return set, nil
}

// build does everything that may find a fault.
func build(ctx context.Context, s *snapshot, ids *identities) (*Set, error) {
	ctx, cancel := context.WithTimeout(ctx, verifyFor)
	defer cancel()
	m, err := readManifest(s)
	if err != nil {
		return nil, err
	}
	p, err := compile(ctx, s, m)
	if err != nil {
		return nil, err
	}
	reads, err := readSet(p.compiler, p.query)
	if err != nil {
		return nil, err
	}
	files, err := readServices(s, m)
	if err != nil {
		return nil, err
	}
	masker, err := p.masking()
	if err == nil && masker != nil {
		err = maskReads(reads, masker)
	}
	if err != nil {
		return nil, readable(err)
	}
	r, err := newReader(reads, m.Paths == "lenient", files, ids)
	if err != nil {
		return nil, err
	}
	r.body, r.audience = m.Limits.Body<<10, m.TokenAudience
	if !reads.all && reads.key("token") != nil && len(m.TokenAudience) == 0 {
		return nil, errNoAudience
	}
	set := &Set{gate: newGate(m.places()), revision: s.digest, manifest: m, program: p, masker: masker, reader: r}
	return set, errors.Join(test(ctx, s, m, p), set.check(ctx, s))
}

var errNoAudience = errors.New("input.token is read and policy.yaml has no token_audience: whom tokens must be for")

// bad gives every fault of a set the same kind; one that has a code keeps it.
func bad(err error) error {
	var known *fault.Error
	if errors.As(err, &known) {
		return err
	}
	return fault.New(fault.Invalid, err, "the policy set is not usable").With(fault.BadPolicy, "")
}

// Revision is a hash of everything that was read.
func (s *Set) Revision() string { return s.revision }

// Decide judges the wire bytes of a CheckRequest. One that is shed is not even decoded.
func (s *Set) Decide(ctx context.Context, request []byte) authz.Decision {
	return s.decide(ctx, request, look(request))
}

func (s *Set) decide(ctx context.Context, request []byte, g *glance) authz.Decision {
	if err := s.gate.enter(ctx, len(request)); err != nil {
		return s.finish(failed(err), g)
	}
	defer s.gate.leave()
	attributes, err := s.reader.attributes(request)
	if err != nil {
		return malformed(err)
	}
	d, input, result := s.judge(ctx, attributes, g, len(request))
	if input != nil {
		d.Input = recorded{s, s.lighter(input), result, s.manifest.Record}
	}
	return s.finish(d, g)
}

// finish adds what every answer of a set says.
func (s *Set) finish(d authz.Decision, g *glance) authz.Decision {
	d.Request, d.Revision, d.ShowReason = g.Request, s.revision, s.manifest.Reason == "client"
	d.Masked = s.masker != nil
	if d.Rule == "" {
		d.Rule = s.manifest.Decision
	}
	return d
}

// malformed is what becomes of bytes that are no CheckRequest.
func malformed(err error) authz.Decision {
	return authz.Decision{Outcome: authz.Malformed, Cause: authz.BadMessage, Reason: err.Error()}
}

// failed is the decision that an error kept from being made.
func failed(err error) authz.Decision {
	switch {
	case errors.Is(err, errShed):
		return authz.Fail(authz.Shed, err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return authz.Fail(authz.TimedOut, "timeout")
	case errors.Is(err, context.Canceled):
		return authz.Fail(authz.CallerLeft, "the caller went away")
	case errors.Is(err, errMemory):
		return authz.Fail(authz.OverMemory, "the policy failed: "+err.Error())
	}
	return authz.Fail(authz.Evaluation, "the policy failed: "+err.Error())
}

// judge gives the decision, and for the record what was read and what the policy gave.
func (s *Set) judge(ctx context.Context, attributes ast.Value, g *glance, size int) (authz.Decision, ast.Value, ast.Value) {
	if most := s.manifest.Limits.Request << 10; size > most {
		return authz.Refuse(authz.TooLarge, fmt.Sprintf("the request has %d bytes, and this set takes %d", size, most)), nil, nil
	}
	if most := s.manifest.Limits.Time; most < authz.MaxTime {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, most)
		defer cancel()
	}
	input, cause, err := s.reader.input(attributes, g)
	if err != nil {
		return authz.Refuse(cause, err.Error()), nil, nil
	}
	result, err := s.program.ask(ctx, input)
	if err != nil {
		return failed(err), input, nil
	}
	return decision(result, g), input, result
}

// lighter leaves out a parsed body that no record of this set shows: it may take fifty times its request's size, and a ring of
// records is bounded by that of requests.
func (s *Set) lighter(input ast.Value) ast.Value {
	all, ok := input.(ast.Object)
	body := ast.InternedTerm("parsed_body")
	if !ok || s.manifest.Record.Body || s.masker != nil || all.Get(body) == nil || all.Get(body).Equal(ast.NullTerm()) {
		return input
	}
	out := ast.NewObject()
	all.Foreach(func(key, value *ast.Term) {
		if key.Equal(body) {
			value = ast.StringTerm(masked)
		}
		out.Insert(key, value)
	})
	return out
}

// Evaluate asks the set's decision about any input, as JSON values; the second result is false when it is undefined.
func (s *Set) Evaluate(ctx context.Context, input any) (any, bool, error) {
	v, err := ast.InterfaceToValue(input)
	if err != nil {
		return nil, false, fmt.Errorf("read input: %w", err)
	}
	result, err := s.program.ask(ctx, v)
	if err != nil || result == nil {
		return nil, false, err
	}
	out, err := ast.JSON(result)
	return out, true, err
}
