package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/svid"
)

const (
	askAtLeast   = 5 * time.Second  // the longest pause between tries to reach the Workload API
	writeAtLeast = 30 * time.Second // the longest pause between tries to write
	lookAfter    = 5 * time.Second  // how often the folder is looked at for what others did to it
)

// watchFlags is the command line of `writ svid watch`.
type watchFlags struct {
	printed
	folder, command, id string
}

func newSVIDWatchCommand() *cobra.Command {
	var f watchFlags
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Follow this process's X.509-SVID, and keep files of it fresh for a program that reads files",
		Long: `Prints a line for each X.509-SVID that comes. With --write it keeps svid.pem (the chain), key.pem (PKCS#8) and bundle.pem (the trust
domain's roots) in that folder: each replaced at once, 0600, and only when its content changed. --exec then runs a command by /bin/sh, with
WRIT_CHANGED naming the files, in their order; one that fails is run again every 5 s until it succeeds or the next change comes. Programs that read both
svid.pem and key.pem do so when the command tells them to: between two files of one change there is a moment. The files are kept fresh while it
runs; what changes meanwhile is told by one more run. One that takes over 30 s is ended, with all processes that it started.

The files stay when no identity is issued any more; standard error says so. So it does when they cannot be written, as on a full disk, which is
tried again until it succeeds. A folder that another watch keeps is refused with 5. Ends at SIGINT or SIGTERM with 0.`,
		Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			socket, err := workloadSocket(cmd)
			if err != nil {
				return err
			}
			w, err := newFileWriter(cmd, f, socket)
			if err != nil {
				return err
			}
			return w.run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&f.folder, "write", "", "folder to keep svid.pem, key.pem and bundle.pem in; made 0700 where it is not there")
	cmd.Flags().StringVar(&f.command, "exec", "", "command to run after a change of the files, such as a reload")
	cmd.Flags().StringVar(&f.id, "spiffe-id", "", "the SVID of this SPIFFE ID (default: the first)")
	f.flag(cmd, "table", "json", "yaml")
	return cmd
}

// fileWriter follows the Workload API: a client's goroutine hands over updates and says what is wrong, its own does the rest.
type fileWriter struct {
	flags     watchFlags
	socket    string
	id        spiffeid.ID // zero: the first
	out, talk io.Writer
	updates   chan *workloadapi.X509Context // holds the newest
	folder    keptFolder

	hook *hook

	wanted  []file           // what the folder has still to hold
	kept    []file           // what it was brought to hold
	rewrite <-chan time.Time // when that is tried again
	pause   pause            // between tries to write

	mu   sync.Mutex // guards said
	said string     // the last trouble that was told
}

func newFileWriter(cmd *cobra.Command, f watchFlags, socket string) (*fileWriter, error) {
	w := &fileWriter{flags: f, socket: socket, out: cmd.OutOrStdout(), talk: cmd.ErrOrStderr(), updates: make(chan *workloadapi.X509Context, 1),
		pause: pause{most: writeAtLeast}, hook: &hook{command: f.command, limit: hookLimit, talk: cmd.ErrOrStderr()}}
	if cmd.Flags().Changed("write") && f.folder == "" { // as where a variable of a script is not set
		return nil, usageError{cmd, errors.New("--write is empty: which folder")}
	}
	if f.command != "" && f.folder == "" {
		return nil, usageError{cmd, errors.New("--exec needs --write: it runs after a change of the files")}
	}
	if f.id != "" {
		id, err := svid.ParseID(f.id)
		if err != nil {
			return nil, usageError{cmd, fmt.Errorf("--spiffe-id: %w", err)}
		}
		w.id = id
	}
	if f.folder == "" {
		return w, nil
	}
	w.folder.path = f.folder
	if err := w.folder.hold(); err != nil {
		return nil, err
	}
	if f.command != "" {
		w.hook.changed = w.folder.remembered()
	}
	return w, nil
}

// run follows until ctx ends, or the Workload API says for good that it will not serve.
func (w *fileWriter) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		defer cancel()
		ended <- workloadapi.WatchX509Context(ctx, w, workloadapi.WithAddr(w.socket), workloadapi.WithBackoffStrategy(steady{}))
	}()
	err := w.follow(ctx)
	cancel()
	if watched := <-ended; err == nil && !errors.Is(watched, context.Canceled) && status.Code(watched) != codes.Canceled {
		err = watched
	}
	return err
}

// follow writes what comes, newest first, and has the command run. Nothing that is wrong with the folder ends it: whoever reads the files
// needs them fresh again as soon as there is room.
func (w *fileWriter) follow(ctx context.Context) error {
	defer w.folder.release()
	defer w.leave()
	look := time.NewTicker(lookAfter)
	defer look.Stop()
	for {
		select {
		case <-look.C:
			w.look()
		case <-ctx.Done():
			return nil
		case err := <-w.hook.ended:
			w.ran(err)
		case <-w.hook.again:
			w.hook.again = nil
		case <-w.rewrite:
			w.keep()
		case update := <-w.updates:
			if err := w.take(update); err != nil {
				return err
			}
			w.keep()
		}
		if len(w.wanted) == 0 { // a program that reads the files now finds them as one
			w.hook.start()
		}
	}
}

// ran notes that a run of the command ended.
func (w *fileWriter) ran(err error) {
	w.hook.finish(err)
	switch {
	case err == nil:
		w.remember()
	case w.hook.again != nil:
		fmt.Fprintf(w.talk, "--exec failed, and is run again in %s: %v\n", hookAgain, err)
	default:
		fmt.Fprintf(w.talk, "--exec failed, and is run again now, as more changed: %v\n", err)
	}
}

// leave waits for a run that is on; what it was not told stands in the folder.
func (w *fileWriter) leave() {
	if w.hook.ended == nil {
		return
	}
	err := w.hook.leave()
	if w.hook.finish(err); err == nil {
		w.remember()
		return
	}
	fmt.Fprintf(w.talk, "--exec failed, and is run again by the next watch: %v\n", err)
}

func (w *fileWriter) remember() {
	if err := w.folder.remember(w.hook.left()); err != nil {
		fmt.Fprintf(w.talk, "--exec has run, and the next watch may run it again: %s\n", clean(err.Error()))
	}
}

// take prints one update, and sets what the folder shall hold.
func (w *fileWriter) take(update *workloadapi.X509Context) error {
	chosen := w.choose(update.SVIDs)
	if chosen == nil {
		w.tell(fmt.Sprintf("no SVID of %s is issued to this process; the files stay as they are", w.id))
		return nil
	}
	if roots, err := update.Bundles.GetX509BundleForTrustDomain(chosen.ID.TrustDomain()); err != nil || roots.Empty() {
		w.tell(fmt.Sprintf("the SVID of %s came without the roots of its trust domain; the files stay as they are", chosen.ID)) // Workload API section 4.5
		return nil
	}
	w.tell("")
	if err := printSVIDs(w.out, w.flags.printed, []*x509svid.SVID{chosen}, w.socket); err != nil || w.flags.folder == "" {
		return err
	}
	var err error
	w.wanted, err = filesOf(chosen, update)
	return err
}

// keep brings the folder to what it shall hold. What fails is said and tried again.
func (w *fileWriter) keep() {
	w.rewrite = nil
	if len(w.wanted) == 0 {
		return
	}
	if err := w.write(); err != nil {
		wait := w.pause.Next()
		fmt.Fprintf(w.talk, "the files are not written, which is tried again in %s: %s\n", wait, clean(err.Error()))
		w.rewrite = time.After(wait)
		return
	}
	if w.pause.last > 0 {
		fmt.Fprintf(w.talk, "the files in %s are written\n", w.flags.folder)
	}
	w.kept, w.wanted = w.wanted, nil
	w.pause.Reset()
}

// look brings back what somebody removed or changed since it was written.
func (w *fileWriter) look() {
	if len(w.wanted) > 0 || len(w.kept) == 0 || w.folder.held() && len(w.folder.differing(w.kept)) == 0 {
		return
	}
	fmt.Fprintf(w.talk, "the files in %s are gone or changed, and are written anew\n", w.flags.folder)
	w.wanted = w.kept
	w.keep()
}

// write replaces the files that differ. Which they are is remembered first: whoever ends between the two must know it when it is back.
func (w *fileWriter) write() error {
	if err := w.folder.hold(); err != nil {
		return err
	}
	files := w.folder.differing(w.wanted)
	if w.flags.command != "" && len(files) > 0 {
		for _, f := range files {
			w.hook.add([]string{f.name})
		}
		if err := w.folder.remember(w.hook.left()); err != nil {
			return err
		}
	}
	return w.folder.write(files)
}

func (w *fileWriter) choose(svids []*x509svid.SVID) *x509svid.SVID {
	for _, s := range svids {
		if w.id.IsZero() || s.ID == w.id {
			return s
		}
	}
	return nil
}

// filesOf gives the files in the order in which they are written. The roots come first: they must be known before what is under them.
func filesOf(s *x509svid.SVID, update *workloadapi.X509Context) ([]file, error) {
	roots, err := update.Bundles.GetX509BundleForTrustDomain(s.ID.TrustDomain())
	if err != nil {
		return nil, err
	}
	key, err := x509.MarshalPKCS8PrivateKey(s.PrivateKey)
	if err != nil {
		return nil, err
	}
	return []file{{"bundle.pem", certificates(roots.X509Authorities())},
		{"key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})},
		{"svid.pem", certificates(s.Certificates)}}, nil
}

func certificates(list []*x509.Certificate) (out []byte) {
	for _, c := range list {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// OnX509ContextUpdate is called by the client, one update after the other.
func (w *fileWriter) OnX509ContextUpdate(update *workloadapi.X509Context) {
	select { // what waits there is older
	case <-w.updates:
	default:
	}
	w.updates <- update
}

// OnX509ContextWatchError is called by the client before it tries again.
func (w *fileWriter) OnX509ContextWatchError(err error) {
	if s := status.Convert(err); s.Code() != codes.Canceled {
		w.tell(s.Message())
	}
}

// tell says what is wrong, once; nothing is what ends it.
func (w *fileWriter) tell(trouble string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if trouble != w.said && trouble != "" {
		fmt.Fprintln(w.talk, clean(trouble))
	}
	w.said = trouble
}

// steady tries again soon, however long it has been in vain: an entry may come at any moment.
type steady struct{}

func (steady) NewBackoff() workloadapi.Backoff { return &pause{most: askAtLeast} }

// pause grows from 0.2 s to the longest.
type pause struct{ last, most time.Duration }

func (p *pause) Next() time.Duration {
	p.last = min(2*p.last+200*time.Millisecond, p.most)
	return p.last
}

func (p *pause) Reset() { p.last = 0 }
