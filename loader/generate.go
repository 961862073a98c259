package loader

// The objects, and the Go twins of the types that they share with user space. All of it is committed, so that building
// needs no clang. The flags: -mcpu=v3 is the instruction set of Linux 5.12; the include path is where Debian keeps asm/types.h.

//go:generate go tool bpf2go -target bpfel -no-global-types -cc clang -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu" cgroup ../bpf/cgroup.c
//go:generate go tool bpf2go -target bpfel -no-global-types -cc clang -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu" lookup ../bpf/lookup.c
//go:generate go run ./gen -object cgroup_bpfel.o -out ../api/kernel/types.go
