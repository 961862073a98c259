package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// leadEvery is how often the leader looks whether anything has become due.
	leadEvery = 30 * time.Second
	// leadRetry is the pause after a write that failed; the API server said why.
	leadRetry = 2 * time.Second
)

// Lead does what only the leader may: makes the issuer when there is none, replaces the one that it made before it
// expires, keeps the trust bundle, and raises Events. It returns when ctx ends. Two leaders at one time, as a lost lease
// may cause, do not harm each other: every write is refused unless it is based on the newest state.
func (s *Service) Lead(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	told := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.seen: // Secret or ConfigMap are others now
		case <-timer.C:
		}
		pause := leadEvery
		err := s.lead(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			pause = leadRetry
		}
		if isNews(err, &told) {
			s.log.Error("issuer and trust bundle are not as they should be; trying again", "error", err)
		}
		s.raise(ctx)
		timer.Reset(pause)
	}
}

// lead brings Secret and ConfigMap up to date, one step at a time. It reads both anew: writes that are based on an old
// state would be refused anyway.
func (s *Service) lead(ctx context.Context) error {
	cm, err := s.client.CoreV1().ConfigMaps(s.cfg.Namespace).Get(ctx, RootsConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		cm, err = nil, nil
	}
	if err != nil {
		return fmt.Errorf("read ConfigMap %s: %w", RootsConfigMap, err)
	}
	current, _ := s.authority.trust()
	edited := true
	if cm != nil {
		b, hand, err := parseBundle(cm)
		if err == nil {
			current, edited = b, hand
		} else {
			s.log.Error("trust bundle is broken; restoring it", "error", err)
		}
	}
	secret, err := s.leadSecret(ctx, cm != nil && current.foreign())
	if err != nil && !errors.Is(err, errIssuerGone) {
		return err
	}
	return errors.Join(err, s.leadBundle(ctx, cm, secret, current, edited))
}

// leadSecret makes the Secret when it is missing, and a new issuer when the old one has had most of its life. It never
// writes to a Secret that was handed in. foreign says that the bundle's newest root was handed in.
func (s *Service) leadSecret(ctx context.Context, foreign bool) (*corev1.Secret, error) {
	secrets := s.client.CoreV1().Secrets(s.cfg.Namespace)
	secret, err := secrets.Get(ctx, IssuerSecret, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err) && foreign:
		return nil, errIssuerGone
	case apierrors.IsNotFound(err):
		secret = &corev1.Secret{ObjectMeta: objectMeta(s.cfg.Namespace, IssuerSecret), Type: corev1.SecretTypeTLS}
		if err := fill(secret, s.cfg.TrustDomain, s.cfg.Now(), s.cfg.RootLife); err != nil {
			return nil, err
		}
		if secret, err = secrets.Create(ctx, secret, metav1.CreateOptions{}); err != nil {
			return nil, fmt.Errorf("create Secret %s: %w", IssuerSecret, err)
		}
		s.log.Info("issuer made", "secret", IssuerSecret, "life", s.cfg.RootLife)
		return secret, nil
	case err != nil:
		return nil, fmt.Errorf("read Secret %s: %w", IssuerSecret, err)
	case !made(secret) || !s.worn(secret):
		return secret, nil
	}
	if err := fill(secret, s.cfg.TrustDomain, s.cfg.Now(), s.cfg.RootLife); err != nil {
		return nil, err
	}
	if secret, err = secrets.Update(ctx, secret, metav1.UpdateOptions{}); err != nil {
		return nil, fmt.Errorf("update Secret %s: %w", IssuerSecret, err)
	}
	s.log.Info("issuer replaced before it expires; its root is published first", "secret", IssuerSecret)
	return secret, nil
}

// worn reports whether an issuer that the controller made has had two thirds of its life, or is of no use at all.
func (s *Service) worn(secret *corev1.Secret) bool {
	signer, err := signerOf(secret, s.cfg.TrustDomain, s.cfg.LeafLife, s.cfg.Now)
	if err != nil {
		return true
	}
	c := signer.Certificate()
	return s.cfg.Now().After(c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) * 2 / 3))
}

// leadBundle publishes what the bundle should be.
func (s *Service) leadBundle(ctx context.Context, cm *corev1.ConfigMap, secret *corev1.Secret, current *bundle, edited bool) error {
	var roots []*x509.Certificate
	var own bool
	var broken error
	if secret != nil {
		signer, err := signerOf(secret, s.cfg.TrustDomain, s.cfg.LeafLife, s.cfg.Now)
		if err != nil {
			broken = err // roots stay as they are, and so does the issuer that replicas have
		} else {
			roots, own = signer.Roots(), made(secret)
		}
	}
	next, changed := current.plan(roots, own, rules{now: s.cfg.Now(), delay: s.cfg.RootDelay, leafLife: s.cfg.LeafLife})
	if len(next.roots) == 0 || !changed && !edited {
		return broken
	}
	if len(next.roots) > maxRoots {
		return fmt.Errorf("trust bundle: %d roots; at most %d are published", len(next.roots), maxRoots)
	}
	maps := s.client.CoreV1().ConfigMaps(s.cfg.Namespace)
	fresh := cm == nil
	if fresh {
		cm = &corev1.ConfigMap{ObjectMeta: objectMeta(s.cfg.Namespace, RootsConfigMap)}
	}
	if err := next.write(cm); err != nil {
		return err
	}
	var err error
	if fresh {
		_, err = maps.Create(ctx, cm, metav1.CreateOptions{})
	} else {
		_, err = maps.Update(ctx, cm, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("write ConfigMap %s: %w", RootsConfigMap, err)
	}
	s.log.Info("trust bundle published", "roots", len(next.roots), "revision", next.revision())
	return broken
}
