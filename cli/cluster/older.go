package cluster

import (
	"context"
	"slices"

	"conduit.io/conduit/cli/output"
	"conduit.io/conduit/deploy"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// applied reports whether a command of Conduit has applied o, and not let go of it: versions before the mark left nothing else on their
// objects.
func applied(o *unstructured.Unstructured) bool {
	return o.GetLabels()["app.kubernetes.io/managed-by"] == "conduit" && slices.ContainsFunc(o.GetManagedFields(), func(f metav1.ManagedFieldsEntry) bool {
		return f.Manager == FieldManager && f.Operation == metav1.ManagedFieldsOperationApply
	})
}

// Marked is an error if there is an installation of a version whose objects do not bear the mark: those could not be told from others.
func (c *Cluster) Marked(ctx context.Context) error {
	record, err := c.Client.CoreV1().ConfigMaps(deploy.Namespace).Get(ctx, deploy.RecordName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return explain("read ConfigMap "+deploy.RecordName, err)
	case deploy.Ours(record):
		return nil
	}
	return &output.Problem{What: "the installation is of an older version", Cause: "its objects do not say that they are Conduit's, as those of this version do; nothing was removed",
		Next: "conduit upgrade --apply --wait, then conduit uninstall --apply; or conduit uninstall of that version"}
}
