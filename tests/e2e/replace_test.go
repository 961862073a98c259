package e2e

import (
	"fmt"
	"strings"

	"conduit.io/conduit/tests/cluster/kubetest"
)

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

// upgrade brings controller, agents and proxies to another version, by the command of that version.
func (w *world) upgrade() {
	const version = "e2e-2"
	dir, err := kubetest.BuildConduit(version)
	if err != nil {
		w.t.Fatal(err)
	}
	w.meshed.ImportConduit(dir, version)
	w.load.goOn("until the upgrade")
	said, err := w.meshed.Conduit(dir, "upgrade", "--apply", "--wait", "--timeout", "150s", "--set", "image.tag="+version)
	if err != nil || !strings.Contains(said, "from version e2e-1 to "+version) {
		w.t.Fatalf("conduit upgrade: %v\n%s", err, said)
	}
	if said, err := w.meshed.Conduit(dir, "check"); err != nil {
		w.t.Errorf("after the upgrade: %v\n%s", err, said)
	}
	w.load.goOn("through what is new")
	if said, err := tryConduit(w.meshed, "check"); err != nil || !strings.Contains(said, "this is e2e-1, that is "+version) {
		w.t.Errorf("the old command, after the upgrade: %v\n%s", err, said)
	}
}
