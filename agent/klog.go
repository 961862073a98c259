package agent

import (
	"context"
	"log/slog"

	"k8s.io/klog/v2"
)

// quieten has the Kubernetes libraries log for debugging alone: what matters of it, package kube tells itself, once.
func quieten(log *slog.Logger) {
	klog.SetSlogLogger(slog.New(demoted{log.Handler()}))
}

// demoted is a handler to which everything is of level debug.
type demoted struct{ slog.Handler }

func (d demoted) Enabled(ctx context.Context, _ slog.Level) bool {
	return d.Handler.Enabled(ctx, slog.LevelDebug)
}

func (d demoted) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return d.Handler.Handle(ctx, r)
}

func (d demoted) WithAttrs(a []slog.Attr) slog.Handler { return demoted{d.Handler.WithAttrs(a)} }
func (d demoted) WithGroup(g string) slog.Handler      { return demoted{d.Handler.WithGroup(g)} }
