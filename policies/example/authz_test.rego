package envoy.authz_test

import data.envoy.authz

request(source, method, path) := {
	"attributes": {"request": {"http": {"method": method}}},
	"parsed_path": path,
	"source": peer(source),
	"destination": peer("api"),
}

peer(name) := {
	"spiffe_id": sprintf("spiffe://example.org/%s", [name]),
	"trust_domain": "example.org",
	"path": [name],
}

test_web_reads_api if authz.decision.allowed with input as request("web", "GET", ["api", "orders"])

test_web_does_not_write if not authz.decision.allowed with input as request("web", "POST", ["api", "orders"])

test_web_reads_nothing_else if not authz.decision.allowed with input as request("web", "GET", ["apis"])

test_others_do_not_read if not authz.decision.allowed with input as request("webadmin", "GET", ["api"])

test_another_trust_domain_does_not_read if {
	not authz.decision.allowed with input as object.union(
		request("web", "GET", ["api"]),
		{"source": {"spiffe_id": "spiffe://evil.org/web", "trust_domain": "evil.org", "path": ["web"]}},
	)
}

test_nobody_does_not_read if {
	authz.decision.reason == "the caller proved no SPIFFE ID" with input as object.remove(request("web", "GET", ["api"]), ["source"])
}
