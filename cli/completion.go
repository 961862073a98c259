package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newCompletion(env Env) *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print shell completion code",
		Example: `  source <(conduit completion bash)
  conduit completion zsh > "${fpath[1]}/_conduit"
  conduit completion fish > ~/.config/fish/completions/conduit.fish`,
		Args:                  cobra.ExactArgs(1),
		ValidArgs:             []string{"bash", "zsh", "fish"},
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(env.Out, true)
			case "zsh":
				return root.GenZshCompletion(env.Out)
			case "fish":
				return root.GenFishCompletion(env.Out, true)
			}
			return usageError{fmt.Errorf("no completion for shell %q: want bash, zsh or fish", args[0])}
		},
	}
}
