package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Processes lists the processes that are in the namespace, this one excepted.
func (n *Netns) Processes() ([]int, error) {
	inode, err := n.inode()
	if err != nil {
		return nil, err
	}
	return processesIn(map[uint64]bool{inode: true})
}

// ProxyPID is the process ID of the node's conduit-proxy, or 0. Any thread on the node identifies it: threads that
// open sockets for pods are elsewhere for a moment, the main thread included.
func (n *Node) ProxyPID() (int, error) {
	inode, err := n.inode()
	if err != nil {
		return 0, err
	}
	tasks, err := filepath.Glob("/proc/[0-9]*/task/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, task := range tasks {
		var st unix.Stat_t
		if unix.Stat(task+"/ns/net", &st) != nil || st.Ino != inode {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(task, "/")[2])
		if err != nil {
			return 0, err
		}
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err == nil && strings.TrimSpace(string(comm)) == "conduit-proxy" {
			return pid, nil
		}
	}
	return 0, nil
}

func processesIn(inodes map[uint64]bool) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && pid != os.Getpid() && isIn(pid, inodes) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// isIn reports whether a process is in one of the namespaces. A process that has ended is in none.
func isIn(pid int, inodes map[uint64]bool) bool {
	var st unix.Stat_t
	return unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st) == nil && inodes[st.Ino]
}

// killInside kills every process in the namespaces and waits until none is left. The namespaces are the lab's, so
// are the processes.
func killInside(spaces []*Netns) error {
	inodes := map[uint64]bool{}
	for _, s := range spaces {
		inode, err := s.inode()
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return err
		}
		inodes[inode] = true
	}
	deadline := time.Now().Add(stopTimeout)
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		pids, err := processesIn(inodes)
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill processes in the lab's namespaces: %v are still there", pids)
		}
		for _, pid := range pids {
			killIn(pid, inodes)
		}
		<-tick.C
	}
}

// killIn kills through a pidfd, and looks again once it has one: the ID may have changed hands.
func killIn(pid int, inodes map[uint64]bool) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if isIn(pid, inodes) {
		unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}
