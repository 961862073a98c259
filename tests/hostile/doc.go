// Package hostile attacks a running conduit-proxy the way its peers may: clients, servers behind it, and strangers who only
// shake hands. For every attack the offender must be told and counted, the proxy's memory must stay bounded, and
// well-behaved clients beside it must have every answer. How long they wait for it is for the benchmark to say:
//
//	go test ./tests/hostile -run '^$' -bench . -benchtime 3x
package hostile
