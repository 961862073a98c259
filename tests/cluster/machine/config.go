package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
)

// Config says what a machine is.
type Config struct {
	Name    string            // host name
	Dir     string            // absolute; made by Start. Short: the control socket is in it
	Group   string            // path of its cgroup in every hierarchy, such as "conduit-cluster/c1/node1"
	Binds   []Bind            // more of the host's files
	Sysctls map[string]string // network sysctls such as "net/ipv4/ip_forward"; others belong to the host
	Forward string            // address inside, such as "127.0.0.1:6443", that Machine.Addr on the host leads to
	Owned   bool              // the machine dies with the process that starts it, until Disown
}

// Bind shows a file or directory of the host inside a machine.
type Bind struct {
	Host, Inside string // absolute paths; Inside must not be below another Bind
	Writable     bool
}

// Paths inside of a machine that are not a usual system's.
const (
	HostDir = "/host"    // the host's root file system, read-only, without what is mounted on it
	initBin = "/machine" // the init's program
)

// Files in Config.Dir.
const (
	configFile  = "machine.json"
	markFile    = "pid" // see processMark
	addrFile    = "addr"
	controlSock = "control.sock"
	rootDir     = "root"
)

var validName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

func (c Config) check() error {
	if !validName.MatchString(c.Name) {
		return fmt.Errorf("machine %q: want lower-case letters, digits and dashes", c.Name)
	}
	if !filepath.IsAbs(c.Dir) || !filepath.IsLocal(c.Group) {
		return fmt.Errorf("machine %s: want an absolute directory and a relative cgroup, have %q and %q", c.Name, c.Dir, c.Group)
	}
	if sock := filepath.Join(c.Dir, controlSock); len(sock) > 107 { // unix(7)
		return fmt.Errorf("machine %s: %s is too long for a socket in it", c.Name, c.Dir)
	}
	return nil
}

func readConfig(dir string) (Config, error) {
	var c Config
	data, err := os.ReadFile(filepath.Join(dir, configFile))
	if err != nil {
		return c, fmt.Errorf("read machine: %w", err)
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("read machine %s: %w", dir, err)
	}
	return c, nil
}

// request is what the host asks of the init, one JSON object for each connection, answered by one reply.
type request struct {
	Op     string // "start", "stop", "status" or "disown"
	Daemon Daemon // of start; the name alone of stop
}

type reply struct {
	Error   string   `json:",omitempty"`
	Daemons []Status `json:",omitempty"`
}

// Daemon is a program that the machine's init keeps running: one that ends is started again a second later.
type Daemon struct {
	Name string
	Argv []string // the program is found in PATH
	Env  []string // beside PATH and HOME
}

// Status is what became of a daemon.
type Status struct {
	Name     string
	PID      int // inside the machine; 0 when it does not run
	Starts   int
	LastExit string `json:",omitempty"`
}

var errNoInit = errors.New("the machine's init does not run")
