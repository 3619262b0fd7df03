package testdomain_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/writ-dev/writ/internal/testdomain"
)

func TestRotationFailsNoRequest(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.api.Delta = true         // and web follows its secrets as state of the world
	m.web.MaxConnection = "3s" // the example's is for longer lives
	m.up(t, "12s")
	first, err := m.web.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	kept := constantly(t, func() (testdomain.Answer, error) { return m.web.Call("GET", "/orders", nil) })
	fresh := constantly(t, func() (testdomain.Answer, error) { return m.web.CallFresh("GET", "/orders", nil) })

	// Ten rotations of each, and a while after the end of the certificate that the first connections were made with.
	serials := map[*testdomain.Side]map[string]bool{m.web: {}, m.api: {}}
	testdomain.Until(t, 150*time.Second, "both certificates rotated ten times", func() error {
		for side, seen := range serials {
			c, err := side.Certificate()
			if err != nil {
				return err
			}
			seen[c.Serial] = true
			if left := time.Until(c.NotAfter); left <= 0 {
				return fmt.Errorf("%s shows a certificate that ended %s ago", side.Name, -left)
			}
		}
		if w, a := len(serials[m.web]), len(serials[m.api]); w < 11 || a < 11 {
			return fmt.Errorf("%d serials of web, %d of api", w, a)
		}
		if left := time.Until(first.NotAfter.Add(3 * time.Second)); left > 0 {
			return fmt.Errorf("the first certificate ends in %s", left)
		}
		return nil
	})
	kept.allAnswered(t, "connections kept")
	fresh.allAnswered(t, "a handshake each")
}
