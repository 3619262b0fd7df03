package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/zmap/zlint/v3/util"

	"github.com/writ-dev/writ/internal/fault"
)

// Request is what is wanted of a Profile.
type Request struct {
	ID       spiffeid.ID
	Key      crypto.PublicKey // P-256, P-384, or RSA of at least 2048 bits
	DNS      []string
	TTL      time.Duration // from now; cut to what the issuing certificate has left
	NotAfter time.Time     // a further bound on the end; none where zero
}

// Draft is an exact certificate that waits for its signature: it has been linted, and nothing in it changes any more. The caller
// records it and has its Authority issue it, once.
type Draft struct {
	certificate
	authority *Authority
	id        spiffeid.ID
	signed    []byte // TBSCertificate
	redeemed  atomic.Bool
}

// Serial is the serial number as 32 lower-case hex digits.
func (d *Draft) Serial() string { return hex.EncodeToString(d.serial) }

// ID is whose certificate it will be.
func (d *Draft) ID() spiffeid.ID { return d.id }

// NotBefore is a little in the past, for clocks that are behind.
func (d *Draft) NotBefore() time.Time { return d.notBefore }

// NotAfter is the end, which may come before what was asked for.
func (d *Draft) NotAfter() time.Time { return d.notAfter }

// AuthorityID names the authority that drafted it and will sign it.
func (d *Draft) AuthorityID() string { return d.by.id }

// Profile is what it was drafted under.
func (d *Draft) Profile() Profile { return d.profile }

// Digest is the SHA-256 of the to-be-signed certificate.
func (d *Draft) Digest() [32]byte { return sha256.Sum256(d.signed) }

// Draft prepares the certificate that a Request asks for, as far as the Profile allows. It touches no key.
func (a *Authority) Draft(p Profile, r Request) (*Draft, error) {
	now := a.config.Now()
	by := a.current()
	if !by.cert.NotAfter.After(now) {
		return nil, fault.New(fault.Unavailable, nil, "no active authority").
			Because("the issuing certificate ended at "+by.cert.NotAfter.Format(time.RFC3339)).
			With(fault.AuthorityMissing, "")
	}
	if err := p.admit(a.config.TrustDomain, r.ID); err != nil {
		return nil, refuse(err, "the SPIFFE ID cannot be issued")
	}
	key, err := encodeKey(r.Key)
	if err != nil {
		return nil, refuse(err, "the public key cannot be certified")
	}
	dns, err := dnsNames(r.DNS)
	if err != nil {
		return nil, refuse(err, "a DNS name cannot be certified")
	}
	c := certificate{profile: p, by: by, subject: emptyName, key: key, dns: dns, uri: r.ID.String()}
	if c.notBefore, c.notAfter, err = validity(now, r.TTL, by.cert.NotBefore, earlier(r.NotAfter, by.cert.NotAfter)); err != nil {
		return nil, refuse(err, "the lifetime cannot be certified")
	}
	return a.finish(c, r.ID)
}

// finish makes the Draft of a certificate that lacks nothing but its serial number.
func (a *Authority) finish(c certificate, id spiffeid.ID) (*Draft, error) {
	c.serial = newSerial()
	signed, err := c.tbs()
	if err != nil {
		return nil, fmt.Errorf("encode certificate of %s: %w", c.uri, err)
	}
	d := &Draft{certificate: c, authority: a, id: id, signed: signed}
	if err := a.lint(d); err != nil {
		return nil, err
	}
	return d, nil
}

// Issue signs a Draft and gives the chain, the leaf first, without the root. A Draft is issued once, and by the Authority that
// drafted it. The signature is the only use of the key, and is not verified again.
func (a *Authority) Issue(d *Draft) (chain [][]byte, err error) {
	if d == nil || d.authority != a {
		return nil, fault.New(fault.Invalid, nil, "the draft is another authority's")
	}
	if !d.redeemed.CompareAndSwap(false, true) {
		return nil, fault.New(fault.Stale, nil, "the draft is issued already")
	}
	if !d.notAfter.After(a.config.Now()) {
		return nil, fault.New(fault.Stale, nil, "the draft has expired")
	}
	leaf, err := d.sign()
	if err != nil {
		return nil, fault.New(fault.Unavailable, err, "the authority's key does not sign").With(fault.AuthorityMissing, "")
	}
	return [][]byte{leaf, d.by.cert.Raw}, nil
}

func (d *Draft) sign() ([]byte, error) {
	hash := d.by.hash.New()
	hash.Write(d.signed)
	signature, err := d.by.key.Sign(rand.Reader, hash.Sum(nil), d.by.hash)
	if err != nil {
		return nil, fmt.Errorf("sign with authority %s: %w", d.by.id, err)
	}
	raw := assemble(d.signed, d.by.algorithm, signature)
	d.keep(raw)
	return raw, nil
}

// validity gives the lifetime of a certificate, in whole seconds within its issuer's. It is set back by a tenth of what is left of it
// and a minute at most: more would make a short one due for renewal the moment it is issued.
func validity(now time.Time, ttl time.Duration, from, until time.Time) (notBefore, notAfter time.Time, err error) {
	if ttl <= 0 {
		return notBefore, notAfter, errors.New("it must be longer than nothing")
	}
	notAfter = earlier(until, now.Add(ttl)).Truncate(time.Second)
	notBefore = now.Add(-min(time.Minute, notAfter.Sub(now)/10))
	if notBefore.Before(from) {
		notBefore = from
	}
	if !notAfter.After(now) {
		return notBefore, notAfter, errors.New("it would end before it begins")
	}
	return notBefore.Truncate(time.Second).UTC(), notAfter.UTC(), nil
}

// earlier takes a zero bound for none.
func earlier(bound, t time.Time) time.Time {
	if !bound.IsZero() && bound.Before(t) {
		return bound
	}
	return t
}

// The bounds of DNS names, RFC 1035 section 2.3.4, and of their number.
const maxNames, maxName, maxLabel = 100, 253, 63

// dnsNames checks names and drops those that come twice.
func dnsNames(names []string) ([]string, error) {
	if len(names) > maxNames {
		return nil, fmt.Errorf("there are more than %d", maxNames)
	}
	var kept []string
	seen := make(map[string]bool, len(names))
	for _, name := range names {
		if err := checkDNSName(name); err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
		if lower := strings.ToLower(name); !seen[lower] {
			seen[lower] = true
			kept = append(kept, name)
		}
	}
	return kept, nil
}

func checkDNSName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("must have 1 to %d bytes", maxName)
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return errors.New("is an IP address")
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("labels must have 1 to %d bytes and no hyphen at either end", maxLabel)
		}
		for _, c := range []byte(label) {
			if c != '-' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
				return errors.New("must be letters, digits, hyphens and dots")
			}
		}
		if util.HasXNLabelPrefix(label) {
			if _, err := util.IdnaToUnicode(label); err != nil {
				return errors.New("has an internationalised label that cannot be decoded")
			}
		}
	}
	return nil
}

// refuse says that what was asked for is wrong.
func refuse(why error, what string) error {
	return fault.New(fault.Invalid, nil, what).Because(why.Error()).With(fault.BadRequestForSVID, "")
}
