package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/authz"
	"github.com/writ-dev/writ/internal/strictyaml"
)

// manifest is policy.yaml. Its zero value, settled, is a set without one.
type manifest struct {
	Decision    string     `yaml:"decision"`    // a path; default envoy/authz/allow
	Rego        string     `yaml:"rego"`        // v1 or v0
	Paths       string     `yaml:"paths"`       // strict or lenient
	Descriptors []string   `yaml:"descriptors"` // files of the folder: what unary gRPC bodies are
	Network     []string   `yaml:"network"`     // hosts that http.send may reach
	Record      recordKeys `yaml:"record"`
	Reason      string     `yaml:"reason"` // record or client
	Limits      limits     `yaml:"limits"`
	// TokenAudience has who a JWT-SVID in an Authorization header must be for, one of them, to be input.token.
	TokenAudience []string `yaml:"token_audience"`
}

// limits bound one decision. What is left out has the value that its comment names.
type limits struct {
	Time    time.Duration `yaml:"time"`              // 1s, and no more
	Memory  int           `yaml:"memory_megabytes"`  // by which the heap may grow; 128
	Request int           `yaml:"request_kilobytes"` // of the whole CheckRequest; 4096, and no more
	Body    int           `yaml:"body_kilobytes"`    // of a body that is read, unpacked; 4096, and no more
}

// settle fills in what is left out and refuses what cannot be.
func (l limits) settle() (limits, error) {
	var all []error
	bound := func(key string, value *int, most, standard int) {
		if *value < 0 || *value > most {
			all = append(all, fmt.Errorf("policy.yaml: limits.%s: %d is not between 1 and %d", key, *value, most))
		}
		if *value == 0 {
			*value = standard
		}
	}
	bound("memory_megabytes", &l.Memory, 1<<20, 128)
	bound("request_kilobytes", &l.Request, authz.MaxMessage>>10, authz.MaxMessage>>10)
	bound("body_kilobytes", &l.Body, authz.MaxMessage>>10, authz.MaxMessage>>10)
	if t := l.Time; t != 0 && t < time.Millisecond || t > authz.MaxTime {
		all = append(all, fmt.Errorf("policy.yaml: limits.time: %s is not between 1ms and %s", t, authz.MaxTime))
	}
	if l.Time == 0 {
		l.Time = authz.MaxTime
	}
	return l, errors.Join(all...)
}

// recordKeys is what records may show in clear.
type recordKeys struct {
	Headers []string `yaml:"headers"`
	Query   []string `yaml:"query"`
	Body    bool     `yaml:"body"`
}

func readManifest(s *snapshot) (manifest, error) {
	var m manifest
	if content, ok := s.files["policy.yaml"]; ok {
		documents, err := strictyaml.Documents("policy.yaml", content)
		if err != nil {
			return m, err
		}
		if len(documents) > 1 {
			return m, fmt.Errorf("policy.yaml:%d: a second document", documents[1].Line)
		}
		for _, d := range documents {
			if err := d.Decode(&m); err != nil {
				return m, err
			}
		}
	}
	return m.settle()
}

// settle fills in what is left out and refuses what is unknown.
func (m manifest) settle() (manifest, error) {
	for _, choice := range []struct {
		key   string
		value *string
		known []string // the first is the default
	}{
		{"rego", &m.Rego, []string{"v1", "v0"}},
		{"paths", &m.Paths, []string{"strict", "lenient"}},
		{"reason", &m.Reason, []string{"record", "client"}},
	} {
		if *choice.value == "" {
			*choice.value = choice.known[0]
		}
		if !slices.Contains(choice.known, *choice.value) {
			return m, fmt.Errorf("policy.yaml: %s: %q is none of %s", choice.key, *choice.value, strings.Join(choice.known, ", "))
		}
	}
	if m.Decision == "" {
		m.Decision = "envoy/authz/allow"
	}
	if slices.Contains(m.TokenAudience, "") {
		return m, errors.New("policy.yaml: token_audience: an audience is empty")
	}
	for i, h := range m.Record.Headers {
		m.Record.Headers[i] = strings.ToLower(h)
	}
	m.Decision = strings.Trim(m.Decision, "/")
	var limits, decision error
	m.Limits, limits = m.Limits.settle()
	_, decision = m.ref()
	return m, errors.Join(limits, decision)
}

// ref is the decision as Rego names it.
func (m manifest) ref() (ast.Ref, error) {
	ref := ast.DefaultRootRef.Copy()
	for _, part := range strings.Split(m.Decision, "/") {
		if part == "" {
			return nil, fmt.Errorf("policy.yaml: decision: %q is no path", m.Decision)
		}
		ref = ref.Append(ast.StringTerm(part))
	}
	return ref, nil
}

func (m manifest) regoVersion() ast.RegoVersion {
	if m.Rego == "v0" {
		return ast.RegoV0
	}
	return ast.RegoV1
}
