package mesh

// Reason is why the mesh failed or refused a connection or a request. One failure has one reason, the same in the
// conduit-reason response header, in metrics, and in logs.
type Reason string

// The reasons.
const (
	ReasonNone            Reason = ""
	ReasonNoEndpoints     Reason = "no-endpoints"      // the Service has no ready endpoint of the needed address family
	ReasonConnect         Reason = "connect-failed"    // the TCP dial failed or was refused
	ReasonConnectTimeout  Reason = "connect-timeout"   // the TCP dial or TLS handshake did not finish in time
	ReasonTLS             Reason = "tls-failed"        // the handshake failed
	ReasonPeerIdentity    Reason = "peer-identity"     // the peer authenticated as somebody else
	ReasonPlaintext       Reason = "plaintext-refused" // STRICT refused a connection without mTLS
	ReasonUpstreamReset   Reason = "upstream-reset"    // the server ended the exchange before it was complete
	ReasonUpstreamProto   Reason = "upstream-protocol" // the server broke its protocol
	ReasonNoUpgrade       Reason = "no-upgrade"        // the server does not take the protocol that the client wants to change to
	ReasonDownstreamReset Reason = "downstream-reset"  // the client went away first
	ReasonBadRequest      Reason = "bad-request"       // the client broke its protocol
	ReasonTooLarge        Reason = "header-too-large"  // a header block over the limit
	ReasonOverload        Reason = "overload"          // a bound of the proxy was reached
	ReasonDraining        Reason = "draining"          // the proxy or the pod is going away
	ReasonNotMeshTarget   Reason = "not-a-mesh-target" // a CONNECT that names no address of this pod
	ReasonNoCertificate   Reason = "no-certificate"    // the pod's identity has no certificate yet
	ReasonTimeout         Reason = "timeout"           // the exchange took longer than allowed
	ReasonUnresolved      Reason = "unresolved"        // nobody said in time who has the address, and the pod is closed
)

// ReasonHeader carries the Reason in responses that the mesh made.
const ReasonHeader = "conduit-reason"
