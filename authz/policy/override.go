package policy

import (
	"errors"
	"strings"
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

// maybeOverrides is overrides for an entry of the headers map as proxies write it, key first, at the cost of a look.
func maybeOverrides(entry []byte) bool {
	return len(entry) > 2 && (entry[0] != 0x0a || entry[1] == 13 || entry[1] == 17 || entry[1] == 22)
}

// checkMethod refuses a request that the upstream may serve by another method than the policy judges, unless the policy reads the
// very header that says so.
func (g *glance) checkMethod(headers *reads) error {
	judged := func(name string) bool { return headers != nil && headers.keys[name] != nil }
	for _, entry := range g.overriding {
		name, value, _ := mapEntry(entry, false)
		if overrides(string(name)) && !strings.EqualFold(string(value), g.Method) && !judged(string(name)) {
			return errors.New("a header names another method than the request has")
		}
	}
	var err error
	g.eachRaw(func(name, value string) {
		if overrides(name) && !strings.EqualFold(value, g.Method) {
			err = errors.New("a header names another method than the request has")
		}
	})
	return err
}
