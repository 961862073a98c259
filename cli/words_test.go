package cli

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conduit.io/conduit/mesh"

	"k8s.io/client-go/tools/clientcmd"
)

// words: what people are told of what cannot be, and of what is next.
func (s *stage) words(t *testing.T) {
	_, errOut := s.conduit(ExitError, "upgrade", "--apply", "--set", "trustDomain=other.example")
	tells(t, "another trust domain", errOut, "the trust domain is cluster.local, and cannot become other.example", "next:  leave it out")
	s.conduit(ExitOK, "upgrade", "--set", "trustDomain=cluster.local") // which it is
	_, errOut = s.conduit(ExitError, "upgrade", "--set", "agent.foo=1")
	tells(t, "a value that is not there", errOut, "values: agent: additional properties 'foo' not allowed", "next:  conduit install --defaults")
	out, _ := s.conduit(ExitOK, "install", "--defaults")
	tells(t, "the chart's values", out, "trustDomain: cluster.local", "drainSeconds: 60", "# The trust domain of all identities")
	out, _ = s.conduit(ExitOK, "version")
	tells(t, "version", out, "conduit "+mesh.Version(), "cluster "+mesh.Version())
	if out, _ = s.conduit(ExitOK, "version", "--client"); strings.Contains(out, "cluster") {
		t.Errorf("version --client: %s", out)
	}
	_, errOut = s.conduit(ExitError, "mesh", "ns/shop", "--apply", "--as", "nobody")
	tells(t, "somebody without rights", errOut, "cause: your account may not do this", "next:  kubectl auth whoami")
	if strings.Contains(errOut, "installing") {
		t.Errorf("to label a namespace is not to install: %s", errOut)
	}

	// A certificate that the kubeconfig does not trust is not a server that does not answer.
	cfg, err := clientcmd.LoadFromFile(s.kubeconfig)
	must(t, cfg, err)
	cfg.Clusters["test"].InsecureSkipTLSVerify = false
	distrust := &stage{t: t, kubeconfig: filepath.Join(t.TempDir(), "distrust")}
	if err := clientcmd.WriteToFile(*cfg, distrust.kubeconfig); err != nil {
		t.Fatal(err)
	}
	_, errOut = distrust.conduit(ExitError, "uninstall", "--apply")
	tells(t, "an untrusted API server", errOut, "cause: the API server's certificate is not one that the kubeconfig trusts", "next:  kubectl config view --minify")
}

// interrupted: who presses Ctrl-C is told what is done, and how to go on.
func (s *stage) interrupted(t *testing.T) {
	s.podOn("n1", "shop", "waits", nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out bytes.Buffer
	told := &interrupter{told: &out, cancel: cancel}
	env := Env{In: strings.NewReader(""), Out: &out, Err: told, Getenv: os.Getenv}
	if code := Run(ctx, env, []string{"mesh", "ns/shop", "--apply", "--wait", "--kubeconfig", s.kubeconfig}); code != ExitError {
		t.Errorf("exit code %d", code)
	}
	tells(t, "Ctrl-C", out.String(), "× conduit mesh was interrupted", "cause: what it has done stays done", "next:  the same command again")
	s.conduit(ExitOK, "unmesh", "ns/shop", "--apply")
	s.remove("shop", "waits")
}

// interrupter presses Ctrl-C when a command waits.
type interrupter struct {
	told   *bytes.Buffer
	cancel func()
}

func (i *interrupter) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("pods enrolled")) {
		i.cancel()
	}
	return i.told.Write(p)
}
