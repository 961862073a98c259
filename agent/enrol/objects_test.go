package enrol

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"conduit.io/conduit/agent/store"
	"conduit.io/conduit/mesh"
)

// What an enrolled pod does with plaintext, and without a proxy, is in the log when it changes, and only then.
func TestSettingsAreTold(t *testing.T) {
	var b bytes.Buffer
	m := New(Config{Log: slog.New(slog.NewTextHandler(&b, nil))})
	w := mesh.Workload{Namespace: "shop", Name: "web", Meshed: true, Mode: mesh.Permissive, Down: mesh.DownOpen}
	p := &pod{workload: w, enrolled: true, attachments: map[store.Key]*store.Attachment{{}: {Namespace: "shop", Pod: "web"}}}
	m.redescribe(p, w)
	if b.Len() > 0 {
		t.Errorf("the same: %s", b.String())
	}
	w.Mode, w.Down = mesh.Strict, mesh.DownClosed
	m.redescribe(p, w)
	for _, want := range []string{"level=INFO", "pod=shop/web", "mode=STRICT", "mode_before=PERMISSIVE", "agent_down=Closed", "agent_down_before=Open"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s in %s", want, b.String())
		}
	}
	if p.workload.Mode != mesh.Strict {
		t.Errorf("%+v", p.workload)
	}
}
