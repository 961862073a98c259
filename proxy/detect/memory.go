package detect

import "net/netip"

// Memory remembers the last verdict of each destination, the least recently used forgotten first. It belongs to one
// shard loop.
type Memory struct {
	max   int
	items map[netip.AddrPort]*item
	root  item // ring: root.next is the most recent
}

type item struct {
	dst        netip.AddrPort
	verdict    Verdict
	prev, next *item
}

// NewMemory remembers at most max destinations.
func NewMemory(max int) *Memory {
	m := &Memory{max: max, items: make(map[netip.AddrPort]*item)}
	m.root.prev, m.root.next = &m.root, &m.root
	return m
}

// Get is the verdict for dst, or More when nothing is known.
func (m *Memory) Get(dst netip.AddrPort) Verdict {
	it := m.items[dst]
	if it == nil {
		return More
	}
	m.touch(it)
	return it.verdict
}

// Put remembers v for dst.
func (m *Memory) Put(dst netip.AddrPort, v Verdict) {
	it := m.items[dst]
	if it == nil {
		if len(m.items) >= m.max {
			last := m.root.prev
			delete(m.items, last.dst)
			unlink(last)
		}
		it = &item{dst: dst}
		m.items[dst] = it
	}
	it.verdict = v
	m.touch(it)
}

// Len is how many destinations are remembered.
func (m *Memory) Len() int { return len(m.items) }

func (m *Memory) touch(it *item) {
	unlink(it)
	it.prev, it.next = &m.root, m.root.next
	it.prev.next, it.next.prev = it, it
}

func unlink(it *item) {
	if it.prev == nil {
		return
	}
	it.prev.next, it.next.prev = it.next, it.prev
}
