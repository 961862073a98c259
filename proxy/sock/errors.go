package sock

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/loop"
)

// Errors that connections end with. Others are syscall.Errno values, and what crypto/tls returns.
var (
	ErrAborted  = errors.New("connection aborted")                    // Abort was called
	ErrStalled  = errors.New("peer takes no data")                    // after Close the peer did not take the queue in time
	ErrTimeout  = errors.New("timed out")                             // a dial or a handshake took too long
	ErrBusy     = errors.New("too many handshakes")                   // one had to give way to others, begun or not
	ErrNoTagMap = errors.New("no map to mark the proxy's own socket") // an unmarked one would be steered back to us
)

// HandshakeError is a TLS handshake that failed for another reason than time.
type HandshakeError struct{ Err error }

// Error implements error.
func (e *HandshakeError) Error() string { return "tls handshake: " + e.Err.Error() }

// Unwrap gives the cause.
func (e *HandshakeError) Unwrap() error { return e.Err }

// DialError is a connection that could not be made: Op is the step.
type DialError struct {
	Op  string
	Err error
}

// Error implements error.
func (e *DialError) Error() string { return fmt.Sprintf("dial: %s: %v", e.Op, e.Err) }

// Unwrap gives the cause, a syscall.Errno, ErrTimeout or ErrNoTagMap.
func (e *DialError) Unwrap() error { return e.Err }

// Reason is the mesh's word for an error of Dial, StartTLS or Closed. An error that carries a reason of its own (by a
// method MeshReason, as those of package mtls do) keeps it.
func Reason(err error) mesh.Reason {
	var own interface{ MeshReason() mesh.Reason }
	var dial *DialError
	switch {
	case err == nil:
		return mesh.ReasonNone
	case errors.As(err, &own):
		return own.MeshReason()
	case errors.Is(err, ErrTimeout):
		return mesh.ReasonConnectTimeout
	case errors.Is(err, ErrBusy), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS),
		errors.Is(err, syscall.EADDRNOTAVAIL):
		return mesh.ReasonOverload
	case errors.Is(err, loop.ErrStopped):
		return mesh.ReasonDraining
	case errors.As(err, &dial):
		if errors.Is(err, syscall.ETIMEDOUT) {
			return mesh.ReasonConnectTimeout
		}
		return mesh.ReasonConnect
	case isTLS(err):
		return mesh.ReasonTLS
	}
	return mesh.ReasonUpstreamReset
}

// AlertError is a TLS alert that the peer sent on a connection that stood: with TLS 1.3 a server refuses a client's
// certificate only after the client's handshake is done.
type AlertError struct{ Err error }

// Error implements error.
func (e *AlertError) Error() string { return e.Err.Error() }

// Unwrap gives what crypto/tls returned.
func (e *AlertError) Unwrap() error { return e.Err }

// MeshReason is the mesh's word for it.
func (e *AlertError) MeshReason() mesh.Reason { return mesh.ReasonTLS }

// alerted wraps an alert of the peer, and leaves other errors as they are.
func alerted(err error) error {
	if Refused(err) {
		return &AlertError{err}
	}
	return err
}

// Refused reports whether err is an alert by which the peer ended a TLS connection or handshake.
func Refused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" // how crypto/tls reports it
}

// isTLS tells errors of the TLS layer from those of the connection below.
func isTLS(err error) bool {
	var (
		hs     *HandshakeError
		alert  tls.AlertError
		header tls.RecordHeaderError
		verify *tls.CertificateVerificationError
		inv    x509.CertificateInvalidError
		auth   x509.UnknownAuthorityError
		op     *net.OpError
	)
	if errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error") {
		return true // how crypto/tls reports alerts; their own type is not exported
	}
	return errors.As(err, &hs) || errors.As(err, &alert) || errors.As(err, &header) || errors.As(err, &verify) ||
		errors.As(err, &inv) || errors.As(err, &auth)
}

// cause turns what the kernel says about a broken connection into one word for it: after a reset that a write or an
// earlier call has already reported, the kernel says EPIPE.
func cause(err error) error {
	if errors.Is(err, syscall.EPIPE) {
		return syscall.ECONNRESET
	}
	return err
}

var errTruncated = io.ErrUnexpectedEOF // FIN without close_notify (RFC 8446, 6.1)
