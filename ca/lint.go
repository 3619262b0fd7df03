package ca

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/svid"
)

// shape is what zlint's verdict depends on, for certificates of one issuer. zlint costs four signatures, so it judges each shape
// once; serial numbers, times, keys and names are judged by our own checks, every time.
type shape struct {
	profile string
	key     string
	dns     bool
}

// lint refuses a Draft that breaks a rule of the standards. The certificate that it judges carries the signature of a key that
// was thrown away: should it ever leak it is worth nothing.
func (a *Authority) lint(d *Draft) error {
	raw := assemble(d.signed, d.by.algorithm, d.by.rehearsal)
	if err := d.check(raw); err != nil {
		return lintFault(err, d)
	}
	s := shape{profile: d.profile.name, key: d.key.kind, dns: len(d.dns) > 0}
	if _, known := d.by.linted.Load(s); known {
		return nil
	}
	if err := zlintErrors(raw, a.lints); err != nil {
		return lintFault(err, d)
	}
	d.by.linted.Store(s, true)
	return nil
}

func lintFault(err error, d *Draft) error {
	return fault.New(fault.Internal, nil, "the drafted certificate of "+d.uri+" breaks a rule").Because(err.Error()).
		With(fault.LintRefused, "")
}

// check reads the certificate as a peer will.
func (d *Draft) check(raw []byte) error {
	c, err := x509.ParseCertificate(raw)
	if err != nil {
		return err
	}
	switch {
	case !bytes.Equal(c.RawTBSCertificate, d.signed):
		return errors.New("it is not what will be signed")
	case c.NotAfter.Before(c.NotBefore):
		return errors.New("it ends before it begins")
	case d.by.cert != nil && (c.NotAfter.After(d.by.cert.NotAfter) || c.NotBefore.Before(d.by.cert.NotBefore)):
		return errors.New("its lifetime is not within its issuer's")
	}
	if d.profile.authority {
		return svid.CheckAuthority(c)
	}
	id, err := svid.CheckLeaf(c)
	if err == nil && id != d.id {
		err = fmt.Errorf("it is for %s", id)
	}
	return err
}
