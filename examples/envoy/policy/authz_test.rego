package envoy.authz_test

import data.envoy.authz

call(source, method, path) := {
	"source": {"spiffe_id": source},
	"destination": {"trust_domain": "dev.writ"},
	"attributes": {"request": {"http": {"method": method}}},
	"parsed_path": path,
}

test_web_reads_orders if {
	authz.allow.allowed with input as call("spiffe://dev.writ/web", "GET", ["orders", "7"])
}

test_web_does_not_delete_orders if {
	not authz.allow.allowed with input as call("spiffe://dev.writ/web", "DELETE", ["orders", "7"])
}

test_nobody_else_reads_orders if {
	not authz.allow.allowed with input as call("spiffe://dev.writ/api", "GET", ["orders"])
	not authz.allow.allowed with input as call("spiffe://other.example/web", "GET", ["orders"])
}
