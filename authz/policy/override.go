package policy

import (
	"errors"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// overrides says whether a header lets its sender name another method than the request has, as many frameworks serve it. They do
// not tell - from _ either.
func overrides(name string) bool {
	switch len(name) {
	case len("x-http-method"), len("x-method-override"), len("x-http-method-override"):
	default:
		return false
	}
	switch strings.ReplaceAll(strings.ToLower(name), "_", "-") {
	case "x-http-method", "x-method-override", "x-http-method-override":
		return true
	}
	return false
}

// maybeOverrides says at the cost of a look what overrides needs to see of the entries of the headers map: those whose name is as
// long and has the right third letter, and those that are not written as proxies write them, one name and then one value.
func maybeOverrides(entry []byte) bool {
	if len(entry) < 2 || entry[0] != 0x0a || entry[1] > 127 {
		return len(entry) > 0
	}
	name := int(entry[1])
	if len(entry) > 2+name {
		size, n := protowire.ConsumeVarint(entry[min(3+name, len(entry)):])
		if entry[2+name] != 0x12 || n < 0 || uint64(3+name+n)+size != uint64(len(entry)) {
			return true
		}
	}
	return (name == 13 || name == 17 || name == 22) && len(entry) > 4 && (entry[4]|0x20 == 'h' || entry[4]|0x20 == 'm')
}

var errMethod = errors.New("a header names another method than the request has")

// checkMethod refuses a request that the upstream may serve by another method than the policy judges, unless the policy reads the
// very header that says so.
func (g *glance) checkMethod(headers *reads) error {
	judged := func(name string) bool { return headers != nil && headers.keys[name] != nil }
	for _, entry := range g.overriding {
		name, value, _ := mapEntry(entry, false)
		if overrides(string(name)) && !strings.EqualFold(string(value), g.Method) && !judged(string(name)) {
			return errMethod
		}
	}
	if len(g.headerMap) == 0 {
		return nil
	}
	return g.checkRawMethod()
}

func (g *glance) checkRawMethod() (err error) {
	g.eachRaw(func(name, value string) {
		if overrides(name) && !strings.EqualFold(value, g.Method) {
			err = errMethod
		}
	})
	return err
}
