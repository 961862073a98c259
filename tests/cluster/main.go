// Command cluster starts and stops real Kubernetes clusters on this computer, for tests and for work by hand. See
// package kube for what a cluster is and how it is reached.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"text/tabwriter"

	"conduit.io/conduit/tests/cluster/kube"
)

const usage = `Usage: go run ./tests/cluster VERB [flags] [arguments]

  build                      build what clusters run (minutes; kept in the cache)
  up                         start a cluster
  down [--all]               stop it, and remove everything of it; --all: every cluster
  status                     machines, daemons, nodes and pods
  list                       names of the clusters
  sh COMMAND...              run COMMAND on the host, with KUBECONFIG set and kubectl in PATH
  node I COMMAND...          run COMMAND on node I
  control-plane COMMAND...   run COMMAND on the control plane's machine
  image ARCHIVE.tar...       import images on every node
  image NAME:TAG PROGRAM [ARGUMENTS...]   make an image of one static program, and import it
  restart MACHINE DAEMON     restart a daemon: node1 containerd, control-plane kube-apiserver, ...

Flags, after the verb:
`

type options struct {
	kube.Options
	all bool
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	err := run(ctx, os.Args[1:])
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode()) // a command's own: it has said why
	case errors.Is(err, flag.ErrHelp):
		os.Exit(64) // EX_USAGE of sysexits.h
	default:
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	o := options{Options: kube.Options{Progress: os.Stderr}}
	fs := flag.NewFlagSet("cluster", flag.ContinueOnError)
	fs.Usage = func() {
		fmt.Fprint(fs.Output(), usage)
		fs.PrintDefaults()
	}
	fs.StringVar(&o.Name, "name", "default", "`NAME` of the cluster")
	fs.IntVar(&o.Nodes, "nodes", 2, "`NUMBER` of nodes (up)")
	fs.StringVar(&o.CNI, "cni", "bridge", "primary CNI `PLUGIN`: bridge or ptp (up)")
	fs.StringVar(&o.ProxyMode, "proxy", "iptables", "`MODE` of kube-proxy: iptables or nftables (up)")
	fs.BoolVar(&o.DualStack, "dual-stack", false, "IPv6 beside IPv4 (up)")
	fs.BoolVar(&o.all, "all", false, "every cluster (down)")
	if len(args) == 0 {
		fs.Usage()
		return flag.ErrHelp
	}
	verb := args[0]
	if err := fs.Parse(args[1:]); err != nil {
		return flag.ErrHelp
	}
	do, ok := verbs[verb]
	if !ok {
		fs.Usage()
		return flag.ErrHelp
	}
	return do(ctx, o, fs.Args())
}

var verbs = map[string]func(context.Context, options, []string) error{
	"build": func(ctx context.Context, _ options, _ []string) error {
		_, err := kube.Build(ctx, os.Stderr)
		return err
	},
	"up":      up,
	"down":    down,
	"status":  status,
	"list":    list,
	"sh":      shell,
	"image":   image,
	"restart": restart,
	"node": func(ctx context.Context, o options, args []string) error {
		if len(args) < 2 {
			return errors.New("want: node I COMMAND")
		}
		i, err := strconv.Atoi(args[0])
		if err != nil {
			return fmt.Errorf("number of node: %w", err)
		}
		return runInside(ctx, o, i, args[1:])
	},
	"control-plane": func(ctx context.Context, o options, args []string) error { return runInside(ctx, o, 0, args) },
}

func up(ctx context.Context, o options, _ []string) error {
	c, err := kube.Up(ctx, o.Options)
	if err != nil {
		return err
	}
	if err := c.Disown(); err != nil {
		return errors.Join(err, c.Down())
	}
	return nil
}

func down(_ context.Context, o options, _ []string) error {
	if !o.all {
		return kube.Remove(o.Name)
	}
	names, err := kube.List()
	errs := []error{err}
	for _, n := range names {
		errs = append(errs, kube.Remove(n))
	}
	return errors.Join(append(errs, kube.Sweep())...)
}

func list(_ context.Context, _ options, _ []string) error {
	names, err := kube.List()
	for _, n := range names {
		fmt.Println(n)
	}
	return err
}

func status(ctx context.Context, o options, _ []string) error {
	c, err := kube.Open(o.Name)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MACHINE\tPID\tDAEMON\tSTARTS\tSTATE")
	for _, m := range c.Machines() {
		daemons, err := m.Daemons()
		if err != nil {
			return err
		}
		for _, d := range daemons {
			state := "running"
			if d.PID == 0 {
				state = "stopped: " + d.LastExit
			}
			fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%s\n", m.Name(), m.PID(), d.Name, d.Starts, state)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, what := range []string{"nodes", "pods"} {
		out, err := c.Kubectl(ctx, nil, "get", what, "-A", "-o", "wide")
		if err != nil {
			return err
		}
		fmt.Printf("\n%s", out)
	}
	return nil
}

func shell(ctx context.Context, o options, args []string) error {
	c, err := kube.Open(o.Name)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		return errors.New("want: sh COMMAND")
	}
	os.Setenv("PATH", filepath.Dir(c.KubectlCommand(ctx).Path)+":"+os.Getenv("PATH")) //nolint:errcheck // the name is good
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
	return attach(cmd)
}

func runInside(ctx context.Context, o options, i int, args []string) error {
	c, err := kube.Open(o.Name)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		return errors.New("want a COMMAND")
	}
	m := c.ControlPlane()
	if i > 0 {
		if m = c.Node(i); m == nil {
			return fmt.Errorf("there is no node %d", i)
		}
	}
	cmd := m.Command(ctx, args...)
	cmd.SysProcAttr = nil // the terminal's group: a shell may read from it
	return attach(cmd)
}

func attach(cmd *exec.Cmd) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

func image(ctx context.Context, o options, args []string) error {
	c, err := kube.Open(o.Name)
	if err != nil {
		return err
	}
	archives := args
	if len(args) >= 2 && filepath.Ext(args[0]) != ".tar" {
		dir, err := os.MkdirTemp("", "cluster-image")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		archives = []string{filepath.Join(dir, "image.tar")}
		if err := kube.ProgramImage(archives[0], args[0], args[1], args[2:]...); err != nil {
			return err
		}
	}
	for _, a := range archives {
		if err := c.ImportImage(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

func restart(_ context.Context, o options, args []string) error {
	c, err := kube.Open(o.Name)
	if err != nil {
		return err
	}
	if len(args) != 2 {
		return errors.New("want: restart MACHINE DAEMON")
	}
	for _, m := range c.Machines() {
		if m.Name() == args[0] {
			return m.RestartDaemon(args[1])
		}
	}
	return fmt.Errorf("there is no machine %q", args[0])
}
