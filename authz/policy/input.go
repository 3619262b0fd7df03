package policy

import (
	"errors"
	"fmt"
	"strings"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/open-policy-agent/opa/v1/ast"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/writ-dev/writ/authz"
)

// A reader builds the input of one policy set from the wire bytes of a CheckRequest: only what the set reads, straight into OPA's
// values. Everything is checked whether it is read or not.
type reader struct {
	shape      *shape
	plan       *plan
	reads      *reads
	headers    *reads // of the headers map
	lenient    bool
	services   *services
	identities *identities
	body       int      // the largest that is read, in bytes
	audience   []string // of tokens
}

func newReader(r *reads, lenient bool, files *services, ids *identities) (*reader, error) {
	s, err := shapes((&authv3.CheckRequest{}).ProtoReflect().Descriptor(), map[protoreflect.FullName]*shape{})
	if err != nil {
		return nil, err
	}
	headers := r.key("attributes").key("request").key("http").key("headers")
	return &reader{shape: s, plan: s.plan(r), reads: r, headers: headers, lenient: lenient, services: files, identities: ids, body: authz.MaxMessage}, nil
}

// attributes decodes the message itself. The error is errWire.
func (r *reader) attributes(request []byte) (ast.Value, error) {
	v, err := r.shape.read(request, r.plan, protowire.DefaultRecursionLimit)
	if v == nil {
		v = ast.NewObject()
	}
	return v, err
}

// input adds what is derived. An error says why the request is refused, the cause what kind of reason that is.
func (r *reader) input(attributes ast.Value, g *glance) (ast.Value, authz.Cause, error) {
	if len(g.Path) > maxTarget {
		return nil, authz.TooLarge, fmt.Errorf("the path has %d bytes, more than %d", len(g.Path), maxTarget)
	}
	target, err := authz.ParseTarget(g.Path, r.lenient)
	if err != nil {
		return nil, authz.BadTarget, err
	}
	if err := g.checkMethod(r.headers); err != nil {
		return nil, authz.BadMethod, err
	}
	in := attributes.(ast.Object)
	put := func(key string, v func() ast.Value) {
		if r.reads.key(key) != nil {
			if v := v(); v != nil {
				in.Insert(ast.InternedTerm(key), ast.NewTerm(v))
			}
		}
	}
	put("version", version)
	put("parsed_path", func() ast.Value { return parsedPath(target.Path) })
	if r.reads.key("parsed_query") != nil {
		query, err := parsedQuery(target.Query, g.queryCharset(target.Query))
		if err != nil {
			return nil, queryCause(err), err
		}
		put("parsed_query", func() ast.Value { return query })
	}
	put("source_principal", func() ast.Value { return principal(g.Source) })
	put("source", func() ast.Value { return r.identities.object(&g.source) })
	put("destination", func() ast.Value { return r.identities.object(&g.destination) })
	if len(r.audience) > 0 {
		put("token", func() ast.Value { return r.identities.token(g.header("authorization"), r.audience) })
	}
	if r.reads.key("parsed_body") == nil && r.reads.key("truncated_body") == nil {
		return in, 0, nil
	}
	body, truncated, err := g.parsedBody(r.reads.key("parsed_body") != nil, target.Path, r.services, r.body)
	put("parsed_body", func() ast.Value { return body })
	put("truncated_body", func() ast.Value { return ast.Boolean(truncated) })
	if errors.Is(err, errBodySize) {
		return nil, authz.TooLarge, err
	}
	return in, authz.BadBody, err
}

func queryCause(err error) authz.Cause {
	if errors.Is(err, errParameters) {
		return authz.TooLarge
	}
	return authz.BadTarget
}

// complete adds to a case's input what follows from its attributes, where the case does not give it.
func (r *reader) complete(given ast.Object) (ast.Object, error) {
	text := func(path ...string) string {
		v, err := given.Find(ref(path))
		if s, ok := v.(ast.String); ok && err == nil {
			return string(s)
		}
		return ""
	}
	target, err := authz.ParseTarget(text("attributes", "request", "http", "path"), r.lenient)
	if err != nil {
		return nil, err
	}
	query, err := parsedQuery(target.Query, utf8Charset)
	if err != nil {
		return nil, err
	}
	derived := [][2]*ast.Term{{ast.StringTerm("version"), ast.NewTerm(version())},
		{ast.StringTerm("parsed_path"), ast.NewTerm(parsedPath(target.Path))},
		{ast.StringTerm("parsed_query"), ast.NewTerm(query)}}
	if v := principal(text("attributes", "source", "principal")); v != nil {
		derived = append(derived, [2]*ast.Term{ast.StringTerm("source_principal"), ast.NewTerm(v)})
	}
	for _, key := range []string{"source", "destination"} {
		if v := r.identities.object(&peer{principal: text("attributes", key, "principal")}); v != nil {
			derived = append(derived, [2]*ast.Term{ast.StringTerm(key), ast.NewTerm(v)})
		}
	}
	for _, pair := range derived {
		if given.Get(pair[0]) == nil {
			given.Insert(pair[0], pair[1])
		}
	}
	return given, nil
}

func ref(path []string) ast.Ref {
	out := make(ast.Ref, len(path))
	for i, key := range path {
		out[i] = ast.StringTerm(key)
	}
	return out
}

func version() ast.Value {
	return ast.NewObject(stringPair("ext_authz", "v3"), stringPair("encoding", "protojson"))
}

// principal is the peer as the proxy names it, whatever it is; nothing where it names none.
func principal(name string) ast.Value {
	if name == "" {
		return nil
	}
	return ast.String(name)
}

// parsedPath is the path's segments; a trailing slash gives a last empty one.
func parsedPath(path string) ast.Value {
	return stringArray(strings.Split(strings.TrimLeft(path, "/"), "/"))
}

func stringPair(key, value string) [2]*ast.Term {
	return [2]*ast.Term{ast.StringTerm(key), ast.StringTerm(value)}
}

func stringArray(list []string) *ast.Array {
	terms := make([]*ast.Term, len(list))
	for i, s := range list {
		terms[i] = ast.StringTerm(s)
	}
	return ast.NewArray(terms...)
}

// peer is one end of the connection as the proxy describes it.
type peer struct {
	principal   string
	certificate []byte // PEM, URL-encoded; of the request's bytes
}

// A glance is what is needed of every request whatever the policy reads. Its slices lie in the request's bytes.
type glance struct {
	authz.Request
	source, destination peer
	set                 string   // that the route names by ContextKey
	routed              bool     // it names one
	http                [][]byte // the HttpRequest, in its pieces
	overriding          [][]byte // entries of the headers map that may name another method
	headerMap           [][]byte // the HeaderMap, in its pieces: instead of the map where the proxy encodes headers raw
	body, rawBody       []byte
}

// look reads a glance of a message that was found whole, with protobuf's rule for repeated fields: the last one counts.
func look(request []byte) *glance {
	g := &glance{}
	each(request, 1, func(attributes []byte) {
		each(attributes, 1, g.source.look)
		each(attributes, 2, g.destination.look)
		each(attributes, 4, func(request []byte) { each(request, 2, g.lookHTTP) })
		each(attributes, 10, func(extension []byte) {
			if key, value, _ := mapEntry(extension, false); string(key) == ContextKey {
				g.set, g.routed = string(value), true
			}
		})
	})
	g.Source, g.Destination = g.source.principal, g.destination.principal
	return g
}

func (p *peer) look(b []byte) {
	fields(b, func(n protowire.Number, v []byte) {
		switch n {
		case 4:
			p.principal = string(v)
		case 5:
			p.certificate = v
		}
	})
}

func (g *glance) lookHTTP(b []byte) {
	g.http = append(g.http, b)
	fields(b, func(n protowire.Number, v []byte) {
		switch n {
		case 2:
			g.Method = string(v)
		case 3:
			if maybeOverrides(v) {
				g.overriding = append(g.overriding, v)
			}
		case 4:
			g.Path = string(v)
		case 5:
			g.Host = string(v)
		case 11:
			g.body = v
		case 12:
			g.rawBody = v
		case 13:
			g.headerMap = append(g.headerMap, v)
		}
	})
}

// header gives the value that the headers map has for a name, or else the header map, its lines joined as the proxy would.
func (g *glance) header(name string) (value string) {
	for _, b := range g.http {
		each(b, 3, func(entry []byte) {
			if k, v, _ := mapEntry(entry, false); string(k) == name {
				value = string(v)
			}
		})
	}
	if value != "" {
		return value
	}
	g.eachRaw(func(key, line string) {
		switch {
		case key != name:
		case value == "":
			value = line
		default:
			value += "," + line
		}
	})
	return value
}

// eachRaw visits the lines of the header map.
func (g *glance) eachRaw(visit func(name, value string)) {
	for _, b := range g.headerMap {
		each(b, 1, func(line []byte) {
			var name, value string
			fields(line, func(n protowire.Number, v []byte) {
				switch {
				case n == 1:
					name = string(v)
				case n == 2 || n == 3 && len(v) > 0:
					value = string(v)
				}
			})
			visit(name, value)
		})
	}
}

func each(b []byte, number protowire.Number, visit func(v []byte)) {
	fields(b, func(n protowire.Number, v []byte) {
		if n == number {
			visit(v)
		}
	})
}

// fields visits what has a length, and stops at what is malformed.
func fields(b []byte, visit func(n protowire.Number, v []byte)) {
	for len(b) > 0 {
		number, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return
		}
		b = b[n:]
		if wire == protowire.BytesType {
			v, m := protowire.ConsumeBytes(b)
			if n = m; n >= 0 {
				visit(number, v)
			}
		} else {
			n = protowire.ConsumeFieldValue(number, wire, b)
		}
		if n < 0 {
			return
		}
		b = b[n:]
	}
}
