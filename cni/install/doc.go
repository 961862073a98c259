// Package install puts the CNI plugin into a node's network configuration and takes it out again.
//
// A container runtime uses the first configuration of its directory, in the order of names (libcni.ConfFiles). Install adds
// an entry for conduit-cni to that file, behind the plugins that are there: it changes the bytes of its entry alone,
// so that fields, order and numbers of others stay exactly as they were, and Uninstall, which takes them out again, leaves
// the file as it was found. A single plugin's configuration (.conf or .json) cannot hold a chain: it is renamed aside, with the
// suffix SavedSuffix, and a list (.conflist) of it and our entry takes its place, until Uninstall renames it back.
//
// Files are replaced by exchanging them for a complete new one, and what came out is compared with what was read: a change
// that another program makes meanwhile is found and kept. When another program writes the file anew, its configuration
// counts, and Watch adds the entry again.
package install
