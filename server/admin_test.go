package server_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-dev/writ/api/adminv1"
	"github.com/writ-dev/writ/api/registrationv1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/attest/jointoken"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/server"
)

func TestEveryActIsRecordedWithWhoDidIt(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	d.apply(entry("orders"), entry("billing"))
	d.remove("billing")
	h := d.join("web-1")
	must(d.admin.BanNode(t.Context(), &adminv1.BanNodeRequest{Subject: h.id, Reason: "stolen"}))(t)
	must(d.admin.EvictNode(t.Context(), &adminv1.EvictNodeRequest{AgentId: h.id}))(t)
	var acts []string
	for _, r := range records[audit.Admin](d, audit.KindAdmin) {
		acts = append(acts, fmt.Sprintf("%s %v %s", r.Act, r.Changes, r.Reason))
		if want := fmt.Sprintf("uid:%d", os.Getuid()); r.Principal != want || r.RequestID == "" || r.Server != "one" {
			t.Errorf("record %+v, want principal %s and a request id", r, want)
		}
	}
	want := []string{"entry apply [created billing created orders] ", "entry apply [deleted billing] ", "token create [] ",
		"node ban [banned " + h.id + "] stolen", "node evict [evicted " + h.id + "] "}
	if diff := cmp.Diff(want, acts); diff != "" {
		t.Errorf("acts (-want +got):\n%s", diff)
	}
}

func TestApplyEntriesRefusesTheWholeForOne(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	before := d.apply(entry("stays"))
	id := func(id string) *registrationv1.Entry { e := entry("bad"); e.SpiffeId = id; return e }
	with := func(change func(*registrationv1.Entry)) *registrationv1.Entry { e := entry("bad"); change(e); return e }
	for _, row := range []struct {
		name string
		bad  *registrationv1.Entry
		why  string
	}{
		{"foreign trust domain", id("spiffe://example.net/orders"), "not of trust domain"},
		{"root path", id("spiffe://example.org"), "no path"},
		{"reserved for agents", id("spiffe://example.org/writ/agent/join_token/x"), "reserved"},
		{"reserved for servers", id("spiffe://example.org/writ/server/one"), "reserved"},
		{"over 2048 bytes", id("spiffe://example.org/" + strings.Repeat("x", 2048)), "2048"},
		{"path with dots", id("spiffe://example.org/a/../b"), ""},
		{"no where", with(func(e *registrationv1.Entry) { e.Any = false }), "where"},
		{"where and any", with(func(e *registrationv1.Entry) { e.Where = []string{"join_token:name:x"} }), "exclude"},
		{"no match", with(func(e *registrationv1.Entry) { e.Match = nil }), "match"},
		{"no ID", id(""), "neither id nor path"},
		{"a selector that is none", with(func(e *registrationv1.Entry) { e.Match = []string{"unix"} }), "selector"},
		{"a ttl over half of the issuing certificate's", with(func(e *registrationv1.Entry) { e.Ttl = seconds(13 * 3600) }), "ttl"},
		{"a ttl of nothing", with(func(e *registrationv1.Entry) { e.Ttl = &durationpb.Duration{} }), "ttl"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := d.admin.ApplyEntries(t.Context(), &adminv1.ApplyEntriesRequest{Entries: []*registrationv1.Entry{entry("good"), row.bad}})
			wantFault(t, err, fault.Invalid, fault.BadEntry)
			var refused *fault.Error
			if f, ok := fault.FromStatus(err).(*fault.Error); ok {
				refused = f
			}
			if refused == nil || len(refused.Why) != 1 || !strings.HasPrefix(refused.Why[0], "entry 2 ") || !strings.Contains(refused.Why[0], row.why) {
				t.Errorf("the reason is %v", refused)
			}
			list := must(d.admin.ListEntries(t.Context(), &adminv1.ListEntriesRequest{}))(t)
			if len(list.Entries) != 1 || list.Revision != before {
				t.Errorf("%d entries at revision %d, want 1 at %d", len(list.Entries), list.Revision, before)
			}
		})
	}
}

func TestApplyEntriesSaysWhatItChanged(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	d.apply(entry("orders"), entry("billing"))
	changed := entry("billing")
	changed.Hint = "primary"
	apply := func(dry bool) (acts []string, revision uint64) {
		answer := must(d.admin.ApplyEntries(t.Context(), &adminv1.ApplyEntriesRequest{DryRun: dry,
			Entries: []*registrationv1.Entry{entry("orders"), changed, entry("third")}}))(t)
		for _, c := range answer.Changes {
			acts = append(acts, c.Act.String()+" "+c.Entry.Name)
		}
		return acts, answer.Revision
	}
	want := []string{"UPDATED billing", "UNCHANGED orders", "CREATED third"}
	before := must(d.admin.ListEntries(t.Context(), &adminv1.ListEntriesRequest{}))(t)
	acts := len(records[audit.Admin](d, audit.KindAdmin))
	got, revision := apply(true)
	if diff := cmp.Diff(want, got); diff != "" || revision != before.Revision {
		t.Errorf("dry run at revision %d (-want +got):\n%s", revision, diff)
	}
	must(d.admin.DeleteEntries(t.Context(), &adminv1.DeleteEntriesRequest{Names: []string{"orders"}, DryRun: true}))(t)
	after := must(d.admin.ListEntries(t.Context(), &adminv1.ListEntriesRequest{}))(t)
	if diff := cmp.Diff(before, after, protocmp.Transform()); diff != "" || len(records[audit.Admin](d, audit.KindAdmin)) != acts {
		t.Errorf("the dry run changed something:\n%s", diff)
	}
	got, revision = apply(false)
	if diff := cmp.Diff(want, got); diff != "" || revision != before.Revision+1 {
		t.Errorf("revision %d (-want +got):\n%s", revision, diff)
	}
}

func TestEntriesAreFoundAndDeletedByNameAndID(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	second := entry("second")
	second.SpiffeId = ordersID
	d.apply(entry("orders"), second, entry("billing"))
	names := func(ask ...string) (names []string) {
		for _, e := range must(d.admin.ListEntries(t.Context(), &adminv1.ListEntriesRequest{Names: ask}))(t).Entries {
			names = append(names, e.Name)
		}
		return names
	}
	if got := names(ordersID, "billing"); !slices.Equal(got, []string{"billing", "orders", "second"}) {
		t.Errorf("found %v", got)
	}
	_, err := d.admin.ListEntries(t.Context(), &adminv1.ListEntriesRequest{Names: []string{"orders", "none"}})
	wantFault(t, err, fault.NotFound, fault.EntryUnknown)
	_, err = d.admin.DeleteEntries(t.Context(), &adminv1.DeleteEntriesRequest{Names: []string{"orders", "none"}})
	wantFault(t, err, fault.NotFound, fault.EntryUnknown)
	_, err = d.admin.DeleteEntries(t.Context(), &adminv1.DeleteEntriesRequest{})
	wantFault(t, err, fault.Invalid, "")
	if got := names(); len(got) != 3 {
		t.Errorf("left are %v", got)
	}
	d.remove(ordersID)
	if got := names(); !slices.Equal(got, []string{"billing"}) {
		t.Errorf("left are %v", got)
	}
}

func TestCreateTokenKeepsItsLimits(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	for _, row := range []struct {
		name    string
		request *adminv1.CreateTokenRequest
	}{
		{"no life", &adminv1.CreateTokenRequest{Ttl: seconds(0)}},
		{"half a second", &adminv1.CreateTokenRequest{Ttl: durationpb.New(500 * time.Millisecond)}},
		{"a past", &adminv1.CreateTokenRequest{Ttl: seconds(-60)}},
		{"over 30 days", &adminv1.CreateTokenRequest{Ttl: seconds(30*24*3600 + 1)}},
		{"as long as can be", &adminv1.CreateTokenRequest{Ttl: seconds(1 << 40)}},
		{"a network without bits", &adminv1.CreateTokenRequest{Cidr: "10.0.0.1"}},
		{"a network that is none", &adminv1.CreateTokenRequest{Cidr: "web-1"}},
		{"a name with a line break", &adminv1.CreateTokenRequest{Node: "web\n1"}},
		{"a name with a blank", &adminv1.CreateTokenRequest{Node: "web 1"}},
		{"a name that is not ASCII", &adminv1.CreateTokenRequest{Node: "w\u00e9b"}},
		{"a name that a selector holds and a host has not", &adminv1.CreateTokenRequest{Node: strings.Repeat("x", 254)}},
		{"a name too long", &adminv1.CreateTokenRequest{Node: strings.Repeat("x", 256)}},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := d.admin.CreateToken(t.Context(), row.request)
			wantFault(t, err, fault.Invalid, "")
		})
	}
	if got := records[audit.Admin](d, audit.KindAdmin); len(got) > 0 {
		t.Errorf("%d acts are recorded", len(got))
	}
	made := must(d.admin.CreateToken(t.Context(), &adminv1.CreateTokenRequest{Node: "web-1", Cidr: "127.0.0.0/8"}))(t)
	kept := must(d.db.Token(t.Context(), made.Id))(t)
	if kept.Name != "web-1" || kept.CIDR.String() != "127.0.0.0/8" || kept.Server != "one" || !kept.Expires.Equal(made.Expires.AsTime()) {
		t.Errorf("kept is %+v", kept)
	}
	if left := time.Until(kept.Expires); left < 9*time.Minute || left > 10*time.Minute {
		t.Errorf("without a ttl it lives for %s", left)
	}
	text := must(jointoken.Decode(made.Token))(t)
	if !slices.Equal(text.Addresses, []string{d.address}) || len(text.Pins) != 1 {
		t.Errorf("the token names %v and %d pins", text.Addresses, len(text.Pins))
	}
	must(d.newHost(attestorOf(t, made.Token)).attest(bent{}))(t)
}

func TestNoTokensWhereTheMethodIsOff(t *testing.T) {
	t.Parallel()
	d := newDomain(t, func(c *server.Config) { delete(c.Verifiers, jointoken.Method) })
	_, err := d.admin.CreateToken(t.Context(), &adminv1.CreateTokenRequest{})
	wantFault(t, err, fault.Invalid, fault.MethodOff)
}

func TestNodesAreListed(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	h := d.join("web-1")
	must(h.renew(2, newKey(t)))(t)
	f := h.follow()
	f.next()
	var n *adminv1.Node
	d.until("the agent's ack is there", func() bool {
		n = must(d.admin.ListNodes(t.Context(), &adminv1.ListNodesRequest{}))(t).Nodes[0]
		return n.Connected && n.Revision >= f.revision
	})
	if n.AgentId != h.id || n.Method != "join_token" || n.State != string(attest.Attested) || n.Generation != 2 ||
		!slices.Equal(n.Selectors, []string{"join_token:name:web-1"}) || time.Until(n.AttestedUntil.AsTime()) < 59*time.Minute {
		t.Errorf("the node is %v", n)
	}
}

func TestDryRunsTouchNoNode(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	h := d.join("web-1")
	d.join("web-2")
	acts := len(records[audit.Admin](d, audit.KindAdmin))
	banned := must(d.admin.BanNode(t.Context(), &adminv1.BanNodeRequest{Subject: "join_token:name:web-1", DryRun: true}))(t)
	if !slices.Equal(banned.AgentIds, []string{h.id}) {
		t.Errorf("it would ban %v", banned.AgentIds)
	}
	must(d.admin.EvictNode(t.Context(), &adminv1.EvictNodeRequest{AgentId: h.id, DryRun: true}))(t)
	must(h.sign())(t)
	if got := len(records[audit.Admin](d, audit.KindAdmin)); got != acts {
		t.Errorf("%d acts are recorded", got-acts)
	}
}

func TestUnknownNodes(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	for _, id := range []string{"spiffe://example.org/writ/agent/join_token/none", "spiffe://example.org/orders", "spiffe://example.net/writ/agent/x/y", "web-1", ""} {
		for _, dry := range []bool{true, false} {
			_, err := d.admin.EvictNode(t.Context(), &adminv1.EvictNodeRequest{AgentId: id, DryRun: dry})
			wantFault(t, err, fault.NotFound, fault.NodeUnknown)
		}
	}
	for subject, kind := range map[string]fault.Kind{"spiffe://example.org/orders": fault.NotFound, "spiffe://example.net/writ/agent/x/y": fault.NotFound,
		"web-1": fault.Invalid, "a:b": fault.Invalid, "": fault.Invalid} {
		if _, err := d.admin.BanNode(t.Context(), &adminv1.BanNodeRequest{Subject: subject}); !fault.Is(fault.FromStatus(err), kind) {
			t.Errorf("banning %q is answered %v", subject, err)
		}
	}
	// A node may be banned before it comes.
	machine := d.machine("web-1")
	must(d.admin.BanNode(t.Context(), &adminv1.BanNodeRequest{Subject: "x509pop:subject:web-1"}))(t)
	_, err := d.newHost(machine).attest(bent{})
	wantFault(t, err, fault.Denied, fault.NodeBanned)
}

func TestGetBundleGivesTheRoots(t *testing.T) {
	t.Parallel()
	d := newDomain(t)
	b := must(d.admin.GetBundle(context.Background(), &adminv1.GetBundleRequest{}))(t)
	if roots := d.authority.Bundle().Roots; b.TrustDomain != "example.org" || len(b.X509Authorities) != 1 || !slices.Equal(b.X509Authorities[0], roots[0].Raw) {
		t.Errorf("the bundle is of %s with %d roots", b.TrustDomain, len(b.X509Authorities))
	}
}
