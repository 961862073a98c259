package identity

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
)

// watch follows one object by its name, and hands its every state to seen; nil when there is none. It returns when ctx ends.
// The object is watched by name so that the right to read it can be given for this one alone.
func (s *Service) watch(ctx context.Context, resource, name string, kind runtime.Object, seen func(runtime.Object)) error {
	lw := cache.NewListWatchFromClient(s.client.CoreV1().RESTClient(), resource, s.cfg.Namespace,
		fields.OneTermEqualSelector("metadata.name", name))
	_, c := cache.NewInformerWithOptions(cache.InformerOptions{ListerWatcher: lw, ObjectType: kind, Handler: cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { seen(o.(runtime.Object)) },
		UpdateFunc: func(_, o any) { seen(o.(runtime.Object)) },
		DeleteFunc: func(any) { seen(nil) },
	}})
	c.RunWithContext(ctx)
	return nil
}

func (s *Service) seeSecret(o runtime.Object) {
	secret, _ := o.(*corev1.Secret)
	if err := s.authority.setSecret(secret); isNews(err, &s.toldSecret) {
		s.log.Error("issuer cannot be used; the last good one stays in force", "error", err)
	}
	s.poke()
}

func (s *Service) seeRoots(o runtime.Object) {
	cm, _ := o.(*corev1.ConfigMap)
	if err := s.authority.setBundle(cm); isNews(err, &s.toldBundle) {
		s.log.Error("trust bundle cannot be used; the last good one stays in force", "error", err)
	}
	s.poke()
}

// isNews reports whether err is one, and another one than was told last. Each place that tells has a told of its own, and one
// goroutine.
func isNews(err error, told *string) bool {
	text := ""
	if err != nil {
		text = err.Error()
	}
	news := text != "" && text != *told
	*told = text
	return news
}

// poke wakes the leader.
func (s *Service) poke() {
	select {
	case s.seen <- struct{}{}:
	default:
	}
}
