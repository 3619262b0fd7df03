package registration

import (
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Limits are what one authority serves.
type Limits struct {
	TrustDomain spiffeid.TrustDomain
	MaxTTL      time.Duration // half of the issuing certificate's; 0: none
}

// Check says whether an authority with these limits may serve the entry; the error lists every reason.
func (e Entry) Check(limits Limits) error { return errors.ErrUnsupported }

// Warnings says what is legal and likely a mistake.
func (e Entry) Warnings() []string { return nil }
