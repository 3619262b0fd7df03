package testdomain_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/internal/testdomain"
)

// tokens are go-spiffe's JWTSource in this process and a Python workload, on one node.
type tokens struct {
	server *testdomain.Server
	agent  *testdomain.Agent
	source *workloadapi.JWTSource
	py     *program
}

func newTokens(t *testing.T) *tokens {
	t.Helper()
	local := func() string { return fmt.Sprintf("127.0.0.1:%d", testdomain.Port(t)) }
	b, here := testdomain.Built(t), testdomain.Host{}
	d := &tokens{server: testdomain.NewServer(t, b, here, testdomain.Settings{"listen": local(), "metrics": local(), "log": "{level: debug}"})}
	d.server.Start(t)
	entry := func(name, executable, more string) string {
		return fmt.Sprintf("name: %s\npath: /%[1]s\nany: true\nmatch: [\"unix:uid:%d\", \"unix:path:%s\"]\n%s", name, os.Getuid(), executable, more)
	}
	d.server.Apply(t, entry("go", programPath(t), "")+"---\n"+entry("py", pythonPath(t), "")+"---\n"+entry("cli", string(b), ""))
	d.agent = testdomain.NewAgent(t, b, here, testdomain.Settings{"metrics": local(), "log": "{level: debug}"})
	d.agent.Join(t, d.server.Token(t))
	d.agent.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var err error
	if d.source, err = workloadapi.NewJWTSource(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(d.agent.Socket()))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.source.Close() })
	d.py = python(t, d.agent)
	return d
}

func (d *tokens) fetch(t *testing.T, audience string) (*jwtsvid.SVID, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return d.source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
}

func (d *tokens) must(t *testing.T, audience string) *jwtsvid.SVID {
	t.Helper()
	s, err := d.fetch(t, audience)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// accepted has go-spiffe, py-spiffe and the agent verify a token.
func (d *tokens) accepted(t *testing.T, audience, token, id string) {
	t.Helper()
	if s, err := jwtsvid.ParseAndValidate(token, d.source, []string{audience}); err != nil || s.ID.String() != id {
		t.Errorf("go-spiffe takes it for %v, %v", s, err)
	}
	if e := d.py.do(t, "check "+audience+" "+token, "checked", "refused"); e.ID != id {
		t.Errorf("py-spiffe: %s %s", e.Event, e.Error)
	}
}

// TestTokensOfOtherPeoplesClients: go-spiffe and py-spiffe take tokens of each other, over a restart of the agent and the server,
// and while the server is away.
func TestTokensOfOtherPeoplesClients(t *testing.T) {
	t.Parallel()
	d := newTokens(t)
	goID, pyID := "spiffe://"+testdomain.TrustDomain+"/go", "spiffe://"+testdomain.TrustDomain+"/py"
	first := d.must(t, "py")
	d.accepted(t, "py", first.Marshal(), goID)
	theirs := d.py.do(t, "token go other", "token")
	if theirs.ID != pyID {
		t.Errorf("python has %s", theirs.ID)
	}
	d.accepted(t, "go", theirs.Token, pyID)
	if e := d.py.do(t, "check other "+first.Marshal(), "checked", "refused"); e.Event != "refused" {
		t.Errorf("for another audience: %+v", e)
	}

	logs := []string{d.server.Log, d.agent.Log}
	d.server.Stop(t)
	if again := d.must(t, "py"); again.Marshal() != first.Marshal() {
		t.Error("without a server it is another one")
	}
	begun := time.Now()
	_, err := d.fetch(t, "new")
	if s, _ := status.FromError(err); s.Code() != codes.Unavailable || !strings.Contains(s.Message(), "no JWT-SVID for this audience is held") {
		t.Errorf("a new audience without a server: %v", err)
	}
	if passed := time.Since(begun); passed > 4*time.Second { // 1.5 s, and what a busy machine adds
		t.Errorf("it took %s", passed)
	}
	begun = time.Now()
	if _, text := d.agent.Writ(t, 4, "jwt", "get", "--audience", "new"); !strings.Contains(text, "P2008") || time.Since(begun) > 4*time.Second {
		t.Errorf("writ jwt get says after %s: %s", time.Since(begun), text)
	}
	d.accepted(t, "go", theirs.Token, pyID)

	d.server.Start(t)
	testdomain.Until(t, 30*time.Second, "a token after the server's restart", func() error { _, err := d.fetch(t, "after"); return err })
	d.accepted(t, "after", d.must(t, "after").Marshal(), goID)
	d.agent.Stop(t)
	d.agent.Start(t)
	testdomain.Until(t, 30*time.Second, "a token after the agent's restart", func() error { _, err := d.fetch(t, "py"); return err })
	d.accepted(t, "py", d.must(t, "py").Marshal(), goID)
	d.accepted(t, "py", first.Marshal(), goID) // clients.md rule 20: from before both

	token, _ := d.agent.Writ(t, 0, "jwt", "get", "--audience", "py")
	d.accepted(t, "py", strings.TrimSpace(token), "spiffe://"+testdomain.TrustDomain+"/cli")
	for _, log := range append(logs, d.server.Log, d.agent.Log) { // JWT-30
		if text, err := os.ReadFile(log); err != nil || strings.Contains(string(text), "eyJ") {
			t.Errorf("%s has a token (%v)", log, err)
		}
	}
}
