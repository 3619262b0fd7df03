package main

import (
	"errors"
	"io/fs"
	"net/http"
	"strconv"
	"time"

	"github.com/writ-dev/writ/agent/peer"
	"github.com/writ-dev/writ/audit"
)

// decisionsPath is where the agent's admin socket gives decisions, as JSON lines.
const decisionsPath = "/v1/decisions"

// unreadableTrailer says after them which lines of the file are no decisions.
const unreadableTrailer = "Writ-Unreadable"

// listenAdmin opens this node's admin socket, for operators of the group writ. It only answers, and changes nothing.
func (d *agentDaemon) listenAdmin() (err error) {
	if d.admin, err = peer.Listen(d.config.AdminSocket, fs.FileMode(d.config.adminMode)); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+decisionsPath, d.serveDecisions)
	mux.HandleFunc("GET "+explainPath, d.serveExplain)
	mux.HandleFunc("GET "+suggestPath, d.serveSuggest)
	d.adminServe = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	return toOperators(d.config.AdminSocket, d.config.adminMode)
}

// serveDecisions streams the records that a query asks for; following ends with the connection or the agent.
func (d *agentDaemon) serveDecisions(w http.ResponseWriter, r *http.Request) {
	path := d.records.path()
	if path == "" {
		http.Error(w, "this agent keeps no file of decision records", http.StatusNotFound)
		return
	}
	values := r.URL.Query()
	q := audit.Query{Filter: audit.Filter{Source: values.Get("source"), Path: values.Get("path"), ID: values.Get("id"), Outcomes: values["outcome"]},
		Follow: values.Get("follow") == "true"}
	if last := values.Get("last"); last != "" {
		n, err := strconv.Atoi(last)
		if err != nil || n < 0 {
			http.Error(w, "last is no number", http.StatusBadRequest)
			return
		}
		q.Last = n
	}
	w.Header().Set("Content-Type", "application/jsonl")
	out := http.NewResponseController(w)
	if err := out.Flush(); err != nil {
		return
	}
	err := audit.Tail(r.Context(), path, q, func(line []byte) error {
		if _, err := w.Write(append(line[:len(line):len(line)], '\n')); err != nil || !q.Follow {
			return err
		}
		return out.Flush()
	})
	if unreadable := (*audit.Unreadable)(nil); errors.As(err, &unreadable) {
		w.Header().Set(http.TrailerPrefix+unreadableTrailer, unreadable.Error())
		return
	}
	if err != nil && !errors.Is(err, r.Context().Err()) {
		d.log.WarnContext(r.Context(), "decisions not read to the end", "err", err)
		panic(http.ErrAbortHandler) // so that the client does not take what it has for all
	}
}
