// Package h2 is HTTP/2 (RFC 9113) as far as a load generator and its backend need it: frames in place, header blocks
// that repeat are neither encoded nor decoded twice, and flow control in both directions.
package h2

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/net/http2"
)

// Preface is what a client sends first.
const Preface = http2.ClientPreface

const (
	frameHeader = 9
	maxFrame    = 16384 // RFC 9113, 4.2: what everybody must take, and all that is offered here
)

var errFrameSize = errors.New("frame larger than the limit")

type frame struct {
	kind    http2.FrameType
	flags   http2.Flags
	id      uint32
	payload []byte
}

// next parses the frame at the front of b; n is its length, 0 while it is incomplete.
func next(b []byte) (f frame, n int, err error) {
	if len(b) < frameHeader {
		return f, 0, nil
	}
	size := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
	if size > maxFrame {
		return f, 0, errFrameSize
	}
	if len(b) < frameHeader+size {
		return f, 0, nil
	}
	f = frame{http2.FrameType(b[3]), http2.Flags(b[4]), binary.BigEndian.Uint32(b[5:]) & 0x7fffffff, b[frameHeader : frameHeader+size]}
	return f, frameHeader + size, nil
}

// body strips padding (flag 0x8) and priority (flag 0x20, of HEADERS alone).
func (f *frame) body() ([]byte, error) {
	p := f.payload
	pad := 0
	if f.flags.Has(http2.FlagDataPadded) {
		if len(p) == 0 {
			return nil, fmt.Errorf("%v frame without its padding", f.kind)
		}
		pad, p = int(p[0]), p[1:]
	}
	if f.kind == http2.FrameHeaders && f.flags.Has(http2.FlagHeadersPriority) {
		if len(p) < 5 {
			return nil, errors.New("HEADERS frame without its priority")
		}
		p = p[5:]
	}
	if pad > len(p) {
		return nil, fmt.Errorf("%v frame with more padding than payload", f.kind)
	}
	return p[:len(p)-pad], nil
}

func appendHead(b []byte, size int, kind http2.FrameType, flags http2.Flags, id uint32) []byte {
	return append(b, byte(size>>16), byte(size>>8), byte(size), byte(kind), byte(flags), byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

func appendFrame(b []byte, kind http2.FrameType, flags http2.Flags, id uint32, payload []byte) []byte {
	return append(appendHead(b, len(payload), kind, flags, id), payload...)
}

// appendUint appends a frame with a payload of 32 bits: WINDOW_UPDATE, RST_STREAM.
func appendUint(b []byte, kind http2.FrameType, id, v uint32) []byte {
	return binary.BigEndian.AppendUint32(appendHead(b, 4, kind, 0, id), v)
}

func appendSettings(b []byte, s ...http2.Setting) []byte {
	b = appendHead(b, 6*len(s), http2.FrameSettings, 0, 0)
	for _, v := range s {
		b = binary.BigEndian.AppendUint16(b, uint16(v.ID))
		b = binary.BigEndian.AppendUint32(b, v.Val)
	}
	return b
}
