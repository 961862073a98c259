// Command load measures proxies: `load run` generates requests and times them, `load backend` answers them. Both are
// made to cost little, because they share their machine with what they measure.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

const usage = `usage: load backend [flags]   serve what the proxies are to forward to
       load run [flags]       generate requests, and report their latencies
'load COMMAND --help' lists the flags.
`

const (
	exitOK    = 0
	exitError = 1
	exitUsage = 64
)

// usageError is the caller's mistake.
type usageError struct{ error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := command(ctx, args, stdout)
	var bad usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &bad):
		fmt.Fprintf(stderr, "load: %v\n", err)
		return exitUsage
	}
	fmt.Fprintf(stderr, "load: %v\n", err)
	return exitError
}

func command(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) == 0 {
		return usageError{errors.New("give a command: backend or run (--help tells more)")}
	}
	switch args[0] {
	case "backend":
		return serve(ctx, args[1:], stdout)
	case "run":
		return generate(ctx, args[1:], stdout)
	case "help", "-h", "-help", "--help":
		fmt.Fprint(stdout, usage)
		return nil
	}
	return usageError{fmt.Errorf("unknown command %q: there are backend and run", args[0])}
}

// parse parses the flags of a command; shown reports that help was asked for and given.
func parse(f *flag.FlagSet, args []string, stdout io.Writer, about string) (shown bool, err error) {
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(stdout, "usage: load %s [flags]\n\n", f.Name())
		f.VisitAll(func(o *flag.Flag) {
			kind, text := flag.UnquoteUsage(o)
			if o.DefValue != "" && o.DefValue != "0" && o.DefValue != "false" && o.DefValue != "0s" {
				text += " (default " + o.DefValue + ")"
			}
			fmt.Fprintf(stdout, "  --%-24s %s\n", o.Name+" "+kind, text)
		})
		fmt.Fprint(stdout, about)
		return true, nil
	} else if err != nil {
		return false, usageError{err}
	}
	if f.NArg() > 0 {
		return false, usageError{fmt.Errorf("unexpected argument %q", f.Arg(0))}
	}
	return false, nil
}
