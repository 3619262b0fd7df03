package store_test

import (
	"context"
	"testing"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/internal/fault"
)

func banRules() []rule {
	return []rule{
		{"a banned agent ID does not come back, nor its keys under another", banByAgentID},
		{"a banned selector takes out who carries it, now and later", banBySelector},
		{"a ban covers whoever shares a key with a banned node", banSpreads},
		{"a dry run names whom a ban would touch and touches nobody", banDryRun},
		{"a ban outlives its node", banOutlives},
		{"a ban that names neither agent nor selector is refused", banSubjects},
	}
}

func (h *house) ban(subject string) []string {
	h.Helper()
	ids, err := h.Ban(context.Background(), attest.Ban{Subject: subject, Reason: "stolen"}, operator)
	h.must(err)
	return ids
}

// shut ends the test unless such a node is refused as banned.
func (h *house) shut(what string, n attest.Node) {
	h.Helper()
	h.Run(what, func(t *testing.T) {
		h := &house{t, h.DB, h.config, h.clock}
		h.refuses(fault.Denied, fault.NodeBanned, func() error {
			_, err := h.admit(n, use("aws_iid", "fresh", "n"))
			return err
		})
	})
}

func banByAgentID(h *house) {
	h.admitted(node("n"))
	h.admitted(node("m"))
	agent := node("n").ID.String()
	h.same("touched", h.ban(agent), []string{agent})
	want := h.node("n")
	if want.State != attest.Banned {
		h.Fatalf("node is %s", want.State)
	}
	h.same("changes", h.nodeChanges()[agent], 2)
	h.same("audit", h.admin()[0], audit.Admin{Time: h.clock.Now(), Server: "a", Principal: "uid:1000", Act: audit.ActBan, Subject: agent,
		Changes: []string{"banned " + agent}, Reason: "stolen", Revision: 3, RequestID: "r1"})
	h.reopen()
	h.shut("itself", node("n"))
	h.shut("its agent ID with other keys", with(node("x"), func(n *attest.Node) { n.ID = node("n").ID }))
	h.shut("its node key under another name", with(node("x"), func(n *attest.Node) { n.Key = node("n").Key }))
	h.shut("its evidence under another name", with(node("x"), func(n *attest.Node) { n.EvidenceKey = node("n").EvidenceKey }))
	h.refuses(fault.Denied, fault.NodeBanned, func() error {
		_, err := h.renew(with(node("n"), func(n *attest.Node) { n.Generation = 2 }))
		return err
	})
	h.admitted(with(node("x"), func(n *attest.Node) { n.Selectors = node("n").Selectors })) // what others share is not banned
	_, err := h.renew(with(node("m"), func(n *attest.Node) { n.Generation = 2 }))
	h.must(err)
	h.whole()
}

func banBySelector(h *house) {
	rack := attest.Selector{Method: "x509pop", Key: "ca", Value: "rack:7"}
	in := func(name string) attest.Node {
		return with(node(name), func(n *attest.Node) { n.Selectors = append([]attest.Selector{rack}, n.Selectors...) })
	}
	h.admitted(in("a"))
	h.admitted(in("b"))
	h.admitted(node("c"))
	h.same("touched", h.ban(rack.String()), []string{node("a").ID.String(), node("b").ID.String()})
	for name, want := range map[string]attest.NodeState{"a": attest.Banned, "b": attest.Banned, "c": attest.Attested} {
		if got := h.node(name).State; got != want {
			h.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	h.shut("a newcomer with the selector", in("x"))
	h.shut("an admitted one that gains the selector", in("c"))
	h.shut("a banned one without the selector", node("a"))
	h.shut("a newcomer with a banned one's node key", with(node("x"), func(n *attest.Node) { n.Key = node("b").Key }))
	h.admitted(node("c"))
	h.same("banned before anyone carries it", h.ban("x509pop:subject:nobody"), []string(nil))
	h.shut("the first that carries it", with(node("x"), func(n *attest.Node) {
		n.Selectors = []attest.Selector{{Method: "x509pop", Key: "subject", Value: "nobody"}}
	}))
}

// One host may have been there under several names: a key that two nodes share makes them one.
func banSpreads(h *house) {
	h.admitted(node("a"))
	h.admitted(with(node("b"), func(n *attest.Node) { n.EvidenceKey = node("a").EvidenceKey }))
	h.admitted(with(node("c"), func(n *attest.Node) { n.Key = node("b").Key }))
	h.admitted(node("d"))
	h.same("touched", h.ban(node("c").ID.String()), []string{node("a").ID.String(), node("b").ID.String(), node("c").ID.String()})
	h.shut("the first one's node key", with(node("x"), func(n *attest.Node) { n.Key = node("a").Key }))
	h.admitted(node("d"))
	h.admitted(with(node("x"), func(n *attest.Node) { n.EvidenceKey = nil })) // having none is not sharing one
	h.admitted(with(node("y"), func(n *attest.Node) { n.EvidenceKey = nil }))
	h.same("touched", h.ban(node("x").ID.String()), []string{node("x").ID.String()})
}

func banDryRun(h *house) {
	h.admitted(node("a"))
	h.admitted(with(node("b"), func(n *attest.Node) { n.EvidenceKey = node("a").EvidenceKey }))
	before := h.state()
	would, err := h.Ban(context.Background(), attest.Ban{Subject: node("a").ID.String(), DryRun: true}, operator)
	h.must(err)
	h.same("after a dry run", h.state(), before)
	h.same("what it said", would, h.ban(node("a").ID.String()))
}

func banOutlives(h *house) {
	h.admitted(node("n"))
	h.ban("x509pop:serial:n")
	h.must(h.Evict(context.Background(), node("n").ID.String(), operator))
	h.reopen()
	h.shut("itself", node("n"))
	h.shut("its evidence under another name", with(node("x"), func(n *attest.Node) { n.EvidenceKey = node("n").EvidenceKey }))
	h.ban(node("never").ID.String())
	h.shut("one that was never there", node("never"))
}

func banSubjects(h *house) {
	h.admitted(node("n"))
	for _, subject := range []string{"", "n", "x509pop:serial", "x509pop:serial:", "spiffe://", "spiffe://example.org/a/../b", "spiffe://example.org/%6e",
		"x509pop:serial:n\n"} {
		for _, dry := range []bool{false, true} {
			h.refuses(fault.Invalid, "", func() error {
				_, err := h.Ban(context.Background(), attest.Ban{Subject: subject, DryRun: dry}, operator)
				return err
			})
		}
	}
}
