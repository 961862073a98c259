package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/deploy"
	"conduit.io/conduit/identity"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// certificates: check says what becomes of issuer, roots and leaves, before it is too late.
func (s *stage) certificates(t *testing.T) {
	ctx := t.Context()
	root := func(domain string, begin, end time.Duration) (cert, key []byte) {
		t.Helper()
		cert, key, err := identity.NewRoot(domain, time.Now().Add(begin), end-begin)
		if err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	const day = 24 * time.Hour
	good, goodKey := root("cluster.local", -day, 300*day)
	other, otherKey := root("cluster.local", -day, 300*day)
	old, _ := root("cluster.local", -20*day, -day)
	late, lateKey := root("cluster.local", -300*day, 10*day)
	short, shortKey := root("cluster.local", -time.Hour, 5*day)
	foreign, foreignKey := root("example.org", -day, 300*day)
	secrets, maps := s.client.CoreV1().Secrets(deploy.Namespace), s.client.CoreV1().ConfigMaps(deploy.Namespace)
	secret, err := secrets.Get(ctx, "conduit-issuer", metav1.GetOptions{}) // of the step "older"
	must(t, secret, err)
	before, err := maps.Get(ctx, "conduit-trust-roots", metav1.GetOptions{})
	must(t, before, err)
	for _, tt := range []struct {
		name              string
		cert, key, bundle []byte
		says              []string
	}{
		{"all is well", good, goodKey, good, []string{"√ the trust bundle is published and valid (until ", "√ the issuer is valid (until "}},
		{"a key of another certificate", good, otherKey, good, []string{"× the issuer is valid", "the key does not belong to the certificate"}},
		{"no key", good, []byte("oops"), good, []string{"× the issuer is valid", "cannot be used"}},
		{"of another trust domain", foreign, foreignKey, foreign, []string{"× the issuer is valid", `"example.org"`}},
		{"nobody knows its root", other, otherKey, good, []string{"‼ the issuer is valid", "not in the trust bundle"}},
		{"it ends soon", late, lateKey, late, []string{"‼ the trust bundle is published and valid", "‼ the issuer is valid", "it expires at "}},
		{"of a short life, and young", short, shortKey, short, []string{"√ the trust bundle is published and valid (until ", "√ the issuer is valid (until "}},
		{"an old root is left", good, goodKey, append(bytes.Clone(good), old...), []string{"‼ the trust bundle is published and valid", "1 of its 2 roots have expired"}},
		{"none but old roots", good, goodKey, old, []string{"× the trust bundle is published and valid", "all of its 1 roots have expired"}},
	} {
		secret.Data = map[string][]byte{"tls.crt": tt.cert, "tls.key": tt.key}
		secret, err = secrets.Update(ctx, secret, metav1.UpdateOptions{})
		must(t, secret, err)
		cm := before.DeepCopy()
		cm.ResourceVersion, cm.Data = "", map[string]string{"ca.crt": string(tt.bundle)}
		cm, err = maps.Update(ctx, cm, metav1.UpdateOptions{})
		must(t, cm, err)
		out, _ := s.conduit(ExitError, "check") // there is more that is wrong
		for _, want := range tt.says {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in\n%s", tt.name, want, out)
			}
		}
		if strings.Contains(out, "PRIVATE KEY") {
			t.Errorf("%s: a key is shown", tt.name)
		}
	}
	s.podOn("n2", deploy.Namespace, "renews", map[string]string{"app.kubernetes.io/name": "conduit", "app.kubernetes.io/component": "agent"},
		corev1.PodCondition{Type: kube.ConditionWired, Status: corev1.ConditionTrue, Reason: "CertificatesNotRenewed", Message: "the first ends soon"})
	out, _ := s.conduit(ExitError, "check")
	for _, want := range []string{"× every agent renews its node's certificates", "n2: CertificatesNotRenewed: the first ends soon"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if err := s.client.CoreV1().Pods(deploy.Namespace).Delete(ctx, "renews", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Error(err)
	}
}
