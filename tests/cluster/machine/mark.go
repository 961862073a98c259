package machine

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ProcessMark tells a process from a later one with the same ID: the ID and the start time, field 22 of
// proc_pid_stat(5). The fields before that may hold any character, up to the last parenthesis.
func ProcessMark(pid int) (string, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return "", err
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return "", fmt.Errorf("read the start time of process %d: only %d fields", pid, len(fields))
	}
	if string(fields[0]) == "Z" {
		return "", fmt.Errorf("process %d has ended: %w", pid, os.ErrNotExist)
	}
	return fmt.Sprintf("%d %s", pid, fields[19]), nil
}

// MarkedPID is the ID of the process whose ProcessMark is in file, or 0 if it is gone.
func MarkedPID(file string) int {
	mark, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(mark), " ")
	pid, err := strconv.Atoi(first)
	if err != nil {
		return 0
	}
	if now, err := ProcessMark(pid); err != nil || now != string(mark) {
		return 0
	}
	return pid
}

// kill ends the process whose mark is in file, and with it, as it is a machine's init, all others of the machine. It
// returns when they are gone.
func kill(file string) error {
	pid := MarkedPID(file)
	if pid == 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if MarkedPID(file) != pid { // the ID may have changed hands
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	deadline := time.Now().Add(stopTimeout)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
		if n > 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d does not end", pid)
		}
	}
}

const stopTimeout = 30 * time.Second
