package fault

// Code is a stable name of a failure, P and four digits, under which `writ explain error` and the documents speak of it.
// P1xxx configuration, P2xxx workload identity, P3xxx node attestation, P4xxx policy and decisions, P5xxx storage, P6xxx the
// authority, P7xxx federation, P8xxx cluster and upgrade.
type Code string

// The codes. One is never given to another failure, and never renamed.
const (
	BadConfig         Code = "P1001" // a configuration file or flag is wrong
	NotThereYet       Code = "P1002" // a known key or command that this version does not serve
	SocketInUse       Code = "P1003" // another process listens there
	SocketPathLong    Code = "P1004" // a Unix socket path over 107 bytes
	WideMode          Code = "P1005" // a secret file or folder that others may read
	BadEntry          Code = "P2001" // a registration entry is refused
	EntryUnknown      Code = "P2002" // no entry of that name or ID
	NotEntitled       Code = "P2003" // this node may not serve that entry
	NoIdentity        Code = "P2004" // no entry matches the process
	AgentStarting     Code = "P2005" // the agent has no entries yet
	ProcessUnknown    Code = "P2006" // there is no such process, or none that could ask for an identity
	NodeIndistinct    Code = "P2007" // the node has no selectors to tell it from others
	NoJWT             Code = "P2008" // no JWT-SVID for that audience is held, and none could be had
	OtherIdentity     Code = "P2009" // the process may hold other SPIFFE IDs than the one it asked for
	BadEvidence       Code = "P3001" // evidence does not verify
	TokenUsed         Code = "P3002" // the join token was used by another node, or is expired or unknown
	NodeBanned        Code = "P3003" // the node or what it proves itself with is banned
	NodeLocked        Code = "P3004" // two copies of one node's data directory
	NodeUnknown       Code = "P3005" // no such node; it must attest anew
	MethodOff         Code = "P3006" // the server does not accept that method of attestation
	ServerUnproved    Code = "P3007" // whoever answers at the server's address is no server of this trust domain
	BadPolicy         Code = "P4001" // a policy set does not compile, or its tests fail
	NoPolicy          Code = "P4002" // no policy set is live
	StoreBusy         Code = "P5001" // the store could not take the write
	StoreFull         Code = "P5002" // no space left
	StoreDamaged      Code = "P5003" // the store failed its integrity check
	StoreInUse        Code = "P5004" // another process has the store open
	RecordsUnwritten  Code = "P5005" // a file of records cannot be written
	BadRequestForSVID Code = "P6001" // a CSR or signing request is refused
	AuthorityMissing  Code = "P6002" // no active authority
	LintRefused       Code = "P6003" // the drafted certificate breaks a rule of the standard
	StoreNewer        Code = "P8001" // a newer writ wrote the store
)
