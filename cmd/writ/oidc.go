package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/writ-dev/writ/internal/crowd"
	"github.com/writ-dev/writ/internal/durable"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/server"
)

// oidcConfig serves the keys of JWT-SVIDs to OIDC clients, and puts the issuer into every token.
type oidcConfig struct {
	Listen string `yaml:"listen"` // ":8444"
	Issuer string `yaml:"issuer"` // https URL under which clients reach it; no OIDC where it is not given
	Cert   string `yaml:"cert"`   // PEM files of the listener's certificate with its chain, and its key, read again when they
	Key    string `yaml:"key"`    // change; the server's own SVID, naming the issuer's host, where they are not given
}

// problems checks a section that is there; defaults filled in.
func (c oidcConfig) problems(p *problems) {
	host, err := server.CheckIssuer(c.Issuer)
	if err != nil {
		p.add("oidc.issuer", "%q %v", c.Issuer, err)
	}
	p.address("oidc.listen", c.Listen)
	switch {
	case (c.Cert == "") != (c.Key == ""):
		p.add("oidc", "cert and key go together")
	case c.Cert == "" && host == "" && err == nil:
		p.add("oidc.issuer", "%q names an IP address, for which cert and key are needed", c.Issuer)
	}
}

// oidc is what the server needs to know of the section; nil without one.
func (d *serverDaemon) oidc() (*server.OIDC, error) {
	c := d.config.OIDC
	if c == (oidcConfig{}) {
		return nil, nil
	}
	out := &server.OIDC{Issuer: c.Issuer}
	if c.Cert != "" {
		files := &certificateFiles{cert: c.Cert, key: c.Key, log: d.log}
		if err := files.load(); err != nil {
			return nil, fault.New(fault.Invalid, err, "certificate of the OIDC listener").With(fault.BadConfig, "mend the files of oidc.cert and oidc.key")
		}
		out.Certificate = files.get
		d.oidcFiles = files
	}
	return out, nil
}

// mostOIDC bounds the connections of strangers: where one more comes, the oldest ends.
const mostOIDC = 256

// serveOIDC serves until ctx ends.
func (d *serverDaemon) serveOIDC(ctx context.Context, s *http.Server) error {
	return serveUntil(ctx, s, func() error { return s.ServeTLS(crowd.Listen(d.oidcAt, mostOIDC), "", "") })
}

// certificateFiles is a certificate that others renew in place.
type certificateFiles struct {
	cert, key string
	log       *slog.Logger

	mu     sync.Mutex
	loaded *tls.Certificate
	stamp  string    // of the files as they were read last, whether they could be or not
	looked time.Time // at the files
	wrong  error     // with what was read last
}

// get gives the newest certificate that could be read. It looks at the files once a second at most.
func (f *certificateFiles) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.look()
	return f.loaded, nil
}

// look reads what has changed; the caller holds mu.
func (f *certificateFiles) look() {
	if time.Since(f.looked) < time.Second {
		return
	}
	f.looked = time.Now()
	if stamp := f.stampNow(); stamp != f.stamp {
		if f.wrong = f.read(stamp); f.wrong != nil {
			f.log.Error("certificate of the OIDC listener not renewed", "err", f.wrong)
		}
	}
}

// health is "ok", or why clients will not take the certificate.
func (f *certificateFiles) health() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.look()
	ended := f.loaded.Leaf.NotAfter.UTC()
	switch {
	case time.Now().After(ended):
		return "the listener's certificate ended at " + ended.Format(time.RFC3339) + "; " + f.cert + " has no newer one"
	case f.wrong != nil:
		return "the certificate's files cannot be read, the one before is served until " + ended.Format(time.RFC3339) + ": " + oneLine(f.wrong)
	}
	return "ok"
}

func (f *certificateFiles) load() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.read(f.stampNow())
}

// read takes both files or neither; the caller holds mu. A pair that does not match is one of which half is written: its other half
// changes the stamp.
func (f *certificateFiles) read(stamp string) error {
	f.stamp = stamp
	cert, err := os.ReadFile(f.cert)
	if err != nil {
		return err
	}
	key, err := durable.ReadSecret(f.key)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("%s and %s: %w", f.cert, f.key, err)
	}
	f.loaded = &pair
	return nil
}

// stampNow changes when a file does.
func (f *certificateFiles) stampNow() (stamp string) {
	for _, path := range []string{f.cert, f.key} {
		if info, err := os.Stat(path); err == nil {
			stamp += fmt.Sprint(info.ModTime().UnixNano(), info.Size(), info.Mode(), " ") // a key too wide may be closed
		}
	}
	return stamp
}
