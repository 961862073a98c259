package mtls

import "conduit.io/conduit/mesh"

// Peers is how many peers' sessions the Store keeps for an identity.
func (s *Store) Peers(own mesh.Identity) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.leaves[own].client)
}
