package identity

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Severity grades a Finding.
type Severity string

// The severities.
const (
	SeverityOK      Severity = "ok"
	SeverityWarning Severity = "warning"
	SeverityError   Severity = "error"
)

// Finding is one thing that was looked at, for people: Events say it.
type Finding struct {
	Severity Severity
	Reason   string    // in CamelCase, as in Events; one per kind of finding
	Object   string    // what it is about: the kind and name of a Kubernetes object
	Message  string    // what is the matter, and what to do
	Expires  time.Time // of what the finding is about; zero when it does not expire
}

// An issuer that expires is an alarm of growing insistence.
var thresholds = []struct {
	left     time.Duration
	severity Severity
	reason   string
}{
	{0, SeverityError, "IssuerExpired"},
	{24 * time.Hour, SeverityError, "IssuerExpiresInADay"},
	{7 * 24 * time.Hour, SeverityError, "IssuerExpiresInAWeek"},
	{30 * 24 * time.Hour, SeverityWarning, "IssuerExpiresInAMonth"},
}

// Health looks at issuer and trust bundle. What is in order is told too.
func (s *Service) Health() []Finding {
	st, now := s.authority.state(), s.cfg.Now()
	var out []Finding
	secret, roots := "Secret/"+IssuerSecret, "ConfigMap/"+RootsConfigMap
	switch {
	case st.secretErr != nil && st.active != nil:
		out = append(out, Finding{SeverityError, "IssuerNotUsable", secret,
			fmt.Sprintf("%v; the issuer before it goes on until %s", st.secretErr, st.active.NotAfter().Format(time.RFC3339)), st.active.NotAfter()})
	case st.secretErr != nil:
		out = append(out, Finding{SeverityError, "IssuerNotUsable", secret, st.secretErr.Error() + "; no certificates can be issued", time.Time{}})
	case st.active == nil && st.next == nil:
		out = append(out, Finding{SeverityError, "IssuerMissing", secret, "there is no issuer; the leading controller makes one, see its log", time.Time{}})
	}
	if st.next != nil {
		from, _ := st.bundle.maySign(st.next.Root())
		out = append(out, Finding{SeverityOK, "IssuerPending", secret,
			"a new issuer is used from " + from.Format(time.RFC3339) + ", when everybody knows its root", expires(st.next)})
	}
	if st.active != nil {
		out = append(out, issuerExpiry(st, secret, now))
	}
	switch {
	case st.bundleErr != nil:
		out = append(out, Finding{SeverityError, "RootsNotUsable", roots, st.bundleErr.Error() + "; the last good ones stay in force", time.Time{}})
	case st.bundle == nil:
		out = append(out, Finding{SeverityError, "RootsMissing", roots, "the trust bundle is not published yet", time.Time{}})
	default:
		out = append(out, Finding{SeverityOK, "Roots", roots, fmt.Sprintf("%d roots are trusted", st.bundle.size()), st.bundle.expires()})
	}
	return out
}

func issuerExpiry(st state, object string, now time.Time) Finding {
	end := st.active.NotAfter()
	left, life := end.Sub(now), end.Sub(st.active.Certificate().NotBefore)
	f := Finding{SeverityOK, "Issuer", object, "the issuer is valid until " + end.Format(time.RFC3339), end}
	for _, t := range thresholds {
		// Issuers of a short life are renewed often: what is left must also be little of it.
		if left <= t.left && (t.left <= 24*time.Hour || left <= life/4) {
			f.Severity, f.Reason = t.severity, t.reason
			f.Message = fmt.Sprintf("the issuer ends at %s, and with it every certificate; put a new one into the Secret", end.Format(time.RFC3339))
			break
		}
	}
	if f.Severity != SeverityOK && st.next != nil {
		f.Severity, f.Reason, f.Message = SeverityOK, "Issuer", "the issuer ends at "+end.Format(time.RFC3339)+", and its successor is there"
	}
	return f
}

// raise makes Events of what is not in order. An Event's name is that of its finding: it is there once, and again when the
// API server has dropped it, as long as the finding holds.
func (s *Service) raise(ctx context.Context) {
	for _, f := range s.Health() {
		if f.Severity == SeverityOK {
			continue
		}
		err := s.raiseOne(ctx, f)
		if err != nil && !apierrors.IsAlreadyExists(err) && ctx.Err() == nil {
			s.log.Warn("event not raised", "event", f.Reason, "error", err)
		}
	}
}

func (s *Service) raiseOne(ctx context.Context, f Finding) error {
	now := metav1.NewTime(s.cfg.Now())
	on := corev1.ObjectReference{APIVersion: "v1", Kind: "Secret", Namespace: s.cfg.Namespace, Name: IssuerSecret}
	if f.Object == "ConfigMap/"+RootsConfigMap {
		on.Kind, on.Name = "ConfigMap", RootsConfigMap
	}
	name := fmt.Sprintf("%s.%s", on.Name, fingerprint([]byte(f.Reason + f.Message))[:16])
	_, err := s.client.CoreV1().Events(s.cfg.Namespace).Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.cfg.Namespace, Name: name}, InvolvedObject: on, Reason: f.Reason, Message: f.Message,
		Type: corev1.EventTypeWarning, Source: corev1.EventSource{Component: ControllerAccount}, FirstTimestamp: now, LastTimestamp: now, Count: 1,
		ReportingController: "conduit.io/controller", ReportingInstance: ControllerAccount,
	}, metav1.CreateOptions{})
	return err
}
