package mesh

// Mode says what an enrolled pod does with inbound connections that are not mutually authenticated.
type Mode string

// The modes of inbound mTLS. The zero value is not a mode: read it as Permissive only after defaulting.
const (
	Permissive Mode = "PERMISSIVE" // plaintext from outside the mesh is accepted and counted
	Strict     Mode = "STRICT"     // plaintext is refused
)

// Down says what the kernel does with an enrolled pod's new connections while no proxy is alive.
type Down string

// The agent-down modes. Closed is the default when the mTLS mode is Strict.
const (
	DownClosed Down = "Closed" // connections are refused: never plaintext
	DownOpen   Down = "Open"   // connections go on directly, without the mesh
)

// MeshPort is where enrolled pods accept mTLS: HTTP/2 with ALPN "conduit/1", or HBONE with ALPN "h2".
const MeshPort = 15008

// ALPN protocol names on MeshPort.
const (
	ALPNConduit = "conduit/1" // Conduit's own HTTP and CONNECT streams
	ALPNHBONE   = "h2"        // CONNECT to ip:port only
)
