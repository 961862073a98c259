package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"conduit.io/conduit/cli/output"
	"conduit.io/conduit/deploy"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// explain says in the words of the user what the API server refuses, or why it was not reached.
func explain(what string, err error) error {
	switch {
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return &output.Problem{What: what, Err: err, Cause: "the namespace is being removed, by an uninstall probably",
			Next: "kubectl wait --for=delete namespace/" + deploy.Namespace + ", then the same command again"}
	case apierrors.IsForbidden(err):
		return &output.Problem{What: what, Err: err, Cause: "your account may not do this; an administrator of the cluster may, or can let you", Next: "kubectl auth whoami"}
	case apierrors.IsUnauthorized(err):
		return &output.Problem{What: what, Err: err, Cause: "the cluster does not know who you are", Next: "kubectl auth whoami"}
	case apierrors.IsConflict(err):
		return &output.Problem{What: what, Err: err, Cause: "somebody else has set these fields to other values", Next: "the same command with --force-conflicts, to take them over"}
	case apierrors.IsNotFound(err):
		return &output.Problem{What: what, Err: err, Cause: "the name is misspelt, or it is on another cluster, or in another namespace", Next: looking(err)}
	case apierrors.IsInvalid(err), apierrors.ReasonForError(err) != metav1.StatusReasonUnknown:
		return fmt.Errorf("%s: %w", what, err)
	case untrusted(err):
		return &output.Problem{What: what, Err: err, Cause: "the API server's certificate is not one that the kubeconfig trusts, or not for this address", Next: "kubectl config view --minify"}
	}
	return &output.Problem{What: what, Err: err, Cause: "the cluster's API server did not answer", Next: "kubectl version"}
}

// looking is the command that lists what there is in the place of what was not found.
func looking(err error) string {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Details == nil || status.Status().Details.Kind == "" {
		return "kubectl config current-context"
	}
	kind := status.Status().Details.Kind
	if kind == "pods" {
		kind += " -A"
	}
	return "kubectl get " + kind
}

// untrusted reports whether the API server was reached, and its certificate was refused.
func untrusted(err error) bool {
	var chain *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	return errors.As(err, &chain) || errors.As(err, &authority) || errors.As(err, &host) || errors.As(err, &invalid)
}
