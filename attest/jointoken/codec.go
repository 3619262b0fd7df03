package jointoken

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// Prefix begins every token's text; the number is the form's version.
const Prefix = "writ1."

const (
	idSize       = 32 // hex digits
	maxAddresses = 16
	maxAddress   = 255
	maxPins      = 16
	maxText      = 8 << 10
)

// encoding is strict, so that a token has one text only.
var encoding = base64.RawURLEncoding.Strict()

// errText is the whole of what is said about a broken token: its text is a secret.
var errText = errors.New("join token is cut off or mistyped")

// Encode gives the text of a token: Prefix and the base64url of
//
//	count (1 byte) and the addresses, each after its length (1 byte)
//	count (1 byte) and the pins, 32 bytes each
//	id (32 bytes, hex digits as they stand), expiry (8 bytes, Unix seconds, big-endian), seed (32 bytes)
func Encode(t Text) (string, error) {
	if err := t.check(); err != nil {
		return "", err
	}
	out := []byte{byte(len(t.Addresses))}
	for _, a := range t.Addresses {
		out = append(append(out, byte(len(a))), a...)
	}
	out = append(out, byte(len(t.Pins)))
	for _, p := range t.Pins {
		out = append(out, p[:]...)
	}
	out = append(out, t.ID...)
	out = binary.BigEndian.AppendUint64(out, uint64(t.Expires.Unix()))
	out = append(out, t.Seed[:]...)
	return Prefix + encoding.EncodeToString(out), nil
}

// Decode reads a token's text. It takes exactly what Encode writes; an error never repeats any of the text.
func Decode(text string) (Text, error) {
	body, ok := strings.CutPrefix(text, Prefix)
	if !ok {
		return Text{}, fmt.Errorf("join token does not begin with %s", Prefix)
	}
	if len(body) > maxText || strings.ContainsAny(body, "\r\n") { // base64 passes over line ends
		return Text{}, errText
	}
	data, err := encoding.DecodeString(body)
	if err != nil {
		return Text{}, errText
	}
	r := reader{data: data}
	var t Text
	for range r.count() {
		t.Addresses = append(t.Addresses, string(r.take(r.count())))
	}
	for range r.count() {
		t.Pins = append(t.Pins, [sha256.Size]byte(r.take(sha256.Size)))
	}
	t.ID = string(r.take(idSize))
	t.Expires = time.Unix(int64(binary.BigEndian.Uint64(r.take(8))), 0).UTC()
	t.Seed = Seed(r.take(SeedSize))
	if r.short || len(r.data) > 0 || t.check() != nil {
		return Text{}, errText
	}
	return t, nil
}

// A reader takes from data, and gives zeros and remembers it where there is not enough.
type reader struct {
	data  []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.data) {
		r.short, r.data = true, nil
		return make([]byte, n)
	}
	out := r.data[:n]
	r.data = r.data[n:]
	return out
}

func (r *reader) count() int { return int(r.take(1)[0]) }

// check holds for every token, made here or read.
func (t Text) check() error {
	if len(t.Addresses) == 0 || len(t.Addresses) > maxAddresses {
		return fmt.Errorf("join token with %d server addresses: it takes 1 to %d", len(t.Addresses), maxAddresses)
	}
	for _, a := range t.Addresses {
		if err := checkAddress(a); err != nil {
			return err
		}
	}
	if len(t.Pins) == 0 || len(t.Pins) > maxPins {
		return fmt.Errorf("join token with %d root pins: it takes 1 to %d", len(t.Pins), maxPins)
	}
	if !validID(t.ID) {
		return errors.New("join token id is not 32 lower-case hex digits")
	}
	if s := t.Expires.Unix(); s <= 0 || s > maxExpiry {
		return errors.New("join token expiry is out of range")
	}
	return nil
}

// maxExpiry is the end of the year 9999.
const maxExpiry = 253402300799

func checkAddress(a string) error {
	host, port, err := net.SplitHostPort(a)
	if err != nil || len(a) > maxAddress || host == "" {
		return fmt.Errorf("server address %q is not host:port", a)
	}
	for _, c := range []byte(host) {
		if c <= ' ' || c >= 0x7f || c == '/' || c == '@' {
			return fmt.Errorf("server address %q holds a character that no host has", a)
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return fmt.Errorf("server address %q has no port from 1 to 65535", a)
	}
	return nil
}

func validID(id string) bool {
	if len(id) != idSize {
		return false
	}
	return strings.Trim(id, "0123456789abcdef") == ""
}
