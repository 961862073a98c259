package exchange_test

import (
	"testing"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
)

func TestHTTPStatus(t *testing.T) {
	for r, want := range map[mesh.Reason]int{
		mesh.ReasonConnect: 503, mesh.ReasonConnectTimeout: 504, mesh.ReasonUpstreamReset: 502, mesh.ReasonNoEndpoints: 503,
		mesh.ReasonPeerIdentity: 503, mesh.ReasonNotMeshTarget: 403, mesh.ReasonBadRequest: 400, mesh.ReasonTimeout: 504,
	} {
		if got := exchange.HTTPStatus(r); got != want {
			t.Errorf("%s: %d, want %d", r, got, want)
		}
	}
}
