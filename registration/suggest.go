package registration

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/svid"
)

// Wish is a process that shall have an identity, as its node knows it.
type Wish struct {
	TrustDomain spiffeid.TrustDomain
	ID          spiffeid.ID       // zero: guessed from the name of the executable
	Any         bool              // on every node; else on those that are told by the node's selectors
	Node        []attest.Selector // the node's
	Workload    []attest.Selector // the process's
	Entries     []Entry           // that the node holds
}

// Suggestion is an entry that the process of a Wish matches, and what somebody should know before applying it.
type Suggestion struct {
	Entry Entry
	Notes []string // a line each
}

// Suggest writes the narrowest entry that holds over restarts: on this node, this user and this executable. It is never one that
// Check or Warnings find fault with, never for every node unless the Wish says so (fault.Invalid, P2007), and never gives a guessed
// SPIFFE ID that another entry gives already (fault.Conflict): whoever pipes it into apply must not hand out another workload's name.
func Suggest(w Wish) (Suggestion, error) {
	s := Suggestion{Entry: Entry{ID: w.ID, Any: w.Any}}
	if !w.Any {
		if s.Entry.Where = telling(w.Node); len(s.Entry.Where) == 0 {
			return s, fault.New(fault.Invalid, nil, "nothing tells this node from others: it has no selectors").
				Because("a node that joins with a token has one if the token names it").
				With(fault.NodeIndistinct, "join it with `writ token create --node NAME`, or let the entry hold on every node: --any")
		}
	}
	if err := s.match(w.Workload); err != nil {
		return s, err
	}
	guessed := w.ID.IsZero()
	if guessed {
		id, err := svid.ParseID(w.TrustDomain.IDString() + "/" + guess(w.Workload))
		if err != nil {
			return s, err
		}
		s.Entry.ID = id
	}
	s.Entry.Name = s.name()
	for _, e := range w.Entries {
		if e.ID != s.Entry.ID || e.Name == s.Entry.Name {
			continue
		}
		if guessed {
			return s, fault.New(fault.Conflict, nil, fmt.Sprintf("the SPIFFE ID that the executable's name suggests, %s, is given by entry %q", e.ID, e.Name)).
				With("", "say which the process shall have: --path /NAME, or --id; that one too, if it is the same workload")
		}
		s.note("entry %s gives the same SPIFFE ID", quoted(e.Name))
	}
	return s, refuse(s.Entry, append(append(s.Entry.problems(), s.Entry.hopeless()...), s.Entry.foreign(w.TrustDomain)...))
}

// YAML is the entry's, under its notes as comments.
func (s Suggestion) YAML() ([]byte, error) {
	var out bytes.Buffer
	for _, note := range s.Notes {
		out.WriteString("# " + note + "\n")
	}
	text, err := YAML(s.Entry)
	out.Write(text)
	return out.Bytes(), err
}

// note takes what holds no line break.
func (s *Suggestion) note(format string, args ...any) {
	s.Notes = append(s.Notes, fmt.Sprintf(format, args...))
}

// telling picks what names a node and stays when its certificate is renewed; all of what it has where nothing does.
func telling(node []attest.Selector) []attest.Selector {
	for _, key := range []string{"name", "subject", "san"} {
		if i := slices.IndexFunc(node, func(s attest.Selector) bool { return s.Key == key }); i >= 0 {
			return []attest.Selector{node[i]}
		}
	}
	return sortedOnce(node, attest.Selector.Compare)
}

// match takes the user and the executable, and notes what else there is.
func (s *Suggestion) match(workload []attest.Selector) error {
	uid, there := find(workload, "uid")
	if !there {
		return fault.New(fault.Invalid, nil, "the process has no user that this node knows, so nothing safe tells it from others").
			Because("uid 65534 (nobody) is what the kernel shows for every user that has no number here, so it is never a selector").
			With(fault.BadEntry, "run it under a user of its own, one that this node knows")
	}
	s.Entry.Match = []attest.Selector{uid}
	if file, there := find(workload, "path"); there {
		s.Entry.Match = append(s.Entry.Match, file)
		if name := path.Base(file.Value); interprets(name) {
			s.note("%s runs whatever it is given: all that this user runs with it would match; give the workload a user of its own", quoted(name))
		}
	} else if file, there := find(workload, "container_path"); there {
		s.Entry.Match = append(s.Entry.Match, file)
		s.note("container_path is what the process itself sees: whoever makes the container chooses it")
	} else {
		s.note("its executable has no path, so every process of this user would match; give the workload a user of its own")
	}
	if uid.Value == "0" {
		s.note("this is root; a user of its own would tell the workload from all else that root runs")
	}
	var more []string
	for _, other := range workload {
		if (other.Key == "gid" || other.Key == "sha256") && isText(other.Value) {
			more = append(more, quoted(other.String()))
		}
	}
	if len(more) > 0 {
		s.note("to narrow it, add under match: %s", strings.Join(more, ", "))
	}
	if name, there := find(workload, "user"); there && isText(name.Value) {
		s.note("where the user has another number on other nodes: %s instead of %s", quoted(name.String()), quoted(uid.String()))
	}
	s.Entry.Match = sortedOnce(s.Entry.Match, attest.Selector.Compare)
	return nil
}

// name is one that no other entry has, and that the same suggestion has again: applying an entry under a name that is there would
// replace that entry.
func (s *Suggestion) name() string {
	h := sha256.New()
	fmt.Fprintf(h, "%s %t %q %q", s.Entry.ID, s.Entry.Any, texts(s.Entry.Where), texts(s.Entry.Match))
	return path.Base(s.Entry.ID.Path()) + "-" + hex.EncodeToString(h.Sum(nil)[:4])
}

func find(workload []attest.Selector, key string) (attest.Selector, bool) {
	i := slices.IndexFunc(workload, func(s attest.Selector) bool { return s.Method == "unix" && s.Key == key })
	if i < 0 {
		return attest.Selector{}, false
	}
	return workload[i], true
}

// guess is a path segment for the process: the name of its executable, or that of its user where the executable runs others.
func guess(workload []attest.Selector) string {
	for _, key := range []string{"path", "container_path"} {
		if file, there := find(workload, key); there {
			if name := segment(path.Base(file.Value)); name != "" && !interprets(name) {
				return name
			}
		}
	}
	if user, there := find(workload, "user"); there {
		if name := segment(user.Value); name != "" {
			return name
		}
	}
	uid, _ := find(workload, "uid")
	return segment("uid-" + uid.Value)
}

// segment makes a text one that may stand in a SPIFFE ID (SPIFFE-ID section 2.2), empty where nothing of it may, or where it would
// lie where our own servers and agents are.
func segment(text string) string {
	text = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-._", r) {
			return r
		}
		return '-'
	}, text)
	if len(text) > 64 {
		text = text[:64]
	}
	if strings.Trim(text, "-.") == "" || text == strings.Trim(reserved, "/") {
		return ""
	}
	return text
}

// interprets says whether an executable of that name runs programs that its path says nothing of.
func interprets(name string) bool {
	name = strings.TrimRight(name, "0123456789.-")
	return slices.Contains([]string{"python", "pypy", "node", "nodejs", "deno", "bun", "java", "ruby", "perl", "php", "php-fpm", "lua", "dotnet",
		"mono", "beam.smp", "sh", "bash", "dash", "zsh", "ash", "ksh", "busybox"}, name)
}
