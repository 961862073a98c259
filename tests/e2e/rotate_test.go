package e2e

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"

	"conduit.io/conduit/tests/cluster/kubetest"
)

// authority is somebody's own, as cert-manager keeps one: an RSA root, of which issuers are made.
type authority struct {
	w    *world
	root *x509.Certificate
	key  crypto.Signer
}

// certified makes a certificate of an authority that lives until end, under parent or, nil, under itself.
func (w *world) certified(name string, end time.Time, parent *authority) (*x509.Certificate, *rsa.PrivateKey) {
	w.t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		w.t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: end}
	above, signer := c, crypto.Signer(key)
	if parent != nil {
		above, signer = parent.root, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, above, key.Public(), signer)
	if err == nil {
		c, err = x509.ParseCertificate(der)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return c, key
}

func (w *world) newAuthority() *authority {
	a := &authority{w: w}
	root, key := w.certified("e2e root", time.Now().Add(365*24*time.Hour), nil)
	a.root, a.key = root, key
	return a
}

func asPEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func (a *authority) roots() string { return string(asPEM("CERTIFICATE", a.root.Raw)) }

// issue puts an issuer that lives until end into the Secret.
func (a *authority) issue(end time.Time) {
	a.w.t.Helper()
	cert, key := a.w.certified("e2e issuer", end, a)
	patch, err := json.Marshal(object{"data": map[string][]byte{"tls.crt": asPEM("CERTIFICATE", cert.Raw), "ca.crt": []byte(a.roots()),
		"tls.key": asPEM("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))}})
	if err != nil {
		a.w.t.Fatal(err)
	}
	a.w.meshed.Kubectl("-n", "conduit", "patch", "secret", "conduit-issuer", "--type=merge", "-p", string(patch))
}

// controllers waits until a metric of every replica of the controller is as it should be.
func (w *world) controllers(what, metric string, want float64) {
	w.t.Helper()
	w.view.look()
	w.meshed.Eventually(what, func() error {
		for _, replica := range w.view.replicas {
			said, err := w.meshed.Node(1).Run(w.meshed.Context(), "curl", "-sSf", "http://"+replica+":8086/metrics")
			if err != nil {
				return err
			}
			if got, err := strconv.ParseFloat(valueOf(said, metric), 64); err != nil || got != want {
				return fmt.Errorf("%s of %s is %v, %w", metric, replica, got, err)
			}
		}
		return nil
	})
}

// valueOf is the value of a metric without labels.
func valueOf(metrics, name string) string {
	for line := range strings.Lines(metrics) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// leaves waits until the certificates of every node end, the first of them, when they should.
func (w *world) leaves(what string, good func(end time.Time) bool) {
	w.t.Helper()
	w.meshed.Eventually(what, func() error {
		for node := 1; node <= w.meshed.Nodes(); node++ {
			said, err := w.meshed.Node(node).Run(w.meshed.Context(), "curl", "-sSf", "http://127.0.0.1:4191/metrics")
			if err != nil {
				return err
			}
			seconds, err := strconv.ParseFloat(valueOf(said, "conduit_certificate_expiry_seconds"), 64)
			if end := time.Unix(int64(seconds), 0); err != nil || !good(end) {
				return fmt.Errorf("the certificates of node %d end at %v, %w", node, end, err)
			}
		}
		return nil
	})
}

// handIn begins to replace the issuer, the root and the certificates of everybody, with replicas that all sign: a new root is known for two
// minutes before anything is signed under it. A replica that starts meanwhile has to wait.
func (w *world) handIn(a *authority) {
	a.issue(time.Now().Add(90 * 24 * time.Hour))
	w.controllers("the new root is trusted beside the old one", "conduit_trust_bundle_roots", 2)
	w.view.trust(w.meshed.Kubectl("-n", "conduit", "get", "configmap", "conduit-trust-roots", "-o", `jsonpath={.data.ca\.crt}`))
	w.load.goOn("while the new root is made known")
}

// shortLife is that of an issuer whose certificates have to be renewed, in proxies that work, while the test waits.
const shortLife = 75 * time.Second

// rotate goes on where handIn was: the new issuer signs; certificates of a short life are renewed in place; the old root is taken away.
func (w *world) rotate(a *authority) {
	w.controllers("the new issuer signs", "conduit_issuer_pending", 0)
	end := time.Now().Add(shortLife)
	a.issue(end)                            // its root is known: it signs at once
	w.signalAgents("kill", "-s", "SIGKILL") // others ask for certificates anew
	w.leaves("certificates are under the issuer that ends soon", func(at time.Time) bool { return !at.After(end) })
	a.issue(time.Now().Add(90 * 24 * time.Hour))
	w.leaves("certificates have been renewed, under an issuer that lasts", func(at time.Time) bool { return at.After(end) })
	if left := time.Until(end); left < 0 {
		w.t.Errorf("they were renewed %v after their end", -left)
	}
	w.load.goOn("with certificates of the new root")
	patch, err := json.Marshal(object{"data": object{"ca.crt": a.roots()}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.meshed.Kubectl("-n", "conduit", "patch", "configmap", "conduit-trust-roots", "--type=merge", "-p", string(patch))
	w.controllers("the old root is trusted no more", "conduit_trust_bundle_roots", 1)
	w.view.trust(a.roots())
	w.load.goOn("without the old root")
	w.meshed.Apply(kubetest.LoadPod("after-rotation", 1, nil)) // and what is new has a certificate
	w.meshed.Kubectl("wait", "--for=condition=conduit.io/Enrolled", "--timeout=60s", "pod/after-rotation")
	w.encrypted(w.t)
	w.well()
}
