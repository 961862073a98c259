package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"
)

// StartDaemon starts a daemon, and has it started again whenever it ends. Without Argv it is one that was stopped.
func (m *Machine) StartDaemon(d Daemon) error {
	_, err := m.ask(request{Op: "start", Daemon: d})
	return err
}

// StopDaemon stops a daemon, by SIGTERM and after 10 s by SIGKILL, and returns when it has ended. Its children, such as
// a container runtime's shims, live on.
func (m *Machine) StopDaemon(name string) error {
	_, err := m.ask(request{Op: "stop", Daemon: Daemon{Name: name}})
	return err
}

// RestartDaemon is StopDaemon and StartDaemon.
func (m *Machine) RestartDaemon(name string) error {
	if err := m.StopDaemon(name); err != nil {
		return err
	}
	return m.StartDaemon(Daemon{Name: name})
}

// Daemons tells how the daemons are, in the order of their names.
func (m *Machine) Daemons() ([]Status, error) { return m.ask(request{Op: "status"}) }

// Disown lets the machine live on when this process ends.
func (m *Machine) Disown() error {
	_, err := m.ask(request{Op: "disown"})
	return err
}

func (m *Machine) ask(req request) ([]Status, error) {
	c, err := net.DialTimeout("unix", filepath.Join(m.cfg.Dir, controlSock), 5*time.Second)
	if err != nil {
		return nil, fmt.Errorf("ask machine %s to %s %s: %w", m.cfg.Name, req.Op, req.Daemon.Name, err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(stopTimeout)); err != nil {
		return nil, err
	}
	if err := json.NewEncoder(c).Encode(req); err != nil {
		return nil, fmt.Errorf("ask machine %s to %s %s: %w", m.cfg.Name, req.Op, req.Daemon.Name, err)
	}
	var r reply
	if err := json.NewDecoder(c).Decode(&r); err != nil {
		return nil, fmt.Errorf("ask machine %s to %s %s: %w", m.cfg.Name, req.Op, req.Daemon.Name, err)
	}
	if r.Error != "" {
		return r.Daemons, fmt.Errorf("machine %s: %w", m.cfg.Name, errors.New(r.Error))
	}
	return r.Daemons, nil
}
