package sock

import (
	"bytes"
	"crypto/cipher"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"sync"
	"sync/atomic"
)

// Records of TLS 1.3 (RFC 8446, 5.2): a header of type application_data, the version of TLS 1.2 and the length; the
// bytes, their real type and padding, encrypted; and the tag.
const (
	recordHead  = 5
	recordTail  = 1 + 16 // type and tag
	maxPlain    = 16 << 10
	maxRecord   = recordHead + maxPlain + 256
	appData     = 23
	seqSize     = 8 // of the nonce, as crypto/tls's AEAD takes it
	maxKept     = 16
	recordVer12 = 0x0303
)

// begin is called on the loop, after the handshake: from now on records are ours if they can be.
func (s *session) begin() {
	if !known {
		return
	}
	cs := s.tc.ConnectionState()
	s.ours = cs.Version == tls.VersionTLS13 && s.aead(&fields.in) != nil && s.aead(&fields.out) != nil
	if s.ours {
		s.takeRaw()
	}
}

// dropCertificates frees what has been looked at: with all that is parsed of it, a chain takes as much as the rest of the
// session.
func (s *session) dropCertificates() {
	if s.ours {
		*inside[[]*x509.Certificate](s.tc, fields.certs) = nil
		*inside[[][]*x509.Certificate](s.tc, fields.chains) = nil
	}
}

// aead is the cipher of a direction. It changes with a key update.
func (s *session) aead(h *halfLayout) cipher.AEAD {
	if *inside[error](s.tc, h.err) != nil {
		return nil
	}
	a, _ := (*inside[any](s.tc, h.cipher)).(cipher.AEAD)
	if a == nil || a.NonceSize() != seqSize || a.Overhead() != recordTail-1 {
		return nil
	}
	return a
}

// count moves a sequence number on. Before it comes round the connection is many million years old.
func count(seq *[seqSize]byte) {
	binary.BigEndian.PutUint64(seq[:], binary.BigEndian.Uint64(seq[:])+1)
}

// wholeRecord is the length of the record at the start of p, header included, or 0 when it is not there as a whole. What
// is too long, or no record at all, counts as whole: crypto/tls knows what to say to it.
func wholeRecord(p []byte) int {
	if len(p) < recordHead {
		return 0
	}
	n := recordHead + int(binary.BigEndian.Uint16(p[3:]))
	switch {
	case n > maxRecord, binary.BigEndian.Uint16(p[1:]) != recordVer12:
		return recordHead
	case n > len(p):
		return 0
	}
	return n
}

// open decrypts application data from the records at the start of p into buf, until they have cost a turn's share; used
// is how much of p that was. It stops before a record that is crypto/tls's.
func (s *session) open(buf, p []byte, share int) (n, used, cost int) {
	a := s.aead(&fields.in)
	if a == nil || inside[bytes.Buffer](s.tc, fields.hand).Len() > 0 {
		return 0, 0, 0
	}
	seq := inside[[seqSize]byte](s.tc, fields.in.seq)
	for cost < share {
		k := wholeRecord(p[used:])
		if k == 0 || k > len(buf)-n {
			break
		}
		m := openRecord(a, seq, buf[n:], p[used:used+k])
		if m == 0 {
			break
		}
		count(seq)
		s.wear(s.w.c, 1)
		n += m
		used += k
		cost += max(m, recordCost)
	}
	if n > 0 {
		*inside[int](s.tc, fields.retries) = 0
	}
	return n, used, cost
}

// wanted reports whether crypto/tls has something to say about p, at the start of which open has found nothing.
func (s *session) wanted(p []byte) bool {
	return wholeRecord(p) > 0 || *inside[error](s.tc, fields.in.err) != nil
}

// openRecord decrypts one record of application data, of which it gives the length; 0 for any other record, which is left
// as it was.
func openRecord(a cipher.AEAD, seq *[seqSize]byte, buf, rec []byte) int {
	if rec[0] != appData || len(rec) < recordHead+recordTail+1 {
		return 0
	}
	plain, err := a.Open(buf[:0], seq[:], rec[recordHead:], rec[:recordHead])
	if err != nil {
		return 0
	}
	n := len(plain)
	if n > maxPlain+1 { // with the padding, too (RFC 8446, 5.4)
		return 0
	}
	for n > 0 && plain[n-1] == 0 { // padding
		n--
	}
	if n < 2 || plain[n-1] != appData {
		return 0
	}
	return n - 1
}

// theirs has crypto/tls deal with the record at the start of p, and with those that it wants to see in its wake, without
// reading more; n bytes of application data are put into buf. The rest is moved to the start of p.
func (s *session) theirs(buf, p []byte) (n, rest int, err error) {
	raw := inside[bytes.Buffer](s.tc, fields.rawInput)
	*raw = *bytes.NewBuffer(p[:len(p):len(p)])
	n, err = s.tc.Read(buf)
	rest = copy(p, raw.Bytes())
	*raw = bytes.Buffer{}
	if hand := inside[bytes.Buffer](s.tc, fields.hand); hand.Len() == 0 {
		*hand = bytes.Buffer{}
	}
	return n, rest, err
}

// takeRaw keeps what the handshake has read ahead, and frees its buffers.
func (s *session) takeRaw() {
	raw, hand := inside[bytes.Buffer](s.tc, fields.rawInput), inside[bytes.Buffer](s.tc, fields.hand)
	s.keep(raw.Bytes())
	*raw = bytes.Buffer{}
	if hand.Len() == 0 {
		*hand = bytes.Buffer{}
	}
}

// sealing makes records in a buffer of the loop's, and writes them.
type sealing struct {
	s   *session
	a   cipher.AEAD
	out []byte
}

// room is how much the next record can carry.
func (w *sealing) room() int { return min(maxPlain, cap(w.out)-len(w.out)-recordHead-recordTail) }

// head begins a record of n bytes, which the caller appends to out before it calls seal with head's result.
func (w *sealing) head(n int) int {
	n += recordTail
	w.out = append(w.out, appData, recordVer12>>8, recordVer12&0xff, byte(n>>8), byte(n))
	return len(w.out)
}

func (w *sealing) seal(body int) {
	w.out = append(w.out, appData)
	seq := inside[[seqSize]byte](w.s.tc, fields.out.seq)
	w.out = w.a.Seal(w.out[:body], seq[:], w.out[body:], w.out[body-recordHead:body])
	count(seq)
}

// sealing begins with no record; it reports false when crypto/tls is to write.
func (s *session) sealing(c *Conn) (w sealing, ok bool) {
	if !s.ours {
		return w, false
	}
	w = sealing{s: s, a: s.aead(&fields.out), out: c.l.Scratch(1)[:0]}
	return w, w.a != nil
}

// kept is the start of a record, in a connection between two turns. A few have a buffer of full size, which they use again
// and again; where there are many, each has memory for what there is.
var (
	keptPool = sync.Pool{New: func() any { return new([maxRecord]byte) }}
	keptOut  atomic.Int32
)

// keep copies p, for recall.
func (s *session) keep(p []byte) {
	switch {
	case len(p) == 0:
	case len(p) <= maxRecord && keptOut.Load() < maxKept:
		keptOut.Add(1)
		s.full = keptPool.Get().(*[maxRecord]byte)
		s.kept = s.full[:copy(s.full[:], p)]
	default:
		s.kept = bytes.Clone(p)
	}
}

// save keeps p until the next turn; owned: it is what is left of kept.
func (s *session) save(p []byte, owned bool) {
	switch c := s.w.c; {
	case c.dead: // release was called
	case owned && len(p) > 0 && !c.eof:
		s.kept = p
	default:
		s.forget()
		if !c.eof {
			s.keep(p)
		}
	}
}

func (s *session) forget() {
	if s.full != nil {
		keptPool.Put(s.full)
		keptOut.Add(-1)
	}
	s.kept, s.full = nil, nil
}
