// Package cli is the conduit command. Nouns read, verbs write; there is one file per command.
//
// Exit codes: 0 is success, 1 an error or a failed check, 64 a command line that cannot be understood (EX_USAGE of
// sysexits.h).
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"conduit.io/conduit/cli/output"
	"conduit.io/conduit/cli/preflight"
	"conduit.io/conduit/mesh"

	"github.com/spf13/cobra"
)

// The exit codes.
const (
	ExitOK    = 0
	ExitError = 1
	ExitUsage = 64
)

// Env is everything that the commands use of the world around them, so that tests run them in-process.
type Env struct {
	In     io.Reader
	Out    io.Writer
	Err    io.Writer
	Getenv func(string) string
	System func() preflight.System
}

// OSEnv is the Env of this process.
func OSEnv() Env {
	return Env{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, System: preflight.Real}
}

// errSilent ends a command with ExitError after it has said everything itself.
var errSilent = errors.New("already reported")

// usageError is a command line that cannot be understood.
type usageError struct{ error }

// Run runs one command line and returns its exit code. A panic is reported, after deferred clean-up has run.
func Run(ctx context.Context, env Env, args []string) (code int) {
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(env.Err, "× internal error: %v\n%s", p, debug.Stack())
			code = ExitError
		}
	}()
	root, started := newRoot(env)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	style := output.StyleFor(env.Err, env.Getenv)
	var usage usageError
	switch {
	case err == nil:
		return ExitOK
	case errors.Is(err, errSilent):
		return ExitError
	case errors.As(err, &usage), !*started: // before a command starts, cobra only reads the command line
		output.Report(env.Err, style, &output.Problem{What: err.Error(), Next: cmd.CommandPath() + " --help"})
		return ExitUsage
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		err = interrupted(cmd)
	}
	output.Report(env.Err, style, err)
	return ExitError
}

// interrupted is what became of a command that somebody has ended.
func interrupted(cmd *cobra.Command) error {
	p := &output.Problem{What: cmd.CommandPath() + " was interrupted", Cause: "what it has done stays done", Next: "the same command again"}
	switch cmd.Name() {
	case "install", "upgrade":
		p.Next += ", which does what is missing; conduit check says what is there"
	case "uninstall":
		p.Next += ", which goes on from there; or conduit upgrade --apply --wait, which gives it up"
	}
	return p
}

// newRoot makes the command tree. *started says whether a command has begun to run.
func newRoot(env Env) (root *cobra.Command, started *bool) {
	started = new(bool)
	root = &cobra.Command{
		Use:   "conduit",
		Short: "A service mesh without sidecars",
		Long: `Conduit steers the sockets of meshed pods into one proxy per node, with eBPF: mutual TLS between
workloads, balancing and metrics for HTTP/1.1, HTTP/2, gRPC and TCP, and nothing injected into a pod.

See it work on this machine:  sudo conduit demo
Have it on your cluster:      conduit install --apply --wait && conduit mesh ns/NAME --apply`,
		Version:           mesh.Version(),
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRun:  func(*cobra.Command, []string) { *started = true },
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.SetIn(env.In)
	root.SetOut(env.Out)
	root.SetErr(env.Err)
	root.AddCommand(newCheck(env), newCompletion(env), newDemo(env), newDemoApp(env), newInstall(env), newMesh(env), newStat(env),
		newUninstall(env), newUnmesh(env), newUpgrade(env), newVersion(env))
	root.InitDefaultHelpCmd()
	if help, _, err := root.Find([]string{"help"}); err == nil {
		help.Args = func(_ *cobra.Command, topic []string) error { // else an unknown topic were a success
			_, _, err := root.Find(topic)
			return err
		}
	}
	return root, started
}

// format is the value of -o.
type format string

const (
	formatTable format = "table"
	formatWide  format = "wide"
	formatJSON  format = "json"
)

// String, Set and Type make *format a pflag.Value.
func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "format" }
func (f *format) Set(v string) error {
	switch format(v) {
	case formatTable, formatWide, formatJSON:
		*f = format(v)
		return nil
	}
	return errors.New("want table, wide or json")
}

// complete has shells offer values for a flag.
func complete(cmd *cobra.Command, flag string, values ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)) // fails for an unknown flag
}

func addFormat(cmd *cobra.Command, f *format) {
	*f = formatTable
	cmd.Flags().VarP(f, "output", "o", "table, wide or json")
	complete(cmd, "output", string(formatTable), string(formatWide), string(formatJSON))
}
