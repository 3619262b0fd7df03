package fault

import (
	"cmp"
	"slices"
)

// A Page is the long explanation of a code, as `writ explain error` prints it without asking anybody. Commands and names that are
// typed as they stand are between backquotes.
type Page struct {
	Code   Code
	What   string   // what failed, in a few words; the row of docs/operations.md
	Means  string   // what that says about the state of things
	Causes []string // the common ones, likeliest first
	Do     []string // what to do, in this order
}

// Pages gives the page of every code, in the order of the codes.
func Pages() []Page {
	all := slices.Concat(configPages(), workloadPages(), processPages(), nodePages(), policyPages(), storePages(), authorityPages())
	slices.SortFunc(all, func(a, b Page) int { return cmp.Compare(a.Code, b.Code) })
	return all
}

// PageOf gives the page of one code.
func PageOf(code Code) (Page, bool) {
	all := Pages()
	i := slices.IndexFunc(all, func(p Page) bool { return p.Code == code })
	if i < 0 {
		return Page{}, false
	}
	return all[i], true
}

func configPages() []Page {
	return []Page{
		{BadConfig, "a configuration file or flag is wrong",
			"The daemon or command did not start, or did nothing: what it was told cannot be meant. Nothing was changed.",
			[]string{
				"a key is misspelled, stands at the wrong depth or has a value of another type; the error names file, line and column",
				"a value contradicts what the data directory holds, such as another `trust_domain`",
				"a file that the configuration names is not there",
			},
			[]string{
				"`writ config validate FILE` says all that is wrong at once, before a restart",
				"mend what the error names; the keys and their defaults are in docs/operations.md",
			}},
		{NotThereYet, "a key that is known and not served yet",
			"The key or value is part of the design and this version does not have it. It is refused, so that nobody takes it for working.",
			[]string{"the file was written for a later version", "`store` names PostgreSQL, or `ca.keys` a KMS"},
			[]string{"leave the key out, or take the value that the error names", "`writ version` says which version runs"}},
		{SocketInUse, "another process listens there",
			"The address or socket belongs to a living process, which goes on undisturbed.",
			[]string{
				"a second daemon was started beside one that runs, by hand beside the service manager for instance",
				"another program uses the port; something that is no socket stands at the path",
			},
			[]string{
				"see who it is: `ss -lxp` for sockets, `ss -ltnp` for ports",
				"stop that process, or name another address in the configuration",
			}},
		{SocketPathLong, "a Unix socket path over 107 bytes",
			"The kernel takes no longer path for a Unix socket, so clients could never reach it.",
			[]string{"the data directory of `writ dev`, or a test's folder, lies deep in the tree"},
			[]string{"name a shorter path, such as one under /run/writ or /tmp", "`writ dev --data-dir DIR` moves its sockets with it"}},
		{WideMode, "a secret file or folder that others may read",
			"A file with a key, or the folder around it, is open to other users. It is not used: whoever could read the key may have a copy.",
			[]string{"files were copied or restored without their modes", "somebody changed the mode by hand, or a umask did"},
			[]string{
				"find out who could read it meanwhile; replace the key if anybody could",
				"`chmod 600 FILE`, and 700 for the folder; then start again",
			}},
	}
}

func workloadPages() []Page {
	return []Page{
		{BadEntry, "a registration entry is refused",
			"One entry of the batch breaks a rule, or there is none, so the whole batch is refused and nothing is changed.",
			[]string{
				"the SPIFFE ID is of another trust domain, has no path, or lies under /writ/, which is reserved",
				"neither `where` nor `any: true` is given, or `match` is empty",
				"`ttl` is over half of `ca.ttl`, or under 5 s",
				"two entries for one SPIFFE ID have no names of their own",
				"a selector has a value that no process or node ever has, so it could never match",
				"the input has no entry at all: what should have written it failed",
			},
			[]string{
				"mend the lines that the error names",
				"`writ entry apply -f FILE --dry-run` checks without changing anything",
			}},
		{EntryUnknown, "no entry of that name or SPIFFE ID",
			"The registry holds nothing under what was named. Nothing was changed.",
			[]string{"the name is misspelled; an entry without a name has its SPIFFE ID for one", "somebody else deleted it", "the command asked another server than you think: see `WRIT_ADMIN`"},
			[]string{"`writ entry get -o name` lists the names"}},
		{NotEntitled, "this node may not serve that entry",
			"A node asked for an SVID of an entry whose `where` does not hold for it, or which changed or expired meanwhile. The server signs nothing for it.",
			[]string{
				"the entry changed while the node asked; it asks again by itself with what is true then",
				"the node attested anew with other selectors than before",
			},
			[]string{
				"`writ entry get NAME` shows `where`, `writ node list -o yaml` what each node has",
				"where it stays so for minutes, restart the agent and look into its log",
			}},
		{NoIdentity, "no entry matches the process",
			"The agent knows its entries and none of them is for this process: of each, at least one `match` selector is not among those that the process was attested with. Nothing is broken; the process gets its SVID within a second of an entry that matches.",
			[]string{
				"there is no entry for this workload yet",
				"it runs as another user, or from another path, than the entry says: an interpreter instead of the script, a copy, a container",
				"the entry's `where` names other nodes, so this agent does not have it",
				"the entry expired: no node has it from then on, so the agent cannot name it",
			},
			[]string{
				"on the node, as root or in the group writ: `writ explain workload --pid PID` shows its selectors and the nearest entry, for a while after its end too",
				"`writ entry suggest --pid PID` writes an entry for it: read it, then pipe it into `writ entry apply -f -`",
				"the agent's log says the same under `no identity issued`",
				"`writ entry get` lists all entries, those for other nodes and expired ones too; `writ entry apply` with a later `expires` brings one back",
			}},
		{AgentStarting, "the agent has no entries yet",
			"The agent runs, or should, and cannot yet say who may hold what. It denies nobody for that: callers are told to try again.",
			[]string{
				"the agent started a moment ago", "no server answers at its address", "the node was banned, locked or forgotten, see P3003 to P3005",
				"no agent runs at the socket that was asked",
			},
			[]string{
				"the agent's /healthz says what it waits for, and so does its log",
				"on the server, `writ node list` shows whether the node is known and connected",
				"check `SPIFFE_ENDPOINT_SOCKET` in the workload's environment",
			}},
	}
}

// processPages are about one process and its identity.
func processPages() []Page {
	return []Page{
		{ProcessUnknown, "there is no such process, or none that could ask for an identity",
			"The agent was asked about a process id and has no living process to look at under it. Process ids mean something in one PID namespace only, and are given to others later.",
			[]string{
				"it ended meanwhile, as a workload that stops where it gets no identity does",
				"it is a zombie, a thread of a process, or a thread of the kernel",
				"the id is one of inside a container: the agent is in another PID namespace and knows the process by another id",
				"/proc of the agent hides other users' processes (hidepid)",
			},
			[]string{
				"take the id from the error that the workload got, or from the agent's log",
				"or find the process from the host, with `ps` or `pgrep`, and ask while it runs: `writ explain workload --pid PID`",
			}},
		{NodeIndistinct, "the node has no selectors to tell it from others",
			"An entry for a process of this node alone needs something under `where` that this node has and others do not. Nothing was suggested instead, since an entry for every node is a wider right.",
			[]string{"the node joined with a token that was made without `--node`"},
			[]string{
				"`writ token create --node NAME` makes a token that gives its node the selector join_token:name:NAME; let the node join anew with it",
				"or say that the entry shall hold on every node: `writ entry suggest --pid PID --any`",
			}},
		{NoJWT, "no JWT-SVID for that audience is held, and none could be had",
			"The process may hold the identity. A JWT-SVID names its audience, so each audience is signed by the server when it is first asked for; what was signed before is served on until it ends.",
			[]string{
				"no server answers, and this audience was not asked for before or its JWT-SVID has ended",
				"the server has no key that may sign yet, moments after its first start, or issues no JWT-SVIDs",
				"the server turned the node away, see P3003 to P3005",
				"the process asks for ever new audiences, more than 20 a second",
			},
			[]string{
				"try again: clients do so by themselves",
				"the error says which of these it is; the agent's /healthz and log say more",
				"ask for the audience before it is needed: what is asked for again is renewed at half of its life",
			}},
		{OtherIdentity, "the process may hold other SPIFFE IDs than the one it asked for",
			"A workload may ask for a JWT-SVID of one of its identities. It matches entries, and none of them gives the SPIFFE ID that it named; the error lists those that it may hold. Whether another workload may hold that one is not told.",
			[]string{
				"the ID is misspelled, or of another environment",
				"there is no entry yet that gives this process that ID, or it asks for more than the process has",
			},
			[]string{
				"ask for one of those that the error lists, or name none: the first is the process's default identity",
				"on the node, as root or in the group writ: `writ explain workload --pid PID` shows its entries and the nearest others",
			}},
	}
}

func nodePages() []Page {
	return []Page{
		{BadEvidence, "evidence does not verify",
			"What the node showed does not prove that it is what it says. The caller is not told why, so that it cannot be searched for; the server's log has it.",
			[]string{
				"the node's certificate is expired, not for client authentication, or under a root that `attest.x509pop.roots` does not have",
				"something between node and server ends the TLS connection: evidence is bound to it",
				"the clocks differ",
			},
			[]string{"look for the attestation in the server's log and audit record", "compare the clocks of node and server", "let nodes reach the server directly, or through a proxy that passes TLS on"}},
		{TokenUsed, "the join token was used by another node, or is expired or unknown",
			"A join token joins one node, within its life. Whoever used it first has it.",
			[]string{
				"it is older than its `--ttl`, 10 minutes where none is given",
				"another host joined with it already: if that was not you, somebody read the token",
				"the node's data directory was emptied after it had joined, so it is another node now",
				"the token was made for another address range by `--cidr`",
			},
			[]string{
				"`writ node list` shows who joined; `writ node ban AGENT-ID` takes out who should not have",
				"`writ token create --node NAME` makes another",
			}},
		{NodeBanned, "the node or what it proves itself with is banned",
			"An operator took this node out. It gets nothing under this name or another, while it has the keys or the evidence it was banned with.",
			[]string{"`writ node ban` named it, or a selector that it has"},
			[]string{"the server's audit record says who banned it and why", "where it may come back, give it new evidence (a new token or certificate) and an empty data directory"}},
		{NodeLocked, "two copies of one node's data directory were used",
			"Two processes renewed as the same node. One of them has a copy of its keys, and the server cannot say which is the real one, so neither is served.",
			[]string{"a virtual machine was cloned or restored from a snapshot with its data directory", "two agents run on one data directory", "somebody stole the directory"},
			[]string{
				"find the other copy and find out how it came about",
				"`writ node evict AGENT-ID`, empty the data directory on both, and let each join for itself",
			}},
		{NodeUnknown, "no such node; it must attest anew",
			"The server does not know the node, or its agent SVID has ended.",
			[]string{"it was evicted", "it was switched off for longer than its agent SVID lives, and its evidence serves once only", "the server's store was replaced"},
			[]string{
				"a node with x509pop comes back by itself; one that joined by token needs another: `writ token create`, then `writ agent join -`",
				"`writ node list` shows the nodes that are known",
			}},
		{MethodOff, "the server does not accept that method of attestation",
			"The node proves itself by a method that `attest` in server.yaml does not name.",
			[]string{"the method was taken out of the configuration, or never was in it"},
			[]string{"add it to `attest` in server.yaml, or let the node join by a method that is there"}},
		{ServerUnproved, "whoever answers is no server of this trust domain",
			"The node reached something that does not show a server's certificate under the roots it believes. It told it nothing and gave it no evidence.",
			[]string{
				"the address leads to something else, or to the server of another trust domain",
				"the authority was replaced while the node was away, so that what it holds is out of date",
				"something on the way intercepts TLS",
			},
			[]string{
				"check `server` in agent.yaml",
				"`writ bundle show` on the server prints the roots; compare them with bundle.pem in the node's data directory",
				"where the authority is another on purpose: `writ token create`, then `writ agent join -`",
			}},
	}
}

func policyPages() []Page {
	return []Page{
		{BadPolicy, "a policy set does not compile, or its tests fail",
			"The set is not taken. The one before it, if there is one, decides on.",
			[]string{"an error in Rego, data or policy.yaml", "a test or case of the set fails", "`decision` names a rule that is not there"},
			[]string{"`writ policy test FOLDER` shows the same, with file and line", "/healthz of the agent shows the live revision and the last error"}},
		{NoPolicy, "no policy set is live",
			"Every request is denied with 503 until a set loads.",
			[]string{"the agent started with a set that does not load, see P4001", "the folder is empty or does not exist"},
			[]string{"`writ policy test FOLDER` says what is wrong with the set", "it goes live within a quarter of a second of being mended"}},
	}
}

func storePages() []Page {
	return []Page{
		{StoreBusy, "the store could not take the write",
			"The change was not made, and nothing is half made. Trying again is right.",
			[]string{"the disk is slow or stuck", "the server is stopping"},
			[]string{"try again", "where it stays so, look at the server's log and the disk's latency"}},
		{StoreFull, "no space left for the store",
			"Issuing and changes are refused, since no record of them could be kept. What is held is served on.",
			[]string{"the volume of `data_dir` is full, or its quota is used up"},
			[]string{"free space on that volume; writes go on by themselves", "`df -h` and `df -i` show what is used up"}},
		{StoreDamaged, "the store failed its integrity check",
			"What is on the disk is not what was written. The server does not go on from it: it could issue twice or forget a ban.",
			[]string{"a disk error, or a file system that lost what it had acknowledged", "the file was changed or copied while the server ran"},
			[]string{"stop the server and keep the files as they are", "check the disk, then put back a backup of the data directory"}},
		{StoreInUse, "another process has the store open",
			"One data directory serves one server; the one that runs goes on undisturbed.",
			[]string{"a second `writ server run` or `writ dev` on the same data directory"},
			[]string{"stop the other one, or choose another `data_dir`"}},
		{RecordsUnwritten, "a file of records cannot be written",
			"What is decided, or was done, does not reach the file for now. Decision records that are `required` wait, and once there is no more room " +
				"for them requests are denied with 503; others are lost and counted. The server's audit file loses nothing: its rows wait in the store.",
			[]string{
				"the volume of `authz.records` or `audit.file` is full, or a quota is used up",
				"the disk fails, was made read-only, or does not answer",
				"the folder is not the daemon's to write in, so that no new file can be begun when one is full",
			},
			[]string{
				"/healthz says what the write failed with, and since when; the log names the file",
				"make room on that volume; writing goes on by itself: `df -h` and `df -i` show what is used up",
				"a smaller `rotate` keeps less of the decision records from then on",
			}},
		{StoreNewer, "a newer writ wrote the store",
			"The schema is one that this version does not know. It was not touched.",
			[]string{"the binary was rolled back further than the store was migrated"},
			[]string{"`writ version` on each host shows which is older; run the newer one", "to stay with the older one, put back the backup from before the migration"}},
	}
}

func authorityPages() []Page {
	return []Page{
		{BadRequestForSVID, "a CSR or signing request is refused",
			"The authority was asked for a certificate that it does not make. Nothing was signed.",
			[]string{"the key is of a kind or size that is not allowed", "the CSR's own signature does not verify, or the SPIFFE ID is none"},
			[]string{"agents ask right: another client must send EC P-256, P-384 or RSA keys of 2048 bits or more", "the server's log names the rule"}},
		{AuthorityMissing, "no active authority",
			"The server has no key it can issue with. Agents go on with what they hold.",
			[]string{
				"the issuing certificate has ended and could not be replaced",
				"its key is gone or another: `ca.keys` was changed, or the data directory restored without its keys",
				"another server of this trust domain holds the root's key",
			},
			[]string{"the server's log says which key or certificate it misses", "put the key back, or set `ca.keys` to what it was"}},
		{LintRefused, "the drafted certificate breaks a rule of the standard",
			"The authority checked what it was about to sign and found it wrong, so it signed nothing. This is a defect of writ or of the configured root.",
			[]string{"the root or issuing certificate limits what may stand under it", "a defect in writ"},
			[]string{"keep the line of the server's log, which names the rule, and report it", "`writ bundle show -o pem` shows the certificates that are in use"}},
	}
}
