package cli

import (
	"encoding/json"
	"fmt"
	"runtime"

	"conduit.io/conduit/mesh"

	"github.com/spf13/cobra"
)

func newVersion(env Env) *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			platform := runtime.GOOS + "/" + runtime.GOARCH
			if f == formatJSON {
				return json.NewEncoder(env.Out).Encode(map[string]string{
					"version": mesh.Version(), "go": runtime.Version(), "platform": platform})
			}
			fmt.Fprintf(env.Out, "conduit %s\n", mesh.Version())
			if f == formatWide {
				fmt.Fprintf(env.Out, "built with %s for %s\n", runtime.Version(), platform)
			}
			return nil
		},
	}
	addFormat(cmd, &f)
	return cmd
}
