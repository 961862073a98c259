package cli

import (
	"encoding/json"
	"fmt"
	"io"
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
			text := fmt.Sprintf("conduit %s\n", mesh.Version())
			if f == formatWide {
				text += fmt.Sprintf("built with %s for %s\n", runtime.Version(), platform)
			}
			_, err := io.WriteString(env.Out, text)
			return err
		},
	}
	addFormat(cmd, &f)
	return cmd
}
