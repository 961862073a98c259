package preflight

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"time"

	"conduit.io/conduit/api/v1alpha1"
	"conduit.io/conduit/cli/cluster"
	"conduit.io/conduit/deploy"
	"conduit.io/conduit/mesh"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// soon is when an end of life is worth a warning.
const soon = 14 * 24 * time.Hour

// namedAtMost bounds the objects that a check names.
const namedAtMost = 5

// Installed finds out whether the Conduit of a cluster does its work.
func Installed(ctx context.Context, c *cluster.Cluster) Report {
	api, ok := reach(c)
	if !ok {
		return report([]Category{api})
	}
	if check, ok := installed(ctx, c); !ok {
		none := []Category{api, {"conduit-control-plane", []Check{check}}}
		if pods := aboutPods(ctx, c); slices.ContainsFunc(pods.Checks, func(c Check) bool { return c.mend != nil }) { // left by kubectl delete
			none = append(none, pods)
		}
		return report(none)
	}
	return report([]Category{api,
		{"conduit-control-plane", slices.Concat([]Check{definitions(c), controller(ctx, c), installedVersion(ctx, c)}, complete(ctx, c), []Check{admitted(ctx, c)})},
		{"conduit-identity", []Check{trustRoots(ctx, c), issuer(ctx, c)}},
		{"conduit-agents", []Check{agents(ctx, c)}},
		onNodes(ctx, c),
		aboutPods(ctx, c),
	})
}

func definitions(c *cluster.Cluster) Check {
	const d = "Conduit's resources are defined"
	if _, err := c.Client.Discovery().ServerResourcesForGroupVersion(v1alpha1.Group + "/" + v1alpha1.Version); err != nil {
		return failed(d, err.Error(), "conduit install --apply")
	}
	return passed(d)
}

func controller(ctx context.Context, c *cluster.Cluster) Check {
	const d = "the controller is ready"
	o, err := c.Client.AppsV1().Deployments(deploy.Namespace).Get(ctx, deploy.Controller, metav1.GetOptions{})
	if err != nil {
		return unseen(d, err, "conduit install --apply --wait")
	}
	s := o.Status
	n := fmt.Sprintf("%d of %d replicas", s.AvailableReplicas, s.Replicas)
	switch {
	case s.AvailableReplicas == 0:
		return failed(d, firstOf(trouble(ctx, c, "controller"), n), describe("controller"))
	case s.AvailableReplicas < s.Replicas || s.UpdatedReplicas < s.Replicas:
		return warned(d, firstOf(trouble(ctx, c, "controller"), n), describe("controller"))
	}
	return passed(d + " (" + n + ")")
}

func describe(component string) string {
	return "kubectl -n " + deploy.Namespace + " describe pods -l app.kubernetes.io/component=" + component
}

// unseen is a check that could not be made. That its user has not the right to look is nobody's fault, and fails nothing.
func unseen(d string, err error, hint string) Check {
	if apierrors.IsForbidden(err) {
		return warned(d, "you may not look: "+err.Error(), "conduit check --context NAME, as an administrator of the cluster")
	}
	return failed(d, err.Error(), hint)
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// trouble is what the first pod of a component that is not ready says.
func trouble(ctx context.Context, c *cluster.Cluster, component string) string {
	pods, err := c.Client.CoreV1().Pods(deploy.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=conduit,app.kubernetes.io/component=" + component})
	if err != nil {
		return err.Error()
	}
	for i := range pods.Items {
		if why := cluster.Trouble(&pods.Items[i]); why != "" {
			return why
		}
	}
	return ""
}

func installedVersion(ctx context.Context, c *cluster.Cluster) Check {
	const d = "this program and the installation are of one version"
	r, there, err := c.Record(ctx)
	switch {
	case err != nil:
		return unseen(d, err, "conduit upgrade --apply")
	case !there:
		return warned(d, "there is no record of the installation: Helm or kubectl has made it", "helm -n "+deploy.Namespace+" list")
	case r.Version != mesh.Version():
		return warned(d, "this is "+mesh.Version()+", that is "+r.Version, "conduit upgrade --apply --wait")
	}
	return passed(d + " (" + r.Version + ")")
}

func trustRoots(ctx context.Context, c *cluster.Cluster) Check {
	const d = "the trust bundle is published and valid"
	cm, err := c.Client.CoreV1().ConfigMaps(deploy.Namespace).Get(ctx, "conduit-trust-roots", metav1.GetOptions{})
	if err != nil {
		return unseen(d, err, "kubectl -n "+deploy.Namespace+" logs deployment/"+deploy.Controller)
	}
	return validity(d, []byte(cm.Data["ca.crt"]), "see docs/identity.md, Rotation")
}

// issuer needs the right to read the Secret, which few have.
func issuer(ctx context.Context, c *cluster.Cluster) Check {
	const d = "the issuer is valid"
	s, err := c.Client.CoreV1().Secrets(deploy.Namespace).Get(ctx, "conduit-issuer", metav1.GetOptions{})
	switch {
	case err != nil:
		return unseen(d, err, "see docs/identity.md, The issuer")
	}
	return validity(d, s.Data[corev1.TLSCertKey], "put a new issuer into the Secret conduit-issuer: docs/identity.md, Rotation")
}

// validity is about the first end of the certificates.
func validity(d string, data []byte, hint string) Check {
	var end time.Time
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return failed(d, err.Error(), hint)
		}
		if end.IsZero() || cert.NotAfter.Before(end) {
			end = cert.NotAfter
		}
	}
	left := time.Until(end)
	switch {
	case end.IsZero():
		return failed(d, "there is no certificate", hint)
	case left <= 0:
		return failed(d, "it has expired at "+end.UTC().Format(time.RFC3339), hint)
	case left < soon:
		return warned(d, "it expires at "+end.UTC().Format(time.RFC3339), hint)
	}
	return passed(d + " (until " + end.UTC().Format(time.DateOnly) + ")")
}

func agents(ctx context.Context, c *cluster.Cluster) Check {
	const d = "every node has an agent that is ready"
	o, err := c.Client.AppsV1().DaemonSets(deploy.Namespace).Get(ctx, deploy.Agent, metav1.GetOptions{})
	if err != nil {
		return unseen(d, err, "conduit install --apply --wait")
	}
	s := o.Status
	n := fmt.Sprintf("%d of %d", s.NumberAvailable, s.DesiredNumberScheduled)
	if s.NumberAvailable < s.DesiredNumberScheduled || s.DesiredNumberScheduled == 0 {
		return failed(d, firstOf(trouble(ctx, c, "agent"), n), describe("agent"))
	}
	return passed(d + " (" + n + ")")
}
