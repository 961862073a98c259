package kube

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// inotifyInstances is how many instances of inotify a user may have, and needs for some clusters side by side: each kubelet, API server,
// container runtime and controller has several. Where they run out, these fail one by one, with "too many open files". Kernels allow 128.
const inotifyInstances = 1024

// allowWatches raises the kernel's bound where it is lower. It stays: others on this machine may count on it by then.
func allowWatches() error {
	const file = "/proc/sys/fs/inotify/max_user_instances"
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err != nil || n >= inotifyInstances {
		return err
	}
	if err := os.WriteFile(file, []byte(strconv.Itoa(inotifyInstances)), 0); err != nil {
		return fmt.Errorf("allow more instances of inotify: %w", err)
	}
	return nil
}
