package registration

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/internal/strictyaml"
	"github.com/writ-dev/writ/svid"
)

// maxInput bounds what Read takes from a stream.
const maxInput = 256 << 20

// Parse reads the YAML documents of one file, whose name is for errors only. One refused entry refuses them all: the error is
// fault.Invalid and lists every mistake with file, line and column. Entries are in the order of the file.
func Parse(name string, data []byte, td spiffeid.TrustDomain) ([]Entry, error) {
	r := reader{td: td}
	r.file(name, data)
	return r.done()
}

// ReadPath reads a file, or the files of a folder that end in .yaml or .yml, by name; names that begin with a dot are skipped, and
// so are folders within. One refused entry refuses them all.
func ReadPath(path string, td spiffeid.TrustDomain) ([]Entry, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, unreadable(err)
	}
	files := []string{path}
	if info.IsDir() {
		if files, err = filesOf(path); err != nil {
			return nil, unreadable(err)
		}
	}
	r := reader{td: td}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, unreadable(err)
		}
		r.file(file, data)
	}
	return r.done()
}

// Read is Parse for a stream, such as standard input.
func Read(name string, stream io.Reader, td spiffeid.TrustDomain) ([]Entry, error) {
	data, err := io.ReadAll(io.LimitReader(stream, maxInput+1))
	if err != nil {
		return nil, unreadable(fmt.Errorf("%s: %w", name, err))
	}
	if len(data) > maxInput {
		return nil, unreadable(fmt.Errorf("%s has more than %d bytes", name, maxInput))
	}
	return Parse(name, data, td)
}

func filesOf(folder string) ([]string, error) {
	inside, err := os.ReadDir(folder) // by name
	if err != nil {
		return nil, err
	}
	var files []string
	for _, f := range inside {
		name, ext := f.Name(), filepath.Ext(f.Name())
		if !f.IsDir() && !strings.HasPrefix(name, ".") && (ext == ".yaml" || ext == ".yml") {
			files = append(files, filepath.Join(folder, name))
		}
	}
	return files, nil
}

func unreadable(err error) error {
	return fault.New(fault.Invalid, err, "entries cannot be read").Because(err.Error()).With(fault.BadEntry, "name a file or folder that can be read with -f")
}

// reader gathers entries and mistakes over all files of one batch.
type reader struct {
	td      spiffeid.TrustDomain
	entries []Entry
	places  map[string]string // where a name was given
	wrong   []string
}

func (r *reader) file(name string, data []byte) {
	documents, err := strictyaml.Documents(name, data)
	if err != nil {
		r.refuse(err)
	}
	for _, d := range documents {
		r.document(d)
	}
}

func (r *reader) document(d strictyaml.Document) {
	var text entryText
	if err := d.Decode(&text); err != nil {
		r.refuse(err)
		return
	}
	e, problems := text.entry(r.td)
	if len(problems) == 0 {
		problems = append(e.problems(), e.foreign(r.td)...)
	}
	for _, p := range problems {
		key := p.key
		if key == "id" && text.Path != nil {
			key = "path"
		}
		r.wrong = append(r.wrong, d.At(key)+": "+p.what)
	}
	place := d.At("name")
	if first, there := r.places[e.Name]; there && e.Name != "" {
		r.wrong = append(r.wrong, fmt.Sprintf("%s: the name %q is taken by the entry at %s; two entries for one SPIFFE ID need names",
			place, e.Name, first))
		return
	}
	if r.places == nil {
		r.places = map[string]string{}
	}
	r.places[e.Name] = place
	r.entries = append(r.entries, e)
}

// refuse takes one reason from each line of err.
func (r *reader) refuse(err error) {
	r.wrong = append(r.wrong, strings.Split(err.Error(), "\n")...)
}

func (r *reader) done() ([]Entry, error) {
	if len(r.wrong) == 0 {
		return r.entries, nil
	}
	return nil, fault.New(fault.Invalid, nil, "entries are refused, nothing is changed").Because(r.wrong...).
		With(fault.BadEntry, "mend the lines named, then `writ entry apply` again")
}

// entryText is the YAML form of an entry.
type entryText struct {
	Name          string            `yaml:"name"` // the ID where it is not given
	ID            *idText           `yaml:"id"`   // or path
	Path          *string           `yaml:"path"` // in the trust domain of whoever reads
	Where         []selectorText    `yaml:"where"`
	Any           bool              `yaml:"any"`
	Match         []selectorText    `yaml:"match"`
	TTL           *time.Duration    `yaml:"ttl"`
	JWTTTL        *time.Duration    `yaml:"jwt_ttl"`
	DNS           []string          `yaml:"dns"`
	Hint          string            `yaml:"hint"`
	FederatesWith []trustDomainText `yaml:"federates_with"`
	Expires       *expiryText       `yaml:"expires"`
}

func (t entryText) entry(td spiffeid.TrustDomain) (Entry, []problem) {
	e := Entry{Name: t.Name, Any: t.Any, DNS: t.DNS, Hint: t.Hint}
	var problems []problem
	switch {
	case t.ID != nil && t.Path != nil:
		problems = append(problems, problem{"id", "id and path exclude each other"})
	case t.ID != nil:
		e.ID = t.ID.ID
	case t.Path != nil:
		id, err := svid.ParseID(td.IDString() + *t.Path)
		if err == nil && (*t.Path == "" || (*t.Path)[0] != '/') {
			err = fmt.Errorf("path %q does not begin with /", *t.Path)
		}
		if err != nil {
			problems = append(problems, problem{"id", err.Error()})
		}
		e.ID = id
	}
	if e.Name == "" {
		e.Name = e.ID.String()
	}
	for _, d := range []struct {
		key  string
		text *time.Duration
		into *time.Duration
	}{{"ttl", t.TTL, &e.TTL}, {"jwt_ttl", t.JWTTTL, &e.JWTTTL}} {
		if d.text != nil {
			*d.into = *d.text
		}
		if d.text != nil && *d.text == 0 {
			problems = append(problems, problem{d.key, d.key + " is zero; leave it out for the server's default"})
		}
	}
	if t.Expires != nil {
		e.Expires = t.Expires.Time
	}
	e.Where = sortedOnce(unwrap(t.Where, func(s selectorText) attest.Selector { return s.Selector }), attest.Selector.Compare)
	e.Match = sortedOnce(unwrap(t.Match, func(s selectorText) attest.Selector { return s.Selector }), attest.Selector.Compare)
	e.FederatesWith = sortedOnce(unwrap(t.FederatesWith, func(d trustDomainText) spiffeid.TrustDomain { return d.TrustDomain }),
		spiffeid.TrustDomain.Compare)
	return e, problems
}

func unwrap[T, U any](list []T, inner func(T) U) []U {
	out := make([]U, len(list))
	for i, value := range list {
		out[i] = inner(value)
	}
	return out
}

// The texts below read themselves, so that a mistake is named at its own line and column.

type idText struct{ spiffeid.ID }

// UnmarshalText is strict, where that of spiffeid.ID is not.
func (t *idText) UnmarshalText(text []byte) (err error) {
	t.ID, err = svid.ParseID(string(text))
	return err
}

type trustDomainText struct{ spiffeid.TrustDomain }

// UnmarshalText takes a bare name.
func (t *trustDomainText) UnmarshalText(text []byte) (err error) {
	t.TrustDomain, err = svid.ParseTrustDomain(string(text))
	return err
}

type selectorText struct{ attest.Selector }

// UnmarshalText takes method:key:value, and no value that can never match.
func (t *selectorText) UnmarshalText(text []byte) (err error) {
	if t.Selector, err = attest.ParseSelector(string(text)); err != nil {
		return err
	}
	return checkValue(t.Selector)
}

type expiryText struct{ time.Time }

// UnmarshalText takes RFC 3339. The zero time would mean never.
func (t *expiryText) UnmarshalText(text []byte) error {
	at, err := time.Parse(time.RFC3339, string(text))
	if err != nil || at.IsZero() {
		return errors.New("expires must be a time such as 2027-01-01T00:00:00Z")
	}
	t.Time = at.UTC()
	return nil
}
