package registration

import (
	"crypto/sha256"
	"encoding/binary"
)

// Revision names one state of the registry. Numbers go up in commit order; the chain tells apart two histories that reached the
// same number, such as a restored store and the one it was restored from.
type Revision struct {
	Number uint64
	Chain  []byte // see NextChain; empty at number 0
}

// The kinds of a Change.
const (
	KindEntry      = "entry"
	KindBundle     = "bundle"
	KindIdentity   = "identity"
	KindPolicy     = "policy"
	KindRevocation = "revocation"
)

// Change says what a revision touched. What became of it stands where that kind is kept.
type Change struct {
	Revision Revision
	Kind     string
	ID       string // an entry's name, an authority's id, ...
}

// NextChain is the chain after one more change: SHA-256 over the chain before, the revision's number, kind and id, so that equal
// chains mean equal histories. Each part of variable length is preceded by its length.
func NextChain(prev []byte, revision uint64, kind, id string) []byte {
	text := []byte("writ/chain/v1")
	for _, part := range [][]byte{prev, []byte(kind), []byte(id)} {
		text = binary.BigEndian.AppendUint32(text, uint32(len(part)))
		text = append(text, part...)
	}
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(text, revision))
	return sum[:]
}

// Batch is one atomic change of the registry: everything in it happens, or nothing.
type Batch struct {
	Entries []Entry  // created or updated by name
	Delete  []string // names that go; NotFound where there is none
	Owner   string   // who applies
	Prune   bool     // what the same Owner applied last and Entries does not name goes too
	DryRun  bool     // say what would change, and change nothing
}

// Applied is what a Batch did.
type Applied struct {
	Changes  []EntryChange // unchanged entries too; by name
	Revision Revision      // that holds them all; the newest where nothing changed
}

// EntryChange is what became of one entry.
type EntryChange struct {
	Act    Act
	Entry  Entry // as it is now; as it was when deleted
	Before Entry // when updated
}

// Act says what became of an entry.
type Act string

// The acts.
const (
	Unchanged Act = "unchanged"
	Created   Act = "created"
	Updated   Act = "updated"
	Deleted   Act = "deleted"
)
