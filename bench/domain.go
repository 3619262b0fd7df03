package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// daemon is a process under measurement.
type daemon struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// start runs a program on one core (the last of two, so that the generator has the other), its talk in a file.
func (b *bench) start(core int, path string, args ...string) (*daemon, error) {
	log, err := os.CreateTemp(b.folder, filepath.Base(path)+"-*.log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	name, argv := path, args
	if core >= 0 {
		name, argv = "taskset", append([]string{"-c", strconv.Itoa(core % runtime.NumCPU()), path}, args...)
	}
	d := &daemon{cmd: exec.Command(name, argv...), done: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { d.cmd.Wait(); close(d.done) }()
	return d, nil
}

func (d *daemon) stop() {
	if d == nil {
		return
	}
	d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(5 * time.Second):
		d.cmd.Process.Kill()
		<-d.done
	}
}

// cpu is the processor time that the daemon has used, user and system (proc_pid_stat(5), fields 14 and 15, in ticks of 10 ms).
func (d *daemon) cpu() (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+2:]))
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}

// mostMemory is the most that was resident at once so far, in MiB (proc_pid_status(5), VmHWM).
func (d *daemon) mostMemory() (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, line, _ := strings.Cut(string(data), "VmHWM:")
	var kilobytes float64
	_, err = fmt.Sscan(line, &kilobytes)
	return kilobytes / 1024, err
}

// domain is a server in a folder of its own, and what an agent needs to join it.
type domain struct {
	bench  *bench
	server *daemon
	admin  string
	folder string
}

const benchDomain = "mesh.example"

// newDomain starts a server with an empty store.
func (b *bench) newDomain(ctx context.Context) (*domain, error) {
	folder, err := os.MkdirTemp(b.folder, "d")
	if err != nil {
		return nil, err
	}
	d := &domain{bench: b, folder: folder, admin: filepath.Join(folder, "admin.sock")}
	config := fmt.Sprintf("trust_domain: %s\ndata_dir: %s/server\nname: bench\nlisten: 127.0.0.1:0\nadmin_socket: %s\nmetrics: 127.0.0.1:0\nlog: {level: error}\n",
		benchDomain, folder, d.admin)
	if err := os.WriteFile(filepath.Join(folder, "server.yaml"), []byte(config), 0o600); err != nil {
		return nil, err
	}
	if d.server, err = b.start(-1, b.writ, "server", "run", "--config", filepath.Join(folder, "server.yaml")); err != nil {
		return nil, err
	}
	err = until(ctx, 10*time.Second, func() error { _, err := d.command("", "bundle", "show"); return err })
	return d, err
}

// command runs an operator's command.
func (d *domain) command(input string, args ...string) (string, error) {
	cmd := exec.Command(d.bench.writ, args...)
	cmd.Env = append(os.Environ(), "WRIT_ADMIN="+d.admin)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("writ %s: %s", strings.Join(args, " "), exit.Stderr)
	}
	return string(out), err
}

// agentFiles writes an agent's configuration into a new folder and gives it; decisions are made where policy is given, metrics served at
// that address.
func (d *domain) agentFiles(policy, metrics string) (folder string, err error) {
	if folder, err = os.MkdirTemp(d.folder, "a"); err != nil {
		return "", err
	}
	config := fmt.Sprintf("trust_domain: %s\ndata_dir: %s/agent\nsocket: %[2]s/agent.sock\nmetrics: %s\nadmin_socket: %[2]s/admin.sock\nlog: {level: error}\n",
		benchDomain, folder, metrics)
	if policy != "" {
		config += fmt.Sprintf("authz: {listen: [\"unix://%s/authz.sock\"], policy: %s, records: \"off\"}\n", folder, policy)
	}
	return folder, os.WriteFile(filepath.Join(folder, "agent.yaml"), []byte(config), 0o600)
}

// join lets the agent of that folder join with a new token.
func (d *domain) join(folder string) error {
	out, err := d.command("", "token", "create", "--node", "bench")
	if err != nil {
		return err
	}
	token, _, _ := strings.Cut(strings.TrimPrefix(out, "token: "), "\n")
	_, err = d.command(token, "agent", "join", "--config", filepath.Join(folder, "agent.yaml"), "-")
	return err
}

// until tries every 2 ms until there is no error or the time is up.
func until(ctx context.Context, within time.Duration, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", within, err)
		}
	}
}
