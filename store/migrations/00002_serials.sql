-- Serials that are taken, and until when anybody may hold what has one; what was meant with one stands in its audit row. Serials are
-- random, so a taken one's place in the tree is too: small rows keep the pages few that a batch writes.

-- +goose Up
CREATE TABLE serials (
    serial    BLOB PRIMARY KEY,
    not_after BIGINT NOT NULL
) WITHOUT ROWID;
INSERT INTO serials (serial, not_after) SELECT unhex(serial), not_after FROM issuance;
DROP TABLE issuance;

-- +goose Down
-- What an older writ kept beside a serial it never read.
CREATE TABLE issuance (
    serial    TEXT PRIMARY KEY,
    spiffe_id TEXT NOT NULL,
    entry     TEXT NOT NULL,
    node      TEXT NOT NULL,
    authority TEXT NOT NULL,
    not_after BIGINT NOT NULL,
    server    TEXT NOT NULL
);
INSERT INTO issuance (serial, spiffe_id, entry, node, authority, not_after, server) SELECT lower(hex(serial)), '', '', '', '', not_after, '' FROM serials;
DROP TABLE serials;
