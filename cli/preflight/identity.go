package preflight

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/cli/cluster"
	"conduit.io/conduit/deploy"
	"conduit.io/conduit/identity"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// soon is when an end of life is worth a warning, unless it was a short life, of which there is more than a quarter left.
const soon = 14 * 24 * time.Hour

const seeRotation = "docs/identity.md, Rotation"

// aboutIdentity is about what certificates are made with, and trusted by.
func aboutIdentity(ctx context.Context, c *cluster.Cluster) Category {
	check, roots := trustRoots(ctx, c)
	return Category{"conduit-identity", []Check{check, issuer(ctx, c, roots)}}
}

// trustRoots is about the trust bundle, and returns what is in it.
func trustRoots(ctx context.Context, c *cluster.Cluster) (Check, []*x509.Certificate) {
	const d = "the trust bundle is published and valid"
	cm, err := c.Client.CoreV1().ConfigMaps(deploy.Namespace).Get(ctx, "conduit-trust-roots", metav1.GetOptions{})
	if err != nil {
		return unseen(d, err, "kubectl -n "+deploy.Namespace+" logs deployment/"+deploy.Controller), nil
	}
	roots, err := certificates([]byte(cm.Data["ca.crt"]))
	if err != nil {
		return failed(d, err.Error(), "see "+seeRotation), nil
	}
	ended := 0
	var first *x509.Certificate // of those that are valid
	for _, r := range roots {
		switch {
		case !time.Now().Before(r.NotAfter):
			ended++
		case first == nil || r.NotAfter.Before(first.NotAfter):
			first = r
		}
	}
	switch {
	case first == nil:
		return failed(d, fmt.Sprintf("all of its %d roots have expired", len(roots)), "see "+seeRotation), roots
	case ended > 0:
		return warned(d, fmt.Sprintf("%d of its %d roots have expired", ended, len(roots)), "see "+seeRotation), roots
	}
	return ending(d, first.NotBefore, first.NotAfter, "see "+seeRotation), roots
}

// issuer needs the right to read the Secret, which few have. It is tried as the controller tries it.
func issuer(ctx context.Context, c *cluster.Cluster, roots []*x509.Certificate) Check {
	const d, next = "the issuer is valid", "put a new issuer into the Secret conduit-issuer: " + seeRotation
	s, err := c.Client.CoreV1().Secrets(deploy.Namespace).Get(ctx, "conduit-issuer", metav1.GetOptions{})
	if err != nil {
		return unseen(d, err, "see docs/identity.md, The issuer")
	}
	domain, err := trustDomain(ctx, c)
	if err != nil {
		return unseen(d, err, "conduit upgrade --apply --wait")
	}
	signer, err := identity.NewSigner(identity.SignerConfig{TrustDomain: domain, Chain: s.Data[corev1.TLSCertKey], Key: s.Data[corev1.TLSPrivateKeyKey], Roots: s.Data["ca.crt"]})
	if err != nil {
		return failed(d, "what is in the Secret cannot be used; an issuer of before goes on as long as the controller runs, and lives: "+err.Error(), next)
	}
	if len(roots) > 0 && !slices.ContainsFunc(roots, signer.Root().Equal) {
		return warned(d, "its root is not in the trust bundle, and nothing is signed with it", "kubectl -n "+deploy.Namespace+" logs deployment/"+deploy.Controller)
	}
	return ending(d, signer.Certificate().NotBefore, signer.NotAfter(), next)
}

// trustDomain is that of the controller as it runs.
func trustDomain(ctx context.Context, c *cluster.Cluster) (string, error) {
	o, err := c.Client.AppsV1().Deployments(deploy.Namespace).Get(ctx, deploy.Controller, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	for _, container := range o.Spec.Template.Spec.Containers {
		for _, arg := range container.Args {
			if domain, ok := strings.CutPrefix(arg, "--trust-domain="); ok {
				return domain, nil
			}
		}
	}
	return "", fmt.Errorf("Deployment %s has no --trust-domain", deploy.Controller)
}

// certificates reads PEM; none is an error.
func certificates(data []byte) (all []*x509.Certificate, err error) {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, cert)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("there is no certificate")
	}
	return all, nil
}

// ending is about the end of a life that is not over.
func ending(d string, begin, end time.Time, hint string) Check {
	if left := time.Until(end); left < soon && left < end.Sub(begin)/4 {
		return warned(d, "it expires at "+end.UTC().Format(time.RFC3339), hint)
	}
	return passed(d + " (until " + end.UTC().Format(time.DateOnly) + ")")
}

// overdue is what an agent says is wrong although its node is wired: certificates that are not renewed; empty: nothing.
func overdue(pods []*corev1.Pod) string {
	for _, p := range pods {
		for _, cond := range p.Status.Conditions {
			if cond.Type == kube.ConditionWired && cond.Status == corev1.ConditionTrue && cond.Reason != kube.ReasonWired && cond.Reason != "" {
				return cond.Reason + ": " + cond.Message
			}
		}
	}
	return ""
}
