package registration

import (
	"fmt"
	"slices"
	"strings"
)

// checkDNS takes host names in letters, digits and hyphens (RFC 1123 section 2.1) and lower case, with * as a whole first label.
// What looks like an address is refused: verifiers differ in whether a DNS name may stand for one.
func checkDNS(name string, before []string) error {
	if slices.Contains(before, name) {
		return fmt.Errorf("DNS name %q is given twice", name)
	}
	if len(name) > 253 {
		return fmt.Errorf("DNS name has %d bytes, more than 253", len(name))
	}
	host := strings.TrimPrefix(name, "*.")
	last := ""
	for label := range strings.SplitSeq(host, ".") {
		if !isLabel(label) {
			return fmt.Errorf("DNS name %q: label %q is not 1 to 63 lower-case letters, digits and inner hyphens", name, label)
		}
		last = label
	}
	if !strings.ContainsFunc(last, func(r rune) bool { return r < '0' || r > '9' }) {
		return fmt.Errorf("DNS name %q ends in a number, as addresses do", name)
	}
	return nil
}

func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-')
	})
}
