//go:build shapes

package ca

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"strings"
)

// shapesDir is set by the linker: see the Makefile. Environments do not reach every process that a test starts.
var shapesDir string

// keep writes a certificate and its chain up to the root, one of each shape and issuer, into shapesDir. A shape here is finer than
// what zlint is asked about once in production: lengths and forms of times count.
func (d *Draft) keep(raw []byte) {
	name := d.shapeName(raw)
	if _, kept := d.by.linted.LoadOrStore(name, true); kept {
		return
	}
	chain := [][]byte{raw}
	if d.by.cert != nil {
		chain = append(chain, d.by.cert.Raw)
	}
	if root := d.authority.root; root != nil && root.cert != nil && root != d.by && d.by.cert != nil {
		chain = append(chain, root.cert.Raw)
	}
	var text []byte
	for _, c := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	if err := write(filepath.Join(shapesDir, name+".pem"), text); err != nil {
		panic(err)
	}
}

func (d *Draft) shapeName(raw []byte) string {
	c, err := x509.ParseCertificate(raw)
	if err != nil {
		panic(err)
	}
	key := d.key.kind
	if k, ok := c.PublicKey.(*rsa.PublicKey); ok {
		key = fmt.Sprintf("RSA-%d", k.N.BitLen())
	}
	form := func(year int) string {
		if year < 2050 {
			return "utc"
		}
		return "generalized"
	}
	length := min(max(bits.Len(uint(len(d.uri))), 7), 9) // DER has other lengths from 128 and from 256
	name := fmt.Sprintf("%s_%s_by-%s_dns%d_uri%d_%s-%s", d.profile.name, key, c.SignatureAlgorithm, min(len(d.dns), 2), length,
		form(c.NotBefore.Year()), form(c.NotAfter.Year()))
	if strings.Contains(strings.Join(d.dns, "."), "xn--") {
		name += "_idn"
	}
	return name
}

// write puts the file there in one step: several test binaries run at once.
func write(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "new-*")
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(text); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
