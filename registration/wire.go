package registration

import (
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-dev/writ/api/registrationv1"
	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/svid"
)

// ToWire gives the wire form.
func ToWire(e Entry) *registrationv1.Entry {
	w := &registrationv1.Entry{
		Name: e.Name, SpiffeId: e.ID.String(), Where: texts(e.Where), Any: e.Any, Match: texts(e.Match),
		Dns: slices.Clone(e.DNS), Hint: e.Hint, FederatesWith: texts(e.FederatesWith), Revision: e.Revision, Created: e.Created,
	}
	if e.TTL != 0 {
		w.Ttl = durationpb.New(e.TTL)
	}
	if e.JWTTTL != 0 {
		w.JwtTtl = durationpb.New(e.JWTTTL)
	}
	if !e.Expires.IsZero() {
		w.Expires = timestamppb.New(e.Expires)
	}
	return w
}

// FromWire reads the wire form, and refuses what is wrong wherever the entry is served. The error is fault.Invalid and lists
// every reason.
func FromWire(w *registrationv1.Entry) (Entry, error) {
	r := wireReader{entry: Entry{Name: w.GetName(), Any: w.GetAny(), DNS: slices.Clone(w.GetDns()), Hint: w.GetHint(),
		Revision: w.GetRevision(), Created: w.GetCreated()}}
	e := &r.entry
	if w.GetSpiffeId() != "" {
		e.ID = read(&r, "id", w.GetSpiffeId(), svid.ParseID)
	}
	if e.Name == "" {
		e.Name = w.GetSpiffeId()
	}
	e.Where = sortedOnce(readAll(&r, "where", w.GetWhere(), attest.ParseSelector), attest.Selector.Compare)
	e.Match = sortedOnce(readAll(&r, "match", w.GetMatch(), attest.ParseSelector), attest.Selector.Compare)
	e.FederatesWith = sortedOnce(readAll(&r, "federates_with", w.GetFederatesWith(), svid.ParseTrustDomain), spiffeid.TrustDomain.Compare)
	e.TTL = r.duration("ttl", w.GetTtl())
	e.JWTTTL = r.duration("jwt_ttl", w.GetJwtTtl())
	e.Expires = r.time("expires", w.GetExpires())
	if len(r.problems) > 0 {
		return Entry{}, refuse(*e, r.problems)
	}
	if err := refuse(*e, e.problems()); err != nil {
		return Entry{}, err
	}
	return *e, nil
}

// wireReader collects what cannot be read.
type wireReader struct {
	entry    Entry
	problems []problem
}

func (r *wireReader) wrong(key string, err error) {
	r.problems = append(r.problems, problem{key, err.Error()})
}

func read[T any](r *wireReader, key, text string, parse func(string) (T, error)) T {
	value, err := parse(text)
	if err != nil {
		r.wrong(key, err)
	}
	return value
}

func readAll[T any](r *wireReader, key string, list []string, parse func(string) (T, error)) []T {
	out := make([]T, 0, len(list))
	for _, text := range list {
		out = append(out, read(r, key, text, parse))
	}
	return out
}

func (r *wireReader) duration(key string, d *durationpb.Duration) time.Duration {
	if d == nil {
		return 0
	}
	if err := d.CheckValid(); err != nil || d.AsDuration() == 0 || durationpb.New(d.AsDuration()).Seconds != d.Seconds {
		r.wrong(key, fmt.Errorf("%s is zero or out of range", key)) // zero would mean the server's default
	}
	return d.AsDuration()
}

func (r *wireReader) time(key string, t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	if err := t.CheckValid(); err != nil || t.AsTime().IsZero() {
		r.wrong(key, fmt.Errorf("%s is no time", key)) // the zero time would mean never
	}
	return t.AsTime()
}

func texts[T fmt.Stringer](list []T) []string {
	var out []string
	for _, value := range list {
		out = append(out, value.String())
	}
	return out
}
