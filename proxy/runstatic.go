package proxy

import (
	"log/slog"

	"conduit.io/conduit/proxy/admin"
	"conduit.io/conduit/proxy/loop"
	"conduit.io/conduit/proxy/static"
)

func runStatic(e Env, o *options, cfg *static.Config, l *loop.Loop, log *slog.Logger) error {
	s, err := static.Start(l, cfg, log)
	if err != nil {
		return err
	}
	if cfg.Admin.IsValid() {
		a, err := admin.Start(l, cfg.Admin, s)
		if err != nil {
			return err
		}
		log.Info("admin server started", "address", a.Addr().String())
	}
	<-e.Signals
	log.Info("proxy is leaving", "grace", o.grace)
	within(e.Signals, func() { s.Shutdown(o.grace) })
	return nil
}
