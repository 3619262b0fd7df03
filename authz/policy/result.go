package policy

import (
	"fmt"
	"strconv"

	"github.com/open-policy-agent/opa/v1/ast"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-dev/writ/authz"
)

// A result is a decision's object, read key by key. The first wrong type is kept: the whole answer is worth nothing then.
type result struct {
	object ast.Object
	err    error
}

// decision turns what a policy said into an answer: true, false or an object with allowed. Keys without meaning for the outcome
// are not looked at.
func decision(v ast.Value, g *glance) authz.Decision {
	switch v := v.(type) {
	case nil:
		return authz.Decision{Outcome: authz.Denied, Cause: authz.Undefined, Reason: "the decision is undefined"}
	case ast.Boolean:
		if v {
			return authz.Decision{Outcome: authz.Allowed, Cause: authz.ByPolicy}
		}
		return authz.Decision{Outcome: authz.Denied, Cause: authz.ByPolicy, Reason: "no rule allows it"}
	case ast.Object:
		r := result{object: v}
		d := r.decision(g)
		if r.err != nil {
			return authz.Decision{Cause: authz.Unusable, Reason: "the policy's result is unusable: " + r.err.Error(), Rule: d.Rule}
		}
		return d
	}
	return authz.Fail(authz.Unusable, fmt.Sprintf("the policy's result is unusable: it is neither boolean nor object but %s", ast.ValueName(v)))
}

func (r *result) decision(g *glance) authz.Decision {
	d := authz.Decision{Outcome: authz.Denied, Cause: authz.ByPolicy, Reason: r.plain("reason"), Rule: r.plain("rule")}
	allowed, ok := r.get("allowed").(ast.Boolean)
	if !ok {
		r.wrong("allowed", "boolean")
	}
	d.Headers = r.headers("headers")
	d.Metadata = r.metadata("dynamic_metadata")
	if !allowed {
		d.Status, d.Body = r.status("http_status"), r.text("body")
		d.Headers = append(d.Headers, r.grpcStatus("grpc_status", g)...)
		if d.Reason == "" {
			d.Reason = "the policy denies it"
		}
		return d
	}
	d.Outcome = authz.Allowed
	d.RemoveHeaders = r.texts("request_headers_to_remove")
	d.ResponseHeaders = r.headers("response_headers_to_add")
	for _, h := range r.pairs("query_parameters_to_set", r.get("query_parameters_to_set")) {
		d.SetQuery = append(d.SetQuery, authz.Parameter(h))
	}
	d.RemoveQuery = r.texts("query_parameters_to_remove")
	return d
}

func (r *result) get(key string) ast.Value {
	if t := r.object.Get(ast.InternedTerm(key)); t != nil {
		return t.Value
	}
	return nil
}

func (r *result) wrong(key, want string) {
	if r.err == nil {
		r.err = fmt.Errorf("%s is no %s", key, want)
	}
}

// plain is a text for the record, whatever its type: policies written for other servers may mean something else by the key.
func (r *result) plain(key string) string {
	switch v := r.get(key).(type) {
	case nil:
		return ""
	case ast.String:
		return string(v)
	default:
		return v.String()
	}
}

func (r *result) text(key string) string {
	v := r.get(key)
	s, ok := v.(ast.String)
	if v != nil && !ok {
		r.wrong(key, "string")
	}
	return string(s)
}

// status is a whole number that Encode judges; 0 where there is none.
func (r *result) status(key string) int {
	v := r.get(key)
	if v == nil {
		return 0
	}
	if n, ok := v.(ast.Number); ok {
		if i, ok := n.Int(); ok && i != 0 {
			return i
		}
	}
	r.wrong(key, "HTTP status")
	return 0
}

// grpcStatus is for gRPC callers: without this header the proxy makes their status of the HTTP one, by rules of its own.
func (r *result) grpcStatus(key string, g *glance) []authz.Header {
	v := r.get(key)
	if v == nil || kindOf(g.header("content-type")) != grpcBody {
		return nil
	}
	if n, ok := v.(ast.Number); ok {
		if code, ok := n.Int(); ok && code > int(codes.OK) && code <= int(codes.Unauthenticated) {
			return []authz.Header{{Name: "grpc-status", Value: strconv.Itoa(code)}}
		}
	}
	r.wrong(key, "gRPC status of a denial")
	return nil
}

func (r *result) texts(key string) []string {
	v := r.get(key)
	if v == nil {
		return nil
	}
	return r.strings(key, v)
}

// strings reads an array or a set of strings.
func (r *result) strings(key string, v ast.Value) []string {
	var out []string
	add := func(t *ast.Term) {
		s, ok := t.Value.(ast.String)
		if !ok {
			r.wrong(key, "list of strings")
		}
		out = append(out, string(s))
	}
	switch v := v.(type) {
	case *ast.Array:
		v.Foreach(add)
	case ast.Set:
		v.Foreach(add)
	default:
		r.wrong(key, "list of strings")
	}
	return out
}

// headers reads an object of names, or a list of such objects.
func (r *result) headers(key string) []authz.Header {
	v := r.get(key)
	var out []authz.Header
	add := func(t *ast.Term) { out = append(out, r.pairs(key, t.Value)...) }
	switch v := v.(type) {
	case *ast.Array:
		v.Foreach(add)
		return out
	case ast.Set:
		v.Foreach(add)
		return out
	}
	return r.pairs(key, v)
}

// pairs reads an object whose values are a string or a list of them, in the order of its keys.
func (r *result) pairs(key string, v ast.Value) []authz.Header {
	if v == nil {
		return nil
	}
	object, ok := v.(ast.Object)
	if !ok {
		r.wrong(key, "object")
		return nil
	}
	out := make([]authz.Header, 0, object.Len())
	object.Foreach(func(k, v *ast.Term) {
		name, ok := k.Value.(ast.String)
		if !ok {
			r.wrong(key, "object with names")
			return
		}
		if s, ok := v.Value.(ast.String); ok {
			out = append(out, authz.Header{Name: string(name), Value: string(s)})
			return
		}
		for _, s := range r.strings(key+"."+string(name), v.Value) {
			out = append(out, authz.Header{Name: string(name), Value: s})
		}
	})
	return out
}

func (r *result) metadata(key string) []byte {
	v := r.get(key)
	if v == nil {
		return nil
	}
	if tree, err := ast.JSON(v); err == nil {
		if fields, ok := tree.(map[string]any); ok {
			if s, err := structpb.NewStruct(fields); err == nil {
				if b, err := proto.Marshal(s); err == nil {
					return b
				}
			}
		}
	}
	r.wrong(key, "object of JSON values")
	return nil
}
