package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"conduit.io/conduit/cli/output"
	"conduit.io/conduit/cli/preflight"

	"github.com/spf13/cobra"
)

func newCheck(env Env) *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check whether this machine can run a Conduit node",
		Long: `Check whether this machine can run a Conduit node: privileges, kernel, mounted file systems, and the
programs themselves. Nothing is changed. Exit status 1 means that a check failed; warnings do not fail.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			r := preflight.Run(env.System())
			if f == formatJSON {
				enc := json.NewEncoder(env.Out)
				enc.SetIndent("", "  ")
				if err := enc.Encode(r); err != nil {
					return err
				}
			} else {
				var b bytes.Buffer
				writeReport(&b, output.StyleFor(env.Out, env.Getenv), r)
				if _, err := b.WriteTo(env.Out); err != nil {
					return err
				}
			}
			if !r.Success {
				return errSilent
			}
			return nil
		},
	}
	addFormat(cmd, &f)
	return cmd
}

func writeReport(w io.Writer, s output.Style, r preflight.Report) {
	for _, category := range r.Categories {
		fmt.Fprintln(w, s.Bold(category.Name))
		for _, c := range category.Checks {
			switch c.Result {
			case preflight.Success:
				fmt.Fprintf(w, "  %s %s\n", s.Good("√"), c.Description)
				continue
			case preflight.Warning:
				fmt.Fprintf(w, "  %s %s\n", s.Warn("‼"), c.Description)
			default:
				fmt.Fprintf(w, "  %s %s\n", s.Bad("×"), c.Description)
			}
			fmt.Fprintf(w, "      %s\n", c.Error)
			fmt.Fprintf(w, "      next: %s\n", c.Hint)
		}
		fmt.Fprintln(w)
	}
	if r.Success {
		fmt.Fprintf(w, "Status check results are %s\n", s.Good("√"))
	} else {
		fmt.Fprintf(w, "Status check results are %s\n", s.Bad("×"))
	}
}
