package install

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

// Exit codes of Main.
const (
	exitOK      = 0
	exitFailed  = 1
	exitWaiting = 2
	exitUsage   = 64 // EX_USAGE of sysexits.h
)

const usage = `conduit-cni is Conduit's chained CNI plugin. Container runtimes run it without arguments. On a node, by hand or by the agent:

  conduit-cni install     add the plugin to the network configuration in use; exit code 2 if there is none yet
  conduit-cni watch       install, and repair what other programs undo, until a signal
  conduit-cni uninstall   take it out again

Flags:
`

// Main runs conduit-cni as a command, and returns its exit code.
func Main(args []string, stdout, stderr io.Writer) int {
	var in Installer
	fs := flag.NewFlagSet("conduit-cni", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprint(fs.Output(), usage)
		fs.PrintDefaults()
	}
	fs.StringVar(&in.ConfDir, "conf-dir", DefaultConfDir, "`DIR` of the runtime's network configurations")
	fs.StringVar(&in.BinDir, "bin-dir", DefaultBinDir, "`DIR` of the runtime's plugins")
	fs.StringVar(&in.AgentSocket, "agent-socket", "/run/conduit/cni.sock", "`PATH` of the agent's socket on the node")
	fs.StringVar(&in.Lock, "lock", "", "`FILE` that watch keeps locked while the plugin is in place: the agent's --cni-lock")
	fs.StringVar(&in.Plugin, "plugin", "/proc/self/exe", "`PATH` of the program to install")
	if len(args) == 0 {
		fs.Usage()
		return exitUsage
	}
	verb := args[0]
	if verb == "help" || verb == "-h" || verb == "--help" {
		fs.SetOutput(stdout)
		fs.Usage()
		return exitOK
	}
	if err := fs.Parse(args[1:]); err != nil {
		return exitUsage
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(stderr, "conduit-cni: unexpected argument %q\n", fs.Arg(0))
		return exitUsage
	}
	var err error
	switch verb {
	case "install":
		err = printState(stdout)(in.Install())
	case "uninstall":
		err = in.uninstall(stdout)
	case "watch":
		ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer cancel()
		say := printState(stdout)
		debug.SetGCPercent(25) // it lives as long as the node, and has little to do
		err = in.Watch(ctx, func(st State, err error) {
			debug.FreeOSMemory() // to copy the program takes its size once
			if err := say(st, err); err != nil {
				fmt.Fprintf(stderr, "conduit-cni: %v\n", err)
			}
		})
	default:
		fs.Usage()
		return exitUsage
	}
	switch {
	case errors.Is(err, ErrNoConfig):
		fmt.Fprintf(stderr, "conduit-cni: %v in %s\n", err, in.ConfDir)
		return exitWaiting
	case err != nil:
		fmt.Fprintf(stderr, "conduit-cni: %v\n", err)
		return exitFailed
	}
	return exitOK
}

func printState(w io.Writer) func(State, error) error {
	return func(st State, err error) error {
		if err != nil {
			return err
		}
		what := "was installed already in"
		if st.Changed {
			what = "installed in"
		}
		_, err = fmt.Fprintf(w, "%s %s\n", what, st.File)
		return err
	}
}

func (in Installer) uninstall(w io.Writer) error {
	changed, err := in.Uninstall()
	for _, file := range changed {
		fmt.Fprintf(w, "restored or removed %s\n", file)
	}
	if err == nil && len(changed) == 0 {
		fmt.Fprintln(w, "nothing was installed")
	}
	return err
}
