package registration

import (
	"errors"

	"github.com/writ-dev/writ/api/registrationv1"
)

// ToWire gives the wire form.
func ToWire(e Entry) *registrationv1.Entry { return nil }

// FromWire reads the wire form.
func FromWire(w *registrationv1.Entry) (Entry, error) { return Entry{}, errors.ErrUnsupported }
