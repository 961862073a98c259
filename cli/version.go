package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"time"

	"conduit.io/conduit/cli/cluster"
	"conduit.io/conduit/mesh"

	"github.com/spf13/cobra"
)

// askFor is how long a cluster may take to say its version.
const askFor = 5 * time.Second

func newVersion(env Env) *cobra.Command {
	var f format
	var flags cluster.Flags
	var alone bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program, and of the cluster's installation",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			installed := ""
			if !alone && (flags.Given() || haveKubeconfig(env)) {
				var err error
				if installed, err = clusterVersion(cmd.Context(), &flags); err != nil {
					fmt.Fprintln(env.Err, "The cluster does not say its version:", err)
				}
			}
			platform := runtime.GOOS + "/" + runtime.GOARCH
			if f == formatJSON {
				said := map[string]string{"version": mesh.Version(), "go": runtime.Version(), "platform": platform}
				if installed != "" {
					said["cluster"] = installed
				}
				return json.NewEncoder(env.Out).Encode(said)
			}
			text := fmt.Sprintf("conduit %s\n", mesh.Version())
			if f == formatWide {
				text += fmt.Sprintf("built with %s for %s\n", runtime.Version(), platform)
			}
			if installed != "" {
				text += "cluster " + installed + "\n"
			}
			_, err := io.WriteString(env.Out, text)
			return err
		},
	}
	cmd.Flags().BoolVar(&alone, "client", false, "of this program alone: ask no cluster")
	flags.Bind(cmd.Flags())
	addFormat(cmd, &f)
	return cmd
}

// clusterVersion is that of the installation, as it was recorded.
func clusterVersion(ctx context.Context, flags *cluster.Flags) (string, error) {
	c, err := flags.Open(io.Discard)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	r, there, err := c.Record(ctx)
	switch {
	case err != nil:
		return "", err
	case there:
		return r.Version, nil
	}
	if controller, err := c.HasController(ctx); err != nil || controller {
		return "unknown: Helm or kubectl has installed it", err
	}
	return "none: Conduit is not installed", nil
}
