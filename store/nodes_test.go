package store_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/registration"
	"github.com/writ-dev/writ/store"
)

func admissionRules() []rule {
	return []rule{
		{"a node that is admitted reads back as it was", admissionReadsBack},
		{"of fifty nodes that race with one token, one wins", oneTokenOneNode},
		{"a token serves its node key again until it expires", tokenServesAgain},
		{"evidence that another node key used is refused", usedEvidence},
		{"a refused admission uses nothing up", refusalUsesNothing},
		{"an admission without an ID or a key is refused", admissionNeedsKeys},
		{"selectors that would not read back are refused", unreadableSelectors},
		{"a node that attests anew takes the next generation", attestsAnew},
		{"an evicted node begins anew", evictedBeginsAnew},
		{"evicting a stranger is refused", evictStranger},
		{"a join token reads back, and its id is taken once", tokenReadsBack},
	}
}

func renewalRules() []rule {
	return []rule{
		{"a renewal takes the next generation and makes no revision", renewalIsNext},
		{"a lost answer is asked for again with the same SVID key", lostAnswer},
		{"any other generation locks the node", otherGenerationLocks},
		{"of two copies of one data directory none lives on", copiesLock},
		{"a locked node is refused until it is evicted", lockedStaysLocked},
		{"a stranger cannot lock a node", strangerLocksNothing},
	}
}

func key(name string) []byte { return []byte("key of " + name) }

// node is a node that its name tells from all others.
func node(name string) attest.Node {
	return attest.Node{
		ID: id("/writ/agent/x509pop/" + name), Method: "x509pop", Key: key(name), SVIDKey: key(name + "'s SVID"),
		Selectors: []attest.Selector{{Method: "x509pop", Key: "serial", Value: name}}, Assurance: attest.KeyFile, Reattestable: true,
		EvidenceKey: key(name + "'s evidence"), AttestedUntil: time.Date(2027, 1, 3, 0, 0, 0, 0, time.UTC), Serial: "5e" + name,
	}
}

func use(kind, what, holder string) attest.Use {
	return attest.Use{Kind: kind, Digest: sha256.Sum256([]byte(what)), Holder: sha256.Sum256(key(holder)),
		Expires: time.Date(2027, 1, 2, 4, 0, 0, 0, time.UTC)}
}

func token(tokenID string) attest.Token {
	return attest.Token{ID: tokenID, Key: bytes.Repeat([]byte{7}, 32), Expires: time.Date(2027, 1, 2, 4, 0, 0, 0, time.UTC), Server: "a"}
}

func (h *house) admit(n attest.Node, uses ...attest.Use) (attest.Node, error) {
	return h.Admit(context.Background(), attest.Admission{Node: n, Uses: uses}, audit.Attestation{From: "192.0.2.1", RequestID: "r1"})
}

func (h *house) admitted(n attest.Node, uses ...attest.Use) attest.Node {
	h.Helper()
	kept, err := h.admit(n, uses...)
	h.must(err)
	return kept
}

func (h *house) renew(n attest.Node) (attest.Node, error) {
	return h.Renew(context.Background(), n, audit.Attestation{Method: attest.Renewal})
}

// node is what is kept of a node.
func (h *house) node(name string) attest.Node {
	h.Helper()
	n, err := h.Node(context.Background(), node(name).ID.String())
	h.must(err)
	return n
}

// attestations are the audit records of one kind.
func (h *house) attestations() []audit.Attestation {
	h.Helper()
	return records[audit.Attestation](h, audit.KindAttestation)
}

func (h *house) admin() []audit.Admin {
	h.Helper()
	return records[audit.Admin](h, audit.KindAdmin)
}

func records[T any](h *house, kind string) (out []T) {
	h.Helper()
	for _, row := range h.state().Audit {
		if row.Kind != kind {
			continue
		}
		var one T
		h.must(json.Unmarshal(row.Record, &one))
		out = append(out, one)
	}
	return out
}

// nodeChanges are how often each node was in a revision.
func (h *house) nodeChanges() map[string]int {
	h.Helper()
	out := map[string]int{}
	for _, c := range h.state().Changes {
		if c.Kind == store.KindNode {
			out[c.ID]++
		}
	}
	return out
}

func admissionReadsBack(h *house) {
	_, err := h.Node(context.Background(), node("n").ID.String())
	h.want(err, fault.NotFound, fault.NodeUnknown)
	kept := h.admitted(node("n"))
	want := node("n")
	want.Generation, want.State, want.AttestedAt, want.Server = 1, attest.Attested, h.clock.Now(), "a"
	h.same("what Admit gives", kept, want)
	h.admitted(node("m"))
	h.reopen()
	h.same("node", h.node("n"), want)
	if s := h.state().Nodes; len(s) != 2 || s[0].ID != node("m").ID || s[1].ID != node("n").ID {
		h.Errorf("nodes are not m and n but %v", s)
	}
	h.same("changes", h.nodeChanges(), map[string]int{want.ID.String(): 1, node("m").ID.String(): 1})
	h.same("audit", h.attestations()[0], audit.Attestation{
		Time: h.clock.Now(), Server: "a", AgentID: want.ID.String(), Method: "x509pop", Selectors: []string{"x509pop:serial:n"}, Assurance: 2,
		NodeKey: sha256.Sum256(want.Key), Generation: 1, From: "192.0.2.1", Outcome: audit.Admitted, RequestID: "r1",
	})
	h.whole()
}

func oneTokenOneNode(h *house) {
	const nodes = 50
	errs := make([]error, nodes)
	kept := make([]attest.Node, nodes)
	together(nodes, func(i int) {
		name := fmt.Sprint(i)
		n := node("token")
		n.Key = key(name)
		kept[i], errs[i] = h.admit(n, use("join_token", "token", name))
	})
	won := slices.Index(errs, nil)
	if won < 0 {
		h.Fatalf("nobody won: %v", errs[0])
	}
	for i, err := range errs {
		if i != won {
			h.want(err, fault.Stale, fault.TokenUsed)
			h.same("what a loser gets", kept[i], attest.Node{})
		}
	}
	h.same("node", h.node("token"), kept[won])
	h.same("node key", h.node("token").Key, key(fmt.Sprint(won)))
	if n := len(h.attestations()); n != 1 {
		h.Errorf("%d attestations are recorded", n)
	}
}

func tokenServesAgain(h *house) {
	token := use("join_token", "token", "n")
	h.admitted(node("n"), token)
	h.clock.pass(time.Minute)
	again := h.admitted(node("n"), token) // its answer was lost
	if again.Generation != 2 {
		h.Errorf("generation %d, want 2", again.Generation)
	}
	h.reopen()
	h.clock.pass(token.Expires.Sub(h.clock.Now()) - time.Microsecond)
	h.admitted(node("n"), token)
	h.clock.pass(time.Microsecond)
	for _, row := range []struct{ name, holder string }{{"the same node key", "n"}, {"another node key", "m"}} {
		h.Run(row.name+" after the token expired", func(t *testing.T) {
			h := &house{t, h.DB, h.config, h.clock}
			n := node("n")
			n.Key = key(row.holder)
			h.refuses(fault.Stale, fault.TokenUsed, func() error {
				_, err := h.admit(n, use("join_token", "token", row.holder))
				return err
			})
		})
	}
	h.refuses(fault.Stale, fault.TokenUsed, func() error { // one that nobody used in time
		_, err := h.admit(node("m"), use("join_token", "another", "m"))
		return err
	})
}

func usedEvidence(h *house) {
	h.admitted(node("n"), use("aws_iid", "document", "n"))
	h.refuses(fault.Stale, fault.TokenUsed, func() error {
		_, err := h.admit(node("m"), use("aws_iid", "document", "m"))
		return err
	})
	h.must(h.Evict(context.Background(), node("n").ID.String(), operator))
	h.refuses(fault.Stale, fault.TokenUsed, func() error { // forgetting the node forgets no evidence
		_, err := h.admit(node("m"), use("aws_iid", "document", "m"))
		return err
	})
	h.admitted(node("m"), use("gcp_iit", "document", "m")) // another method's digest
	h.admitted(node("n"), use("aws_iid", "document", "n"))
}

func refusalUsesNothing(h *house) {
	h.admitted(node("n"), use("join_token", "used", "n"))
	h.refuses(fault.Stale, fault.TokenUsed, func() error {
		_, err := h.admit(node("m"), use("aws_iid", "fresh", "m"), use("join_token", "used", "m"))
		return err
	})
	h.admitted(node("o"), use("aws_iid", "fresh", "o"))
}

func admissionNeedsKeys(h *house) {
	noID, noKey := node("n"), node("n")
	noID.ID, noKey.Key = attest.Node{}.ID, nil
	for _, n := range []attest.Node{noID, noKey} {
		h.refuses(fault.Invalid, fault.BadEvidence, func() error {
			_, err := h.admit(n, use("join_token", "token", "n"))
			return err
		})
	}
	h.admitted(node("m"), use("join_token", "token", "m"))
}

func unreadableSelectors(h *house) {
	for _, s := range []attest.Selector{{}, {Method: "x509pop", Key: "subject"}, {Method: "x509pop", Key: "subject", Value: "a\nx509pop:subject:b"},
		{Method: "x509pop", Key: "a:b", Value: "c"}, {Method: "x509pop", Key: "subject", Value: "\xff"}} {
		n := node("n")
		n.Selectors = append(n.Selectors, s)
		h.refuses(fault.Invalid, fault.BadEvidence, func() error {
			_, err := h.admit(n)
			return err
		})
	}
	n := node("n")
	n.Selectors = []attest.Selector{{Method: "x509pop", Key: "san", Value: "spiffe://a:1/ü?x=1"}, {Method: "x509pop", Key: "subject", Value: " "}}
	h.admitted(n)
	h.same("selectors", h.node("n").Selectors, n.Selectors)
}

func attestsAnew(h *house) {
	h.admitted(node("n"))
	h.clock.pass(time.Hour)
	again := h.admitted(node("n"))
	if again.Generation != 2 || !again.AttestedAt.Equal(h.clock.Now()) {
		h.Errorf("generation %d, attested at %s", again.Generation, again.AttestedAt)
	}
	agent := again.ID.String()
	h.same("changes: nobody else need hear of it", h.nodeChanges(), map[string]int{agent: 1})
	n := node("n")
	n.Key = key("a new installation")
	if again = h.admitted(n); again.Generation != 3 {
		h.Errorf("generation %d, want 3", again.Generation)
	}
	n.Selectors = append(n.Selectors, attest.Selector{Method: "x509pop", Key: "subject", Value: "web-1"})
	h.admitted(n)
	h.same("changes: key, then selectors", h.nodeChanges(), map[string]int{agent: 3})
	_, err := h.renew(with(node("n"), func(n *attest.Node) { n.Generation = 5 }))
	h.want(err, fault.NotFound, fault.NodeUnknown) // by the key that was replaced
	h.whole()
}

func with(n attest.Node, change func(*attest.Node)) attest.Node {
	change(&n)
	return n
}

func evictedBeginsAnew(h *house) {
	h.admitted(node("n"))
	h.admitted(node("n"))
	h.must(h.Evict(context.Background(), node("n").ID.String(), operator))
	_, err := h.Node(context.Background(), node("n").ID.String())
	h.want(err, fault.NotFound, fault.NodeUnknown)
	_, err = h.renew(with(node("n"), func(n *attest.Node) { n.Generation = 3 }))
	h.want(err, fault.NotFound, fault.NodeUnknown)
	h.same("audit", h.admin()[0], audit.Admin{Time: h.clock.Now(), Server: "a", Principal: "uid:1000", Act: audit.ActEvict,
		Subject: node("n").ID.String(), Changes: []string{"evicted " + node("n").ID.String()}, Revision: 2, RequestID: "r1"})
	if again := h.admitted(node("n")); again.Generation != 1 {
		h.Errorf("generation %d, want 1", again.Generation)
	}
	h.same("changes", h.nodeChanges(), map[string]int{node("n").ID.String(): 3})
}

func evictStranger(h *house) {
	h.admitted(node("n"))
	for _, subject := range []string{"", "n", node("m").ID.String()} {
		h.refuses(fault.NotFound, fault.NodeUnknown, func() error { return h.Evict(context.Background(), subject, operator) })
	}
}

func tokenReadsBack(h *house) {
	ctx := context.Background()
	plain, narrow := token("t1"), token("t2")
	narrow.Name, narrow.CIDR = "web-1", prefix("2001:db8::/32")
	h.must(h.CreateToken(ctx, plain, operator))
	h.must(h.CreateToken(ctx, narrow, operator))
	h.refuses(fault.Conflict, "", func() error {
		other := token("t1")
		other.Key = bytes.Repeat([]byte{8}, 32)
		return h.CreateToken(ctx, other, operator)
	})
	h.refuses(fault.Invalid, "", func() error { return h.CreateToken(ctx, token(""), operator) })
	h.refuses(fault.Invalid, "", func() error {
		short := token("t3")
		short.Key = short.Key[:31]
		return h.CreateToken(ctx, short, operator)
	})
	h.reopen()
	for _, want := range []attest.Token{plain, narrow} {
		got, err := h.Token(ctx, want.ID)
		h.must(err)
		if got.Name != want.Name || got.CIDR != want.CIDR || !got.Expires.Equal(want.Expires) || !bytes.Equal(got.Key, want.Key) || got.Server != "a" {
			h.Errorf("token %+v, want %+v", got, want)
		}
	}
	_, err := h.Token(ctx, "t3")
	h.want(err, fault.NotFound, fault.TokenUsed)
	h.same("revision", h.state().At, registration.Revision{})
	h.same("audit", h.admin()[0], audit.Admin{Time: h.clock.Now(), Server: "a", Principal: "uid:1000", Act: audit.ActToken, Subject: "t1", RequestID: "r1"})
}

func renewalIsNext(h *house) {
	h.admitted(node("n"))
	before := h.state()
	h.clock.pass(time.Hour)
	asked := attest.Node{ID: node("n").ID, Key: key("n"), SVIDKey: key("next"), Generation: 2, Serial: "07",
		AttestedUntil: h.clock.Now().Add(time.Hour).Truncate(time.Microsecond)}
	kept, err := h.renew(asked)
	h.must(err)
	want := before.Nodes[0]
	want.SVIDKey, want.Generation, want.Serial, want.AttestedUntil = asked.SVIDKey, 2, "07", asked.AttestedUntil
	h.same("what Renew gives", kept, want)
	h.same("node", h.node("n"), want)
	h.same("revision", h.state().At, before.At)
	h.same("audit", h.attestations()[1], audit.Attestation{
		Time: h.clock.Now(), Server: "a", AgentID: want.ID.String(), Method: attest.Renewal, Selectors: []string{"x509pop:serial:n"}, Assurance: 2,
		NodeKey: sha256.Sum256(want.Key), Generation: 2, Outcome: audit.Renewed,
	})
}

func lostAnswer(h *house) {
	n := h.admitted(node("n"))
	n.Serial = "a1"
	if kept, err := h.renew(n); err != nil || kept.Generation != 1 || kept.Serial != "a1" {
		h.Fatalf("first generation again: %+v, %v", kept, err)
	}
	n.Generation, n.SVIDKey = 2, key("second")
	for range 3 {
		kept, err := h.renew(n)
		if err != nil || kept.Generation != 2 {
			h.Fatalf("second generation: %+v, %v", kept, err)
		}
	}
	if s := h.node("n"); s.State != attest.Attested {
		h.Errorf("node is %s", s.State)
	}
}

func otherGenerationLocks(h *house) {
	for _, row := range []struct {
		name       string
		generation uint64
		key        []byte
	}{
		{"the same with another SVID key", 2, key("another")},
		{"the one before", 1, key("second")},
		{"the one after the next", 4, key("third")},
		{"none", 0, key("second")},
		{"a number without end", 1 << 63, key("second")},
	} {
		h.Run(row.name, func(t *testing.T) {
			h := &house{t, h.DB, h.config, h.clock}
			h.admitted(node("n"))
			defer func() { h.must(h.Evict(context.Background(), node("n").ID.String(), operator)) }()
			if _, err := h.renew(with(node("n"), func(n *attest.Node) { n.Generation, n.SVIDKey = 2, key("second") })); err != nil {
				h.Fatal(err)
			}
			kept := h.node("n")
			changes := h.nodeChanges()[kept.ID.String()]
			got, err := h.renew(with(node("n"), func(n *attest.Node) { n.Generation, n.SVIDKey = row.generation, row.key }))
			h.want(err, fault.Denied, fault.NodeLocked)
			h.same("what Renew gives", got, attest.Node{})
			kept.State = attest.Locked
			h.same("node", h.node("n"), kept)
			if got := h.nodeChanges()[kept.ID.String()]; got != changes+1 {
				h.Errorf("%d revisions say that it was locked", got-changes)
			}
			last := h.attestations()
			if got := last[len(last)-1]; got.Outcome != audit.Locked || got.Generation != 2 {
				h.Errorf("audit says %+v", got)
			}
		})
	}
	h.whole()
}

func copiesLock(h *house) {
	h.admitted(node("n"))
	errs := make([]error, 2)
	together(2, func(i int) {
		_, errs[i] = h.renew(with(node("n"), func(n *attest.Node) { n.Generation, n.SVIDKey = 2, key(fmt.Sprint(i)) }))
	})
	first := slices.Index(errs, nil)
	if first < 0 {
		h.Fatalf("neither was taken: %v", errs)
	}
	h.want(errs[1-first], fault.Denied, fault.NodeLocked)
	_, err := h.renew(with(node("n"), func(n *attest.Node) { n.Generation, n.SVIDKey = 3, key("next") }))
	h.want(err, fault.Denied, fault.NodeLocked)
}

func lockedStaysLocked(h *house) {
	h.admitted(node("n"))
	_, err := h.renew(with(node("n"), func(n *attest.Node) { n.Generation = 7 }))
	h.want(err, fault.Denied, fault.NodeLocked)
	h.reopen()
	for what, do := range map[string]func() error{
		"renewing": func() error {
			_, err := h.renew(with(node("n"), func(n *attest.Node) { n.Generation = 2 }))
			return err
		},
		"attesting anew": func() error { _, err := h.admit(node("n"), use("aws_iid", "fresh", "n")); return err },
		"with a new key": func() error {
			_, err := h.admit(with(node("n"), func(n *attest.Node) { n.Key = key("new") }))
			return err
		},
		"as a generation": func() error {
			_, err := h.admit(with(node("n"), func(n *attest.Node) { n.Generation = 2 }))
			return err
		},
	} {
		h.Run(what, func(t *testing.T) {
			h := &house{t, h.DB, h.config, h.clock}
			h.refuses(fault.Denied, fault.NodeLocked, do)
		})
	}
	h.must(h.Evict(context.Background(), node("n").ID.String(), operator))
	h.admitted(node("n"), use("aws_iid", "fresh", "n"))
}

func strangerLocksNothing(h *house) {
	h.admitted(node("n"))
	for _, generation := range []uint64{0, 1, 2, 9} {
		h.refuses(fault.NotFound, fault.NodeUnknown, func() error {
			_, err := h.renew(with(node("n"), func(n *attest.Node) { n.Generation, n.Key = generation, key("stranger") }))
			return err
		})
	}
	h.refuses(fault.NotFound, fault.NodeUnknown, func() error {
		_, err := h.renew(with(node("m"), func(n *attest.Node) { n.Generation = 2 }))
		return err
	})
}
