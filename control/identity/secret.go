package identity

import (
	"errors"
	"fmt"
	"time"

	"conduit.io/conduit/api/kube"
	certs "conduit.io/conduit/identity"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// IssuerSecret is the Secret of type kubernetes.io/tls with the key that signs, as cert-manager writes it.
	IssuerSecret = "conduit-issuer"
	// RootsConfigMap has the trust bundle.
	RootsConfigMap = "conduit-trust-roots"

	// madeAnnotation is on a Secret that the controller made: the fingerprint of the tls.crt that it wrote. A Secret whose
	// certificate is another one was handed in, and is never written to.
	madeAnnotation = "conduit.io/made"
)

// signerOf makes a Signer of the Secret's content.
func signerOf(s *corev1.Secret, trustDomain string, leafLife time.Duration, now func() time.Time) (*certs.Signer, error) {
	for _, key := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
		if len(s.Data[key]) == 0 {
			return nil, fmt.Errorf("Secret %s has no %s: %w", s.Name, key, certs.ErrBroken)
		}
	}
	signer, err := certs.NewSigner(certs.SignerConfig{TrustDomain: trustDomain, LeafLife: leafLife, Now: now,
		Chain: s.Data[corev1.TLSCertKey], Key: s.Data[corev1.TLSPrivateKeyKey], Roots: s.Data[rootsKey]})
	if err != nil {
		return nil, fmt.Errorf("Secret %s: %w", s.Name, err)
	}
	if len(signer.Roots()) > maxRoots {
		return nil, fmt.Errorf("Secret %s: %s has more than %d certificates: %w", s.Name, rootsKey, maxRoots, certs.ErrBroken)
	}
	return signer, nil
}

// made reports whether the controller made what is in the Secret now.
func made(s *corev1.Secret) bool {
	return s.Annotations[madeAnnotation] != "" && s.Annotations[madeAnnotation] == fingerprint(s.Data[corev1.TLSCertKey])
}

// fill puts a new root into the Secret.
func fill(s *corev1.Secret, trustDomain string, now time.Time, life time.Duration) error {
	cert, key, err := certs.NewRoot(trustDomain, now, life)
	if err != nil {
		return fmt.Errorf("make issuer: %w", err)
	}
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	s.Annotations[madeAnnotation] = fingerprint(cert)
	s.Data = map[string][]byte{corev1.TLSCertKey: cert, corev1.TLSPrivateKeyKey: key, rootsKey: cert}
	return nil
}

// errIssuerGone: an issuer that was handed in is missing, and is not replaced by one that nobody asked for.
var errIssuerGone = errors.New("the Secret " + IssuerSecret + " that was handed in is gone; restore it, or, to have one made, " +
	"delete the ConfigMap " + RootsConfigMap + " too")

func objectMeta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{
		kube.LabelInstallation: kube.Installation, "app.kubernetes.io/name": "conduit", "app.kubernetes.io/part-of": "conduit",
		"app.kubernetes.io/managed-by": "conduit-controller"}}
}
