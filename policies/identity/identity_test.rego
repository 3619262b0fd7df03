package writ.identity_test

import data.writ.identity

web := {
	"spiffe_id": "spiffe://example.org/ns/shop/web",
	"trust_domain": "example.org",
	"path": ["ns", "shop", "web"],
	"selectors": ["unix:uid:1000"],
	"assurance": 3,
}

test_is_the_whole_id if {
	identity.is(web, "spiffe://example.org/ns/shop/web")
	not identity.is(web, "spiffe://example.org/ns/shop")
	not identity.is(web, "spiffe://example.org/ns/shop/webadmin")
}

test_trust_domain_is_no_suffix_or_prefix if {
	identity.in_trust_domain(web, "example.org")
	not identity.in_trust_domain(web, "example.org.evil")
	not identity.in_trust_domain(web, "example")
	not identity.in_trust_domain(web, "org")
}

test_same_trust_domain if {
	identity.same_trust_domain(web, {"trust_domain": "example.org"})
	not identity.same_trust_domain(web, {"trust_domain": "partner.org"})
}

test_at_is_the_whole_path if {
	identity.at(web, ["ns", "shop", "web"])
	not identity.at(web, ["ns", "shop"])
	not identity.at(web, ["ns", "shop", "web", "a"])
}

test_under_counts_whole_segments if {
	identity.under(web, ["ns", "shop"])
	identity.under(web, ["ns", "shop", "web"])
	not identity.under(web, ["ns", "sho"])
	not identity.under(web, ["ns", "shop", "web", "a"])
	not identity.under({"path": ["ns", "shopping"]}, ["ns", "shop"])
}

test_under_nothing_is_nobody if not identity.under(web, [])

test_like_takes_one_segment_for_a_star if {
	identity.like(web, ["ns", "*", "web"])
	not identity.like(web, ["ns", "*"])
	not identity.like(web, ["ns", "*", "*", "web"])
	not identity.like(web, ["*", "shop", "api"])
}

test_an_id_without_path_is_at_nothing if {
	identity.at({"path": []}, [])
	not identity.under({"path": []}, ["ns"])
}

test_facts if {
	identity.has(web, "unix:uid:1000")
	not identity.has(web, "unix:uid:0")
	identity.assured(web, 3)
	not identity.assured(web, 4)
	not identity.assured({"path": []}, 0)
}

asks if identity.is(input.source, "spiffe://example.org/web")

asks if identity.in_trust_domain(input.source, "example.org")

asks if identity.under(input.source, ["ns"])

test_a_missing_source_matches_nothing if not asks with input as {}
