package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

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
	for i, h := range m.Record.Headers {
		m.Record.Headers[i] = strings.ToLower(h)
	}
	m.Decision = strings.Trim(m.Decision, "/")
	_, err := m.ref()
	return m, err
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
