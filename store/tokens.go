package store

import (
	"context"
	"crypto/ed25519"
	"database/sql"
	"fmt"
	"net/netip"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/internal/fault"
)

// CreateToken keeps a join token. An id that is taken is fault.Conflict.
func (db *DB) CreateToken(ctx context.Context, token attest.Token, by audit.Admin) error {
	if token.ID == "" || len(token.Key) != ed25519.PublicKeySize {
		return fault.New(fault.Invalid, nil, "a join token needs an id and an Ed25519 key")
	}
	cidr := ""
	if token.CIDR.IsValid() {
		cidr = token.CIDR.String()
	}
	return db.write(ctx, func(t *tx) error {
		_, err := t.exec("INSERT INTO tokens (id, seed_key, expires, name, cidr, server) VALUES (?, ?, ?, ?, ?, ?)",
			token.ID, []byte(token.Key), micros(token.Expires), token.Name, cidr, t.db.config.Server)
		if duplicate(err) {
			return fault.New(fault.Conflict, err, "a join token of that id is there already")
		}
		if err != nil {
			return fmt.Errorf("write token %s: %w", token.ID, err)
		}
		by.Act, by.Subject = audit.ActToken, token.ID
		return t.recordAdmin(by)
	})
}

// Token is the join token of an id, fault.NotFound P3002 where there is none. Whether it was used says Admit.
func (db *DB) Token(ctx context.Context, id string) (token attest.Token, err error) {
	err = db.read(ctx, func(r reader) error {
		found, ok, err := first(r, scanToken, "SELECT id, seed_key, expires, name, cidr, server FROM tokens WHERE id = ?", id)
		if err == nil && !ok {
			return fault.New(fault.NotFound, nil, "no such join token").With(fault.TokenUsed, "writ token create")
		}
		token = found
		return err
	})
	return token, err
}

func scanToken(rows *sql.Rows) (token attest.Token, err error) {
	var key []byte
	var expires int64
	var cidr string
	if err := rows.Scan(&token.ID, &key, &expires, &token.Name, &cidr, &token.Server); err != nil {
		return token, err
	}
	token.Key, token.Expires = key, ofMicros(expires)
	if cidr != "" {
		if token.CIDR, err = netip.ParsePrefix(cidr); err != nil {
			return token, damaged(err).Because("the CIDR of a join token does not read")
		}
	}
	return token, nil
}
