package cli

import (
	"conduit.io/conduit/cli/demoapp"

	"github.com/spf13/cobra"
)

// newDemoApp is one process of the demo's application; `conduit demo` starts it inside its pods.
func newDemoApp(env Env) *cobra.Command {
	return &cobra.Command{
		Use:    "demo-app CONFIG",
		Short:  "Run one process of the demo's application",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return demoapp.Main(cmd.Context(), args[0], env.In, env.Out, env.Err)
		},
	}
}
