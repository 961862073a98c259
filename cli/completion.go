package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// bashAlone replaces the one function of cobra's script that calls the bash-completion package where that is not installed.
const bashAlone = `
if ! declare -F _get_comp_words_by_ref >/dev/null; then
    __conduit_init_completion() {
        COMPREPLY=()
        words=("${COMP_WORDS[@]}") cword=$COMP_CWORD cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
    }
fi
`

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
				if err := root.GenBashCompletionV2(env.Out, true); err != nil {
					return err
				}
				_, err := io.WriteString(env.Out, bashAlone)
				return err
			case "zsh":
				return root.GenZshCompletion(env.Out)
			case "fish":
				return root.GenFishCompletion(env.Out, true)
			}
			return usageError{fmt.Errorf("no completion for shell %q: want bash, zsh or fish", args[0])}
		},
	}
}
