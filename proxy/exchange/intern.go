package exchange

import "hash/maphash"

const (
	maxInterned = 64      // heads that a shard keeps
	internBytes = 2 << 10 // a larger one is not kept
)

// interned is a head under the hash of its content.
type interned struct {
	sum      uint64
	internal bool
	head     *Head
}

var internSeed = maphash.MakeSeed()

// Intern is called by a codec for a head that it has seen more than once. It returns the shard's one Head with this
// content, which has an ID: what a hundred clients ask for again and again is decided and encoded once. Heads from
// links between proxies (internal) are kept apart, because they mean something else.
func (p *Pool) Intern(h *Head, internal bool) *Head {
	var m maphash.Hash
	m.SetSeed(internSeed)
	n := h.hash(&m)
	if p.heads == nil {
		p.heads = make([]interned, maxInterned)
	}
	e := &p.heads[m.Sum64()%maxInterned]
	if e.head != nil && e.sum == m.Sum64() && e.internal == internal && e.head.equal(h) {
		return e.head
	}
	if p.ids++; p.ids == 0 {
		p.ids++
	}
	h.ID = p.ids
	if n <= internBytes {
		*e = interned{m.Sum64(), internal, h}
	}
	return h
}

// hash writes the content of h to m and returns its size.
func (h *Head) hash(m *maphash.Hash) (size int) {
	for _, s := range []string{h.Method, h.Scheme, h.Authority, h.Path, h.Protocol} {
		_, _ = m.WriteString(s)
		_ = m.WriteByte(0)
		size += len(s)
	}
	maphash.WriteComparable(m, h.Status)
	for i := range h.Fields {
		_, _ = m.WriteString(h.Fields[i].Name)
		_ = m.WriteByte(0)
		_, _ = m.WriteString(h.Fields[i].Value)
		_ = m.WriteByte(0)
		size += int(h.Fields[i].Size())
	}
	return size
}

// equal reports whether two heads say the same.
func (h *Head) equal(o *Head) bool {
	if h.Method != o.Method || h.Scheme != o.Scheme || h.Authority != o.Authority || h.Path != o.Path ||
		h.Protocol != o.Protocol || h.Status != o.Status || h.Major != o.Major || h.Minor != o.Minor ||
		h.Absolute != o.Absolute || len(h.Fields) != len(o.Fields) {
		return false
	}
	for i := range h.Fields {
		if h.Fields[i] != o.Fields[i] {
			return false
		}
	}
	return true
}
