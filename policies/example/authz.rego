# The example that decides in `writ dev`: of the two services web and api, web may read api's /api and below. Copy this folder and
# change it; its tests and cases run before any change goes live.
package envoy.authz

import data.writ.identity

default allowed := false

# web asks api, both of one trust domain, for something to read.
allowed if {
	identity.at(input.source, ["web"])
	identity.same_trust_domain(input.source, input.destination)
	input.attributes.request.http.method in {"GET", "HEAD"}
	input.parsed_path[0] == "api"
}

decision := {"allowed": true, "rule": "web reads api"} if allowed

decision := {"allowed": false, "rule": "web reads api", "reason": reason} if not allowed

default reason := "the caller proved no SPIFFE ID"

reason := sprintf("%s may not %s this", [input.source.spiffe_id, input.attributes.request.http.method])
