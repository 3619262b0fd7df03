# METADATA
# title: SPIFFE identities
# description: |
#   Matches the two ends of a request by trust domain and by whole path segments. A prefix of the text is never a match:
#   spiffe://example.org/web does not cover spiffe://example.org/webadmin, nor example.org example.org.evil.
#
#   Each function takes input.source or input.destination. Those are there only for a valid SPIFFE ID, and where the proxy hands
#   over the peer's certificate, only when it verified and names that ID; a rule that asks about a missing one does not hold.
#   That goes for "not identity.is(input.source, id)" too, since Rego looks at the argument first: write rules that allow.
package writ.identity

# is: the peer is exactly this SPIFFE ID.
is(peer, id) if peer.spiffe_id == id

# in_trust_domain: the peer belongs to this trust domain, given by name ("example.org").
in_trust_domain(peer, name) if peer.trust_domain == name

# same_trust_domain: both ends belong to one trust domain.
same_trust_domain(a, b) if a.trust_domain == b.trust_domain

# at: the peer's path is exactly these segments: at(input.source, ["ns", "shop", "web"]).
at(peer, segments) if peer.path == segments

# under: the peer's path begins with these segments, of which there is at least one. The path itself is under itself.
under(peer, segments) if {
	count(segments) > 0
	array.slice(peer.path, 0, count(segments)) == segments
}

# like: the peer's path is as long as the pattern and each segment is the pattern's, where "*" stands for any one segment:
# like(input.source, ["ns", "*", "sa", "web"]).
like(peer, pattern) if {
	count(peer.path) == count(pattern)
	every i, segment in pattern {
		segment in {"*", peer.path[i]}
	}
}

# has: the peer was attested with this selector, which all holders of its ID share.
has(peer, selector) if selector in peer.selectors

# assured: the peer's node proved itself at least this well; 4 is hardware.
assured(peer, level) if peer.assurance >= level
