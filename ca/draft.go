package ca

import (
	"crypto"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Request is what is wanted of a Profile.
type Request struct {
	ID       spiffeid.ID
	Key      crypto.PublicKey // P-256, P-384, or RSA of at least 2048 bits
	DNS      []string
	TTL      time.Duration // from now; cut to what the issuing certificate has left
	NotAfter time.Time     // a further bound on the end; none where zero
}
