package rig

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine is on what was measured.
type Machine struct {
	CPU      string  `json:"cpu"`
	Cores    int     `json:"cores"`
	MemoryMB int     `json:"memory_mb"`
	Kernel   string  `json:"kernel"`
	Go       string  `json:"go"`
	Load     float64 `json:"load_1m"` // load average before the measurement: who else was at work
	Pinning  Cores   `json:"pinning"`
}

// Describe reads what /proc and uname(2) say. What is not known stays empty.
func Describe(cores Cores) Machine {
	m := Machine{Cores: runtime.NumCPU(), Go: runtime.Version(), Pinning: cores, CPU: "unknown"}
	cpuinfo, _ := os.ReadFile("/proc/cpuinfo")
	for line := range bytes.Lines(cpuinfo) {
		if k, v, ok := strings.Cut(string(line), ":"); ok && strings.TrimSpace(k) == "model name" {
			m.CPU = strings.TrimSpace(v)
			break
		}
	}
	meminfo, _ := os.ReadFile("/proc/meminfo")
	if f := strings.Fields(string(meminfo)); len(f) > 1 {
		kb, _ := strconv.Atoi(f[1])
		m.MemoryMB = kb / 1024
	}
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Sscan(string(load), &m.Load)
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	return m
}
