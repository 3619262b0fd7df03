-- Times are microseconds since 1970, UTC; 0 stands for none. Lists of selectors are one to a line. Every row that a server made
-- names it.

-- +goose Up

-- The registry's counter: one row, written last in a transaction, so that revisions come in commit order.
CREATE TABLE revision (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    number BIGINT NOT NULL,
    chain  BLOB NOT NULL
);
INSERT INTO revision (one, number, chain) VALUES (1, 0, x'');

-- What each revision touched, in order; chain is registration.NextChain after that change.
CREATE TABLE changes (
    revision BIGINT NOT NULL,
    position INTEGER NOT NULL,
    chain    BLOB NOT NULL,
    kind     TEXT NOT NULL,
    id       TEXT NOT NULL,
    PRIMARY KEY (revision, position)
);

CREATE TABLE entries (
    name      TEXT PRIMARY KEY,
    spiffe_id TEXT NOT NULL,
    owner     TEXT NOT NULL,   -- who applied it last
    revision  BIGINT NOT NULL, -- when its content last changed
    body      BLOB NOT NULL    -- writ.registration.v1.Entry
);
CREATE INDEX entries_by_id ON entries (spiffe_id);
CREATE INDEX entries_by_owner ON entries (owner);

CREATE TABLE nodes (
    id             TEXT PRIMARY KEY,
    method         TEXT NOT NULL,
    node_key       BLOB NOT NULL,
    svid_key       BLOB NOT NULL,
    generation     BIGINT NOT NULL,
    state          TEXT NOT NULL CHECK (state IN ('attested', 'locked', 'banned')),
    selectors      TEXT NOT NULL,
    assurance      INTEGER NOT NULL,
    reattestable   BOOLEAN NOT NULL,
    evidence_key   BLOB NOT NULL,
    attested_at    BIGINT NOT NULL,
    attested_until BIGINT NOT NULL,
    serial         TEXT NOT NULL,
    server         TEXT NOT NULL
);

CREATE TABLE tokens (
    id       TEXT PRIMARY KEY,
    seed_key BLOB NOT NULL, -- the public half; the seed is never here
    expires  BIGINT NOT NULL,
    name     TEXT NOT NULL,
    cidr     TEXT NOT NULL,
    server   TEXT NOT NULL
);

-- What must never serve another holder. Nothing here is ever removed before it expired.
CREATE TABLE used_evidence (
    kind    TEXT NOT NULL,
    hash    BLOB NOT NULL,
    holder  BLOB NOT NULL,
    expires BIGINT NOT NULL,
    server  TEXT NOT NULL,
    PRIMARY KEY (kind, hash)
);

CREATE TABLE bans (
    kind    TEXT NOT NULL CHECK (kind IN ('agent', 'selector', 'node key', 'evidence key')),
    value   BLOB NOT NULL,
    subject TEXT NOT NULL, -- what the operator named
    reason  TEXT NOT NULL,
    made    BIGINT NOT NULL,
    server  TEXT NOT NULL,
    PRIMARY KEY (kind, value)
);

CREATE TABLE authorities (
    id          TEXT PRIMARY KEY,
    server      TEXT NOT NULL,
    usage       TEXT NOT NULL, -- x509 or jwt
    tier        TEXT NOT NULL,
    state       TEXT NOT NULL,
    certificate BLOB NOT NULL,
    key_name    TEXT NOT NULL,
    not_before  BIGINT NOT NULL,
    not_after   BIGINT NOT NULL
);

-- Serials that are taken. What was meant with one stands in its audit row.
CREATE TABLE issuance (
    serial    TEXT PRIMARY KEY,
    spiffe_id TEXT NOT NULL,
    entry     TEXT NOT NULL,
    node      TEXT NOT NULL,
    authority TEXT NOT NULL,
    not_after BIGINT NOT NULL,
    server    TEXT NOT NULL
);

CREATE TABLE audit (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    time   BIGINT NOT NULL,
    server TEXT NOT NULL,
    kind   TEXT NOT NULL,
    record TEXT NOT NULL
);

-- +goose Down
DROP TABLE audit;
DROP TABLE issuance;
DROP TABLE authorities;
DROP TABLE bans;
DROP TABLE used_evidence;
DROP TABLE tokens;
DROP TABLE nodes;
DROP TABLE entries;
DROP TABLE changes;
DROP TABLE revision;
