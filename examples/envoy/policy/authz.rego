# METADATA
# description: Who may call the api service. Everything that no rule allows is denied.
package envoy.authz

default allow := {"allowed": false, "reason": "no rule allows this caller to do this"}

allow := {"allowed": true, "rule": "web reads orders"} if {
	input.source.spiffe_id == sprintf("spiffe://%s/web", [input.destination.trust_domain])
	input.attributes.request.http.method == "GET"
	input.parsed_path[0] == "orders"
}
